"""Train once: what is finished is not trained again, what was stopped goes on, what was something else starts anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from oasis_lib.checkpoint import CONFIG, STATE, WEIGHTS
from oasis_lib.config import TrainingConfig, as_dict
from oasis_lib.paths import read_json, write_json
from oasis_lib.training.data import Batches
from oasis_lib.training.loop import Task, fit
from oasis_lib.training.progress import watcher

REQUEST = "request.json"  # what the folder's training was asked for; written before the first step


def fit_once(
    make_task: Callable[[torch.device], Task],
    make_batches: Callable[..., Batches],
    training: TrainingConfig,
    out: str | Path,
    saved: dict[str, Any],
    progress: bool = True,
) -> pd.DataFrame:
    out = Path(out)
    saved = saved | {"training": as_dict(training)}
    request = {"request": hashlib.sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest(), "finished": False}
    before = read_json(out / REQUEST) if (out / REQUEST).is_file() else {}
    if before.get("request") != request["request"]:
        for name in (STATE, WEIGHTS, CONFIG, "history.csv"):
            (out / name).unlink(missing_ok=True)
        write_json(out / REQUEST, request)
    elif before["finished"] and (out / WEIGHTS).is_file():
        return pd.read_csv(out / "history.csv")
    with watcher(out.name, progress) as report:
        history = fit(make_task, make_batches, training, out, saved, report)
    write_json(out / REQUEST, request | {"finished": True})
    (out / STATE).unlink(missing_ok=True)
    return history
