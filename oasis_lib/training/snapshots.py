"""A few pictures or maps of the weights as they were early in training, always of the same subjects or the same seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from oasis_lib.storage import atomic, main_process

SNAPSHOTS, SHOWN = "snapshots.npz", 4  # in the model's folder; how many a moment
COSTLY = 2.0  # seconds: what takes longer is drawn whenever the steps are eightfold, and all else when they have doubled


def keep_snapshot(path: Path, step: int, name: str, draw: Callable[[], np.ndarray], **also: np.ndarray) -> None:
    """Add what `draw` gives to the array `name` of the file, if there are enough steps since the last."""
    before = dict(np.load(path)) if step and path.is_file() else {}
    steps = before.get("steps", np.zeros(0, np.int64))
    known = steps < step  # what an interrupted run drew beyond its last saved state is drawn again
    wait = 8 if float(before.get("seconds", 0.0)) > COSTLY else 2
    if not main_process() or (known.any() and step < wait * steps[known][-1]):
        return
    begun = time.perf_counter()
    drawn = draw()[None]
    also |= {"seconds": np.array(time.perf_counter() - begun), "steps": np.append(steps[known], step)}
    with atomic(path) as beside, beside.open("wb") as file:
        np.savez(file, **also | {name: np.concatenate([before[name][known], drawn]) if known.any() else drawn})
