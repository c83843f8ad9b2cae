"""Train once: what is finished is not trained again, what was stopped goes on, and other settings are refused.

As in `study.py`, settings and inputs decide, an edit of the library is reported, `--overwrite` starts anew.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from oasis_lib.cohort import Cohort
from oasis_lib.config import MODEL_CONFIGS, TrainingConfig, as_dict, from_dict
from oasis_lib.paths import library_digest, overwriting
from oasis_lib.storage import (
    CONFIG,
    STATE,
    WEIGHTS,
    content_hash,
    disk_errors,
    only_one,
    read_config,
    read_json,
    read_weights,
    write_json,
)
from oasis_lib.training.data import Batches
from oasis_lib.training.loop import HISTORY, WARNINGS, MakeTask, fit, processes
from oasis_lib.training.progress import SNAPSHOTS, watcher

LOCK, REQUEST = ".lock", "request.json"  # who trains here; the settings, written before the first step


def resume_or_fit(
    make_task: MakeTask,
    cohort: Cohort,
    training: TrainingConfig,
    out: Path,
    saved: dict[str, Any],
    progress: bool = True,
    crop: bool = False,
) -> pd.DataFrame:
    """`fit` to training slices, unless it is finished. `saved` is what config.json says of the model and its origin."""
    saved = saved | {"cohort": cohort.hash, "synthetic": cohort.synthetic, "training": as_dict(training)}
    batches = partial(Batches, cohort, training, crop=crop)
    asked, main = complete(saved), processes().is_main_process
    with disk_errors(out), only_one(out / LOCK, "training here") if main else nullcontext():
        finished = [main and begin(out, asked, progress)]
        if broadcast_object_list(finished)[0]:
            return read_history(out)
        try:
            with watcher(out.name, progress) as report:
                history = fit(make_task, batches, training, out, saved, report)
        except torch.OutOfMemoryError as error:
            found = f"{out}: the device's memory is full; lower batch (now {training.batch}) or the network's width"
            raise ValueError(f"{found}. It goes on from its last saved state ({str(error).splitlines()[0]})") from error
        if main:
            made = {"settings": asked, "library": library_digest(), "finished": True}
            write_json(out / REQUEST, made | {"history": content_hash(out / HISTORY)})
            (out / STATE).unlink(missing_ok=True)
    return history


def begin(out: Path, asked: dict[str, Any], progress: bool) -> bool:
    """Whether the folder's training is finished. If not, other settings are refused, and all is ready for a step."""
    for left in out.glob(".*.part"):  # of a killed process
        left.unlink()
    before = read_json(out / REQUEST, {})
    there = (out / WEIGHTS).is_file() or (out / STATE).is_file()
    changed = differences(complete(before.get("settings") or read_json(out / CONFIG, {})), asked) if there else []
    if changed and not overwriting():
        found = f"{out} holds a model that was trained otherwise: {'; '.join(changed)}"
        raise ValueError(f"{found}. Choose another folder, or replace it by --overwrite")
    stale = there and before.get("library") != library_digest()
    if changed or not there or (stale and overwriting()):
        for name in (STATE, WEIGHTS, CONFIG, HISTORY):
            (out / name).unlink(missing_ok=True)
    elif before.get("finished", not (out / STATE).is_file()):
        if stale and progress:
            print(f"{out}: made by another version of the library; --overwrite trains it anew")
        return True
    if not (out / STATE).is_file():  # from the start
        for name in (SNAPSHOTS, WARNINGS):
            (out / name).unlink(missing_ok=True)
    write_json(out / REQUEST, {"settings": asked, "library": library_digest(), "finished": False})
    return False


def weights_to_begin_with(folder: Path, out: Path, wanted: dict[str, Any], fresh: nn.Module) -> dict[str, Tensor]:
    """An earlier model's, if its config.json says what is `wanted` and its network is made as the `fresh` one."""
    if folder.absolute() == out.absolute():
        raise ValueError(f"{out} can't be begun with and written to; give another folder")
    config = read_config(folder)
    for key, value in wanted.items():
        if config.get(key) != value:
            raise ValueError(f"{folder} can't be begun with: its {key} is {config.get(key)}, not {value}")
    try:
        return read_weights(folder, config, fresh.state_dict())
    except ValueError as error:
        raise ValueError(f"{folder} can't be begun with: it is damaged, or made otherwise ({error})") from error


def read_history(out: Path) -> pd.DataFrame:
    """Of a finished training; its hash, where there is one, tells an altered file."""
    path = out / HISTORY
    if not path.is_file() or read_json(out / REQUEST, {}).get("history") not in (None, content_hash(path)):
        raise ValueError(f"{path} is missing or was altered; restore it, or train again with --overwrite")
    return pd.read_csv(path)


def complete(saved: dict[str, Any]) -> dict[str, Any]:
    """All settings as JSON holds them; those that an earlier version did not know are at their defaults."""
    kinds = {"model": MODEL_CONFIGS.get(saved.get("kind"), MODEL_CONFIGS["vqvae"]), "training": TrainingConfig}
    try:
        parts = {name: as_dict(from_dict(kind, saved[name])) for name, kind in kinds.items()}
    except (KeyError, ValueError, TypeError):  # of another version
        parts = {}
    return json.loads(json.dumps(saved | parts))


def differences(made: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """ "model.hidden 64, now 32": one entry a setting."""
    old, new = ({key: column[0] for key, column in pd.json_normalize(one).items()} for one in (made, asked))
    return [f"{key} {old.get(key, 'unknown')}, now {value}" for key, value in new.items() if old.get(key) != value]
