"""A model folder: weights as safetensors, configuration as JSON, arrays that were found with it. Loading executes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from oasis_lib.paths import atomic, read_json, write_json

WEIGHTS, CONFIG, STATE = "model.safetensors", "config.json", "training.pt"
Arrays = dict[str, np.ndarray]


def save_model(folder: str | Path, state: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """`config` holds `kind` and `model` (what rebuilds it), and whatever else is worth knowing of its making."""
    folder = Path(folder)
    write_json(folder / CONFIG, config)
    with atomic(folder / WEIGHTS) as beside:
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, beside)


def read_model(folder: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a model folder: it has no {name}; train the model first")
    try:
        return load_file(folder / WEIGHTS), read_json(folder / CONFIG)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged ({error}); delete it and train again") from error


def fingerprint(model: torch.nn.Module) -> str:
    """What tells these weights from any others; a crisp decoder, which changes no token, is left out."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        if name.startswith("crisp."):
            continue
        total.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def kept_arrays(folder: Path | None, name: str, key: dict[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """The arrays of this key from `folder`/name.npz, or made and kept there."""
    path, wanted = folder and folder / f"{name}.npz", json.dumps(key, sort_keys=True)
    if path and path.is_file():
        with np.load(path) as kept:
            if str(kept["key"]) == wanted:
                return {name: kept[name] for name in kept.files if name != "key"}
    found = make()
    if path:
        try:
            with atomic(path) as beside, beside.open("wb") as file:
                np.savez(file, key=wanted, **found)
        except OSError:
            pass  # someone else's folder, or a full disk: found anew each time
    return found


def save_state(folder: str | Path, state: dict[str, Any]) -> None:
    """Everything that an exact resume needs: tensors and plain values only."""
    with atomic(Path(folder) / STATE) as beside:
        torch.save(state, beside)


def read_state(folder: str | Path) -> dict[str, Any] | None:
    path = Path(folder) / STATE
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None
