"""What this installation is, what is wrong with it, and what a model is made of: in words that tell what to do."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from oasis_lib.paths import PROJECT, data_home

IMPORT_NAMES = {"pillow": "PIL", "scikit-image": "skimage", "scikit-learn": "sklearn", "umap-learn": "umap"}


def choose_device(name: str) -> None:
    """`--device`: for this process and every kernel it starts. "auto" is CUDA, then MPS, then the CPU."""
    if name == "cpu":
        os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    if name not in ("cuda", "mps"):
        return
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device; `oasis check` says why, `--device cpu` works everywhere")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: torch finds no Apple GPU; `--device cpu` works everywhere")


def device_name() -> str:
    import torch

    if os.environ.get("ACCELERATE_USE_CPU") == "true":
        return f"cpu, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        return f"cuda, {torch.cuda.get_device_name()}"
    return "mps, Apple GPU" if torch.backends.mps.is_available() else f"cpu, {os.cpu_count()} cores"


def environment_line() -> str:
    import torch

    return f"oasis_lib {installed('oasis_lib')} · Python {platform.python_version()} · torch {torch.__version__} · {device_name()}"


def describe_environment() -> dict[str, Any]:
    """What a run was made with: for the manifest."""
    return {"device": device_name(), "versions": versions(), "git": git_state()}


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
    """The commit that this code stands at, and whether anything differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(PROJECT), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": git("status", "--porcelain") == ""}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "clean": None}  # not a clone, or no git: said as such in the report


def installation() -> tuple[list[str], list[str]]:
    """What there is, and what is wrong with it."""
    import torch

    found, git, home, free = versions(), git_state(), data_home(), shutil.disk_usage(PROJECT).free / 1e9
    cohorts = ", ".join(sorted(path.parent.name for path in home.glob("*/cohort.json")))
    about = found | {
        "device": device_name(),
        "git": f"{git['commit'][:10]}, {'clean' if git['clean'] else 'with changes'}" if git["commit"] else "not a clone",
        "data": f"{home}: {cohorts or 'no prepared cohort yet; `oasis prepare phantom` or `make study` makes one'}",
        "disk": f"{free:.0f} GB free",
    }
    wrong = []
    for name in found.keys() - {"python", "oasis_lib"}:
        try:
            importlib.import_module("oasis_lib.vision" if name == "torchvision" else IMPORT_NAMES.get(name, name))
        except Exception as error:
            wrong.append(f"{name} does not import ({error}): `pip install -e . -c requirements.lock` mends it")
    vision = sys.modules.get("oasis_lib.vision")
    pair = "torchvision was built for another torch: its compiled operators can't run. The study works without them"
    driver = "there is an NVIDIA driver, but torch can't use it: take torch's CUDA build, or a newer driver"
    checks = [
        (not (3, 11) <= sys.version_info[:2] <= (3, 12), "use Python 3.11 or 3.12 (`make clean study PYTHON=python3.12`)"),
        (vision is not None and not vision.COMPLETE, f"{pair}; for a matched pair take both from one index"),
        (shutil.which("nvidia-smi") and not torch.cuda.is_available(), driver),
        (free < 2, f"only {free:.1f} GB are free on the disk of {PROJECT}: a run needs about 2"),
        (not (PROJECT / "notebooks").is_dir(), "no notebooks beside the library: install a clone with `pip install -e .`"),
    ]
    wrong += [words for is_so, words in checks if is_so]
    return [f"{name:<16} {value}" for name, value in about.items()], wrong


def layers(folder: str | Path) -> tuple[list[tuple[str, str, str, int]], dict[str, Any]]:
    """A model's layers in the order they run: name, kind, output size, parameters. Read from one pass over a blank input."""
    import torch

    from oasis_lib.models import load

    model, rows = load(folder), []
    # A layer under spectral norm is one layer, though torch hangs what computes the norm beneath it.
    inner = {name: module for name, module in model.named_modules() if name and ".parametrizations" not in name}

    def noted(module: Any, _inputs: Any, output: Any) -> None:
        size = "x".join(map(str, output.shape[1:])) if isinstance(output, torch.Tensor) else ""
        kind = type(module).__name__.removeprefix("Parametrized")
        rows.append((names[module], kind, size, sum(p.numel() for p in module.parameters())))

    names = {module: name for name, module in inner.items() if hasattr(module, "parametrizations") or not any(module.children())}
    hooks = [module.register_forward_hook(noted) for module in names]
    with torch.no_grad():
        if hasattr(model, "decode"):
            size = getattr(model, "size", 0) or 64
            model(torch.zeros(1, model.config.channels, size, size))
        elif hasattr(model, "nll"):
            model.nll(torch.zeros(1, *model.grid, dtype=torch.int64))
        elif hasattr(model, "discriminator"):
            model(torch.zeros(1, dtype=torch.int64))
    for hook in hooks:
        hook.remove()
    return rows, {"config": model.config, "parameters": sum(p.numel() for p in model.parameters())}
