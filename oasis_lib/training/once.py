"""Train once: what is finished is not trained again, what was stopped goes on, and other settings are refused.

The rule is that of `manifest.py`: settings and inputs decide, an edit of the library is reported, `--overwrite` starts anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from oasis_lib.config import MODEL_CONFIGS, TrainingConfig, as_dict, from_dict
from oasis_lib.paths import library_digest, overwriting
from oasis_lib.storage import CONFIG, STATE, WEIGHTS, read_json, write_json
from oasis_lib.training.data import Batches
from oasis_lib.training.loop import Task, fit
from oasis_lib.training.progress import watcher

REQUEST = "request.json"  # the settings of the folder's training; written before the first step


def fit_once(
    make_task: Callable[[torch.device], Task],
    make_batches: Callable[..., Batches],
    training: TrainingConfig,
    out: str | Path,
    saved: dict[str, Any],
    progress: bool = True,
) -> pd.DataFrame:
    out, asked = Path(out), complete(saved | {"training": as_dict(training)})
    before = read_json(out / REQUEST) if (out / REQUEST).is_file() else {}
    there = (out / WEIGHTS).is_file() or (out / STATE).is_file()
    changed = differences(made_with(out, before), asked) if there else []
    if changed and not overwriting():
        found = f"{out} holds a model that was trained otherwise: {'; '.join(changed)}"
        raise ValueError(f"{found}. Choose another folder, or replace it by --overwrite")
    stale = there and before.get("library") != library_digest()
    if changed or not there or (stale and overwriting()):
        for name in (STATE, WEIGHTS, CONFIG, "history.csv"):
            (out / name).unlink(missing_ok=True)
    elif before.get("finished", not (out / STATE).is_file()):
        if stale and progress:
            print(f"{out}: made by another version of the library; --overwrite trains it anew")
        return pd.read_csv(out / "history.csv")
    request = {"settings": asked, "library": library_digest(), "finished": False}
    write_json(out / REQUEST, request)
    with watcher(out.name, progress) as report:
        history = fit(make_task, make_batches, training, out, saved | {"training": as_dict(training)}, report)
    write_json(out / REQUEST, request | {"finished": True})
    (out / STATE).unlink(missing_ok=True)
    return history


def made_with(out: Path, before: dict[str, Any]) -> dict[str, Any]:
    """The settings of the model in a folder, as far as they are written down."""
    known = before.get("settings") or (read_json(out / CONFIG) if (out / CONFIG).is_file() else {})
    try:
        return complete(known)
    except (KeyError, ValueError):  # of another version of the library
        return known


def complete(saved: dict[str, Any]) -> dict[str, Any]:
    """All settings as JSON holds them, those that were not yet known at their defaults."""
    model = from_dict(MODEL_CONFIGS.get(saved["kind"], MODEL_CONFIGS["vqvae"]), saved["model"])
    parts = {"model": as_dict(model), "training": as_dict(from_dict(TrainingConfig, saved["training"]))}
    return json.loads(json.dumps(saved | parts))


def differences(made: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """ "model.hidden 64, now 32": one entry a setting."""
    found = []
    for name, wanted in asked.items():
        old = made.get(name)
        if isinstance(wanted, dict) and isinstance(old, dict):
            found += [f"{name}.{one}" for one in differences(old, wanted)]
        elif old != wanted:
            found.append(f"{name} {'unknown' if old is None else old}, now {wanted}")
    return found
