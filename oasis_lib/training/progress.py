"""What is seen of a training: a live plot in JupyterLab, a bar in a terminal, lines in logs; snapshots in a file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from oasis_lib.storage import atomic, main_process

Report = Callable[[pd.DataFrame, float], None]  # is told of the history, and how much of the run is done
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
SNAPSHOTS, SHOWN = "snapshots.npz", 4  # in the model's folder; how many a moment
COSTLY = 2.0  # seconds: what takes longer is drawn when the steps are eightfold, all else when they have doubled


@contextmanager
def watcher(name: str, wanted: bool = True) -> Iterator[Report]:
    shell = sys.modules.get("IPython")
    notebook = shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
    if not wanted or not main_process():
        yield lambda history, fraction: None
    elif notebook and not os.environ.get("OASIS_BATCH"):
        from IPython.display import display

        from oasis_lib.figures.training import curves

        plot = display({"text/plain": f"{name}: starting"}, raw=True, display_id=True)
        yield _when_measured(3.0, lambda history, done: plot.update(curves(history, title=f"{name}: {done}")))
    elif not sys.stderr.isatty():
        yield _when_measured(15.0, lambda history, done: print(f"{name}: {done}, {summary(history)}", flush=True))
    else:
        with tqdm(total=100, desc=name, unit="%", bar_format=BAR) as bar:

            def report(history: pd.DataFrame, fraction: float) -> None:
                bar.set_postfix_str(summary(history), refresh=False)
                bar.update(100 * fraction - bar.n)

            yield report


def summary(history: pd.DataFrame) -> str:
    if history.empty:
        return ""
    last = history.iloc[-1]
    shown = {key.removeprefix("validate_"): last[key] for key in history if key.startswith("validate_")}
    words = " ".join(f"{key} {value:.4g}" for key, value in list(shown.items())[:4])
    return f"{words}, {last['images_per_second']:.0f} images/s"


def _when_measured(least: float, show: Callable[[pd.DataFrame, str], None]) -> Report:
    """Show what was measured anew, at most every `least` seconds, and at the end."""
    started, said, rows = time.monotonic(), 0.0, 0

    def report(history: pd.DataFrame, fraction: float) -> None:
        nonlocal said, rows
        now = time.monotonic()
        if len(history) > rows and (now - said > least or fraction >= 1):
            said, rows = now, len(history)
            show(history, f"{fraction:4.0%} in {(now - started) / 60:.1f} min")

    return report


def keep_snapshot(path: Path, step: int, name: str, draw: Callable[[], np.ndarray], **also: np.ndarray) -> None:
    """Add pictures or maps of the weights as they are to the array `name`, if there are enough steps since the last."""
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
