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
    import torch

    if name == "cpu":
        os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    elif name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device; `oasis check` says why, `--device cpu` works everywhere")
    elif name == "mps" and not torch.backends.mps.is_available():
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
    there, wrong = [], []
    for name, found in versions().items():
        there.append(f"{name:<16} {found}")
        if name not in ("python", "oasis_lib", "torchvision"):
            try:
                importlib.import_module(IMPORT_NAMES.get(name, name))
            except Exception as error:
                wrong.append(f"{name} does not import ({error}): `pip install -e . -c requirements.lock` mends it")
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        wrong.append(
            f"Python {platform.python_version()} is not supported: use 3.11 or 3.12 (`make clean study PYTHON=python3.12`)"
        )
    there.append(f"{'device':<16} {device_name()}")
    wrong += _torch_troubles()
    git = git_state()
    there.append(
        f"{'git':<16} "
        + (f"{git['commit'][:10]}, {'clean' if git['clean'] else 'with changes'}" if git["commit"] else "not a clone")
    )
    home = data_home()
    cohorts = sorted(p.parent.name for p in home.glob("*/cohort.json")) if home.is_dir() else []
    there.append(
        f"{'data':<16} {home}: {', '.join(cohorts) or 'no prepared cohort yet; `oasis prepare phantom` or `make study` makes one'}"
    )
    free = shutil.disk_usage(PROJECT).free / 1e9
    there.append(f"{'disk':<16} {free:.0f} GB free")
    if free < 2:
        wrong.append(f"only {free:.1f} GB are free on the disk of {PROJECT}: a run needs about 2")
    if not (PROJECT / "notebooks").is_dir():
        wrong.append("the notebooks are not beside the library: the study needs a clone, installed with `pip install -e .`")
    return there, wrong


def _torch_troubles() -> list[str]:
    import torch

    try:
        from oasis_lib import vision
    except Exception as error:
        return [f"torchvision does not import ({error}): requirements.lock names the pair that goes together"]
    troubles = []
    if not vision.COMPLETE:
        troubles.append(
            f"torchvision {vision.torchvision.__version__} was built for another torch than {torch.__version__}: its compiled "
            "operators (nms, read_image) can't run. The study works without them; for a matched pair take both from one index"
        )
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        troubles.append(
            f"there is an NVIDIA driver, but torch {torch.__version__} can't use it: take torch's CUDA build, or a newer driver"
        )
    return troubles


def layers(folder: str | Path) -> tuple[list[tuple[str, str, str, int]], dict[str, Any]]:
    """A model's layers in the order they run: name, kind, output size, parameters. Read from one pass over a blank input."""
    import torch
    from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

    from oasis_lib.models import load

    model = load(folder)
    config = model.config
    rows: list[tuple[str, str, str, int]] = []

    def noted(name: str):
        def hook(module, _inputs, output):
            size = "x".join(str(n) for n in output.shape[1:]) if isinstance(output, torch.Tensor) else ""
            rows.append((name, type_before_parametrizations(module).__name__, size, sum(p.numel() for p in module.parameters())))

        return hook

    # A layer under spectral norm is one layer, though torch hangs what computes the norm beneath it.
    found = {n: m for n, m in model.named_modules() if n and ".parametrizations" not in n}
    hooks = [m.register_forward_hook(noted(n)) for n, m in found.items() if is_parametrized(m) or not any(m.children())]
    with torch.no_grad():
        _one_pass(model)
    for hook in hooks:
        hook.remove()
    return rows, {"config": config, "parameters": sum(p.numel() for p in model.parameters())}


def _one_pass(model: Any) -> None:
    """The smallest input that each kind of model takes."""
    import torch

    if hasattr(model, "decode"):
        size = getattr(model, "size", 0) or 64
        model(torch.zeros(1, model.config.channels, size, size))
    elif hasattr(model, "nll"):
        model.nll(torch.zeros(1, *model.grid, dtype=torch.int64))
    elif hasattr(model, "discriminator"):
        model.discriminator(model.maps(model.generator(model.noise(torch.zeros(1, dtype=torch.int64)))))
    else:
        model.sample(1)
