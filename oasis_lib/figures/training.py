"""A training's history as curves: losses, validation, use of the codebook. Works for whatever columns a history has."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oasis_lib.figures.style import BAD, COLOURS, new_figure

LOSSES = ("l1", "l2", "structure", "commitment", "loss", "bits")  # of these, what is there is drawn together
BAND = ("validate_ssim_min", "validate_ssim", "validate_ssim_max")


def curves(history: pd.DataFrame, title: str = "") -> Figure:
    """Losses raw and smoothed on a log axis; validation; codes used and perplexity where the history has them."""
    has_codes = {"codes_used", "perplexity"} <= set(history.columns)
    figure, axes = new_figure(1, 3 if has_codes else 2, width=9.0, height=3.0, title=title)
    _losses(axes[0, 0], history)
    if set(BAND) <= set(history.columns):
        _ssim(axes[0, 1], history)
    else:
        _validation(axes[0, 1], history)
    if has_codes:
        _codes(axes[0, 2], history)
    for axis in axes.flat:
        axis.set_xlabel("step")
    return figure


def smooth(values: np.ndarray, share: float = 0.1) -> np.ndarray:
    """A running mean over a tenth of the run, shorter towards the ends: it starts and ends where the values do."""
    values = np.asarray(values, float)
    reach = int(len(values) * share / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    half = np.minimum(reach, np.minimum(np.arange(len(values)), np.arange(len(values))[::-1]))
    low, high = np.arange(len(values)) - half, np.arange(len(values)) + half + 1
    return (sums[high] - sums[low]) / (high - low)


def _losses(axis: Axes, history: pd.DataFrame) -> None:
    there = [c for c in history if c.startswith("train_")]
    chosen = [f"train_{name}" for name in LOSSES if f"train_{name}" in there] or [c for c in there if c != "train_gradient"]
    for colour, column in zip(COLOURS, chosen):
        values = history[column].where(history[column] > 0)  # a log axis has no place for zero
        if values.notna().any():
            axis.plot(history["step"], values, color=colour, alpha=0.3, linewidth=1)
            shown = values.notna()
            name = column.removeprefix("train_")
            axis.plot(history["step"][shown], smooth(values[shown].to_numpy()), color=colour, linewidth=1.6, label=name)
    axis.set(yscale="log", title="training losses (faint: as measured)")
    if chosen:
        axis.legend(fontsize=8)


def _ssim(axis: Axes, history: pd.DataFrame) -> None:
    low, mean, high = (history[column] for column in BAND)
    axis.fill_between(history["step"], low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="lowest to highest slice")
    axis.plot(history["step"], mean, color=COLOURS[0], label="full frame")
    if "validate_ssim_brain" in history:
        axis.plot(history["step"], history["validate_ssim_brain"], color=COLOURS[3], label="in the brain")
    axis.set(title="SSIM of validation people", ylim=(min(0.0, float(low.min())), 1))
    axis.legend(fontsize=8, loc="lower right")


def _validation(axis: Axes, history: pd.DataFrame) -> None:
    """The first things measured, each on its own scale where they differ by more than tenfold."""
    names = [c for c in history if c.startswith("validate_") and history[c].notna().any()][:2]
    names = names or [c for c in history if c == "score"]
    for place, (colour, name) in enumerate(zip(COLOURS, names)):
        drawn = axis if place == 0 else axis.twinx()
        drawn.plot(history["step"], history[name], color=colour, marker="." if len(history) < 20 else "")
        drawn.set_ylabel(name.removeprefix("validate_").replace("_", " "), color=colour)
        drawn.spines["right"].set_visible(place > 0)
    axis.set_title("validation people")


def _codes(axis: Axes, history: pd.DataFrame) -> None:
    axis.plot(history["step"], history["codes_used"], color=COLOURS[2], label="entries used")
    axis.plot(history["step"], history["perplexity"], color=COLOURS[4], label="perplexity")
    axis.axhline(history["codes_used"].max(), color=BAD, linestyle=":", linewidth=1)
    axis.set(title="codebook, on validation people", ylim=(0, None))
    axis.legend(fontsize=8, loc="center right")
