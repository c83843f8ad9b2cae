"""A training's history as curves, for whatever columns it has."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from oasis_lib.figures.style import COLOURS, new_figure

LOSSES = "^train_(l1|l2|dssim|commitment|loss|bits|generator|discriminator)$"
MEASURES = "^validate_(ssim|ssim_brain|bits|regions)$"


def curves(history: pd.DataFrame, title: str = "", beside: pd.DataFrame | None = None) -> Figure:
    """Losses as measured and as a running mean, on a log axis; validation measures; codebook use where it is known.

    `beside` is the history of a shorter training of the same model.
    """
    use = history[[name for name in ("codes_used", "perplexity") if name in history]]
    figure, (axes,) = new_figure(1, 3 if use.size else 2, height=3.0, title=title)
    losses = history.filter(regex=LOSSES)
    losses = losses.where(losses > 0)  # a log axis has no place for zero
    _lines(axes[0], history, losses, alpha=0.3, lw=1)
    _lines(axes[0], history, losses.rolling(1 + len(history) // 10, center=True, min_periods=1).mean(), label=True)
    axes[0].set(yscale="log", title="losses (faint: as measured)")
    measures = history.filter(regex=MEASURES)
    _lines(axes[1], history, measures if measures.size else history[["score"]], label=True)
    if "validate_ssim_min" in history:
        low, high = history["validate_ssim_min"], history["validate_ssim_max"]
        axes[1].fill_between(history["step"], low, high, alpha=0.2, lw=0)
        axes[1].set_ylim(max(0.0, measures.min().min() - 0.1), 1)
    if beside is not None:
        axes[1].plot(beside["step"], beside["score"], "k.-", label="this run, score")
        axes[1].set_xscale("log")
        axes[1].legend(fontsize=8)
    axes[1].set_title("validation (band: all slices)" if "validate_ssim_min" in history else "validation")
    if use.size:
        _lines(axes[2], history, use, label=True)
        axes[2].set(title="codebook, validation", ylim=(0, None))
    for axis in axes:
        axis.set_xlabel("training step")
    return figure


def _lines(axis, history: pd.DataFrame, columns: pd.DataFrame, label: bool = False, **look) -> None:
    for colour, name in zip(COLOURS, columns):
        shown = name.split("_", 1)[-1].replace("_", " ") if label else None
        axis.plot(history["step"], columns[name], color=colour, label=shown, **look)
    if label and len(columns.columns):
        axis.legend(fontsize=8)
