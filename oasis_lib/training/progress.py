"""What subjects see while something trains: a live plot in JupyterLab, quiet lines in logs and batches, a bar in a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pandas as pd

from oasis_lib.storage import main_process

Report = Callable[[pd.DataFrame, float], None]


@contextmanager
def watcher(name: str, wanted: bool = True) -> Iterator[Report]:
    if not wanted or not main_process():
        yield lambda history, fraction: None
    elif in_notebook() and not os.environ.get("OASIS_BATCH"):
        yield _live_plot(name)
    elif sys.stderr.isatty():
        with _bar(name) as report:
            yield report
    else:
        yield _lines(name)


def in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


def summary(history: pd.DataFrame) -> str:
    if history.empty:
        return ""
    last = history.iloc[-1]
    shown = {key.removeprefix("validate_"): last[key] for key in history if key.startswith("validate_")}
    picked = list(shown.items())[:4]
    return " ".join(f"{key} {value:.4g}" for key, value in picked) + f", {last['images_per_second']:.0f} images/s"


def _lines(name: str, least: float = 15.0) -> Report:
    """A line when something new was measured, but not more often than every quarter of a minute."""
    started, said, rows = time.monotonic(), 0.0, 0

    def report(history: pd.DataFrame, fraction: float) -> None:
        nonlocal said, rows
        now = time.monotonic()
        if len(history) > rows and (now - said > least or fraction >= 1):
            said, rows = now, len(history)
            print(f"{name}: {fraction:4.0%} in {(now - started) / 60:.1f} min, {summary(history)}", flush=True)

    return report


@contextmanager
def _bar(name: str) -> Iterator[Report]:
    from tqdm import tqdm

    with tqdm(total=100, desc=name, unit="%", bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}") as bar:

        def report(history: pd.DataFrame, fraction: float) -> None:
            bar.set_postfix_str(summary(history), refresh=False)
            bar.update(100 * fraction - bar.n)

        yield report


def _live_plot(name: str, least: float = 3.0) -> Report:
    from IPython.display import display

    from oasis_lib.figures.training import curves

    handle = display({"text/plain": f"{name}: starting"}, raw=True, display_id=True)
    said, rows = 0.0, 0

    def report(history: pd.DataFrame, fraction: float) -> None:
        nonlocal said, rows
        now = time.monotonic()
        if len(history) > rows and (now - said > least or fraction >= 1):
            said, rows = now, len(history)
            handle.update(curves(history, title=f"{name}: {fraction:.0%}"))

    return report
