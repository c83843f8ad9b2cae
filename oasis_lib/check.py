"""What this installation is, what is wrong with it, and what a model is made of."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from oasis_lib.paths import PROJECT, data_home
from oasis_lib.storage import read_config

IMPORT_NAMES = {"pillow": "PIL", "scikit-image": "skimage", "scikit-learn": "sklearn", "umap-learn": "umap"}
IMPORT_NAMES |= {"torchvision": "oasis_lib.vision"}


def choose_device(name: str) -> None:
    """`--device`: for this process and every kernel it starts. "auto" is CUDA, then MPS, then the CPU."""
    if name == "cpu":
        os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    if name in ("cuda", "mps"):
        import torch

        if not getattr(torch, name).is_available():
            raise ValueError(f"--device {name}: torch finds none; --device cpu works everywhere")


def device_name() -> str:
    import torch

    from oasis_lib.device import best_device

    kind = best_device().type
    about = {"cuda": torch.cuda.get_device_name, "mps": lambda: "Apple GPU", "cpu": lambda: f"{os.cpu_count()} cores"}
    return f"{kind}, {about[kind]()}"


def environment_line() -> str:
    parts = [f"{name} {installed(name)}" for name in ("oasis_lib", "torch")]
    return " · ".join([parts[0], f"Python {platform.python_version()}", parts[1], device_name()])


def versions() -> dict[str, str]:
    """Python, this library, and each of the dependencies that it declares."""
    try:
        declared = [r for r in distribution("oasis_lib").requires or [] if "extra ==" not in r]
    except PackageNotFoundError:
        declared = ["torch"]  # run from the source folder, not installed
    names = ["oasis_lib", *(re.match(r"[\w.-]+", requirement).group() for requirement in declared)]
    return {"python": platform.python_version()} | {name: installed(name) for name in names}


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def git_state() -> dict[str, Any]:
    """The commit of this code, and whether nothing differs from it."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(PROJECT), *words]
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": git("status", "--porcelain") == ""}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "clean": None}  # not a clone, or no git


def installation() -> tuple[list[str], list[str]]:
    """What there is, and what is wrong with it."""
    import torch

    found, git, home, free = versions(), git_state(), data_home(), shutil.disk_usage(PROJECT).free / 1e9
    cohorts = ", ".join(sorted(path.parent.name for path in home.glob("*/cohort.json")))
    about = found | {
        "device": device_name(),
        "git": f"{git['commit'][:10]}{'' if git['clean'] else ', with changes'}" if git["commit"] else "not a clone",
        "data": f"{home}: {cohorts or 'no prepared cohort yet; `oasis prepare phantom OUT` makes one'}",
        "disk": f"{free:.0f} GB free",
    }
    wrong = []
    for name in found.keys() - {"python", "oasis_lib"}:
        try:
            importlib.import_module(IMPORT_NAMES.get(name, name))
        except Exception as error:
            wrong.append(f"{name} does not import ({error}): `pip install -e . -c requirements.lock` mends it")
    matched = getattr(sys.modules.get("oasis_lib.vision"), "COMPLETE", True)
    unused = shutil.which("nvidia-smi") and not torch.cuda.is_available()
    checks = {
        "use Python 3.11 or 3.12 (`make clean study PYTHON=python3.12`)": not (3, 11) <= sys.version_info < (3, 13),
        "torchvision is for another torch; the study works, but take both from one index": not matched,
        "torch can't use the NVIDIA driver: take its CUDA build, or a newer driver": unused,
        f"only {free:.1f} GB are free on the disk of {PROJECT}: a run needs about 2": free < 2,
        "no notebooks: install a clone with `pip install -e .`": not (PROJECT / "notebooks").is_dir(),
    }
    wrong += [words for words, is_so in checks.items() if is_so]
    return [f"{name:<16} {value}" for name, value in about.items()], wrong


def layers(folder: str | Path) -> tuple[list[tuple[str, str, str, int]], dict[str, Any]]:
    """A model's layers in the order they run: name, kind, output size, parameters; from a pass over a blank input."""
    import torch

    from oasis_lib.models import load

    model, rows = load(folder), []

    def note(name: str, module: Any, _inputs: Any, output: Any) -> None:
        size = "x".join(map(str, output.shape[1:])) if isinstance(output, torch.Tensor) else ""
        kind = type(module).__name__.removeprefix("Parametrized")
        rows.append((name, kind, size, sum(p.numel() for p in module.parameters())))

    for name, module in model.named_modules():
        # A layer under spectral norm is one layer, though torch keeps what computes the norm beneath it.
        whole = hasattr(module, "parametrizations") or not any(module.children())
        if name and whole and ".parametrizations" not in name:
            module.register_forward_hook(partial(note, name))
    with torch.no_grad():
        if model.kind == "vqvae":
            size = read_config(folder).get("size", 64)
            model(torch.zeros(1, model.config.channels, size, size))
        elif hasattr(model, "nll"):
            model.nll(torch.zeros(1, *model.grid, dtype=torch.int64))
        elif hasattr(model, "discriminator"):
            model(torch.zeros(1, dtype=torch.int64))
    return rows, {"config": model.config, "parameters": sum(p.numel() for p in model.parameters())}
