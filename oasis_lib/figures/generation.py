"""Figures of what priors generate."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from oasis_lib.figures.grid import frame, image_grid
from oasis_lib.figures.style import new_figure


def nothing(why: str) -> Figure:
    """In the place of a figure that a cohort gives no ground for."""
    figure, ((axis,),) = new_figure(height=1.2)
    axis.set_axis_off()
    axis.text(0.5, 0.5, why, ha="center", va="center")
    return figure


def filled(original: np.ndarray, mask: np.ndarray, fills: np.ndarray) -> Figure:
    """A slice with its box, and the same slice with the box filled in anew; `mask` (h, w) over tokens."""
    names = ["input", *(f"sample {number}" for number in range(len(fills)))]
    figure = image_grid({"": [original, *fills]}, names, "One box of tokens, sampled anew")
    factor, (rows, columns) = original.shape[0] // mask.shape[0], np.nonzero(mask)
    for axis in figure.axes:
        frame(axis, rows.min() * factor, columns.min() * factor, np.ptp(rows + 1) * factor, np.ptp(columns + 1) * factor)
    return figure
