"""The VQ-VAE drawn by code, with a real slice going through it and the way back of each gradient."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from oasis_lib.figures.style import BAD, COLOURS, SEQUENTIAL, new_figure

Span = tuple[float, float, float, float]  # left, right, bottom, top
RECONSTRUCTION, CODEBOOK, COMMITMENT = COLOURS[0], COLOURS[3], COLOURS[2]


def model(image: np.ndarray, shades: np.ndarray, decoded: np.ndarray, codebook: np.ndarray) -> Figure:
    """`image` and `decoded` (H, W); `shades` (h, w) colours the code map; `codebook` (K, D)."""
    pixels, grid = ("{} x {}".format(*array.shape) for array in (image, shades))
    figure, axes = new_figure(1, 1, width=10.0, height=4.1)
    axis = axes[0, 0]
    axis.set(xlim=(0, 20), ylim=(0, 8.1), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)
    _picture(axis, image, (0.2, 3.0, 3.6, 6.4), f"slice\n{pixels} pixels")
    _box(axis, (3.7, 5.6, 4.0, 6.0), "encoder")
    _picture(axis, codebook[:24].T, (6.2, 8.2, 0.9, 2.7), f"codebook\n{codebook.shape[0]} x {codebook.shape[1]}", DIVIDED)
    _box(axis, (6.4, 8.4, 4.0, 6.0), f"{grid}\nnearest\nentries")
    _picture(axis, shades, (9.2, 11.6, 3.8, 6.2), f"codes\n{grid} numbers", {"cmap": SEQUENTIAL, "vmin": 0, "vmax": 1})
    _box(axis, (12.4, 14.0, 4.0, 6.0), "look up\nentries")
    _box(axis, (14.6, 16.5, 4.0, 6.0), "decoder")
    _picture(axis, decoded, (17.1, 19.9, 3.6, 6.4), f"decoded\n{pixels} pixels")
    for left, right in ((3.0, 3.7), (5.6, 6.4), (8.4, 9.2), (11.6, 12.4), (14.0, 14.6), (16.5, 17.1)):
        _arrow(axis, (left, 5), (right, 5), "black")
    _arrow(axis, (7.3, 2.75), (7.3, 4.0), "black")
    _arrow(axis, (8.25, 1.8), (13.2, 4.0), "black", bend=0.25)
    _backward(axis)
    return figure


DIVIDED = {"cmap": "RdBu_r"}


def _backward(axis: Axes) -> None:
    """The ways that gradients take: over the quantizer, never through it."""
    _arrow(axis, (18.5, 6.45), (15.7, 6.0), RECONSTRUCTION, bend=0.35, dashed=True)
    _arrow(axis, (15.0, 6.0), (4.7, 6.0), RECONSTRUCTION, bend=0.22, dashed=True)
    axis.text(9.9, 7.75, "reconstruction: to the decoder, then copied straight to the encoder", color=RECONSTRUCTION, ha="center")
    _arrow(axis, (6.3, 4.05), (5.0, 3.95), COMMITMENT, bend=-0.5, dashed=True)
    axis.text(5.9, 2.9, "commitment:\nto the encoder", color=COMMITMENT, ha="right", va="center")
    _arrow(axis, (7.9, 3.95), (7.9, 2.75), CODEBOOK, bend=-0.3, dashed=True)
    axis.text(8.3, 2.5, "codebook term:\nto the entries", color=CODEBOOK, ha="left", va="center")
    axis.text(14.2, 0.3, "solid: the slice's way · dashed: the gradients' way", color=BAD, ha="center")


def _picture(axis: Axes, image: np.ndarray, span: Span, name: str, look: dict | None = None) -> None:
    look = look or {"cmap": "gray", "vmin": 0, "vmax": 1}
    axis.imshow(image, extent=span, aspect="auto", **look)
    axis.text((span[0] + span[1]) / 2, span[2] - 0.15, name, ha="center", va="top")


def _box(axis: Axes, span: Span, name: str) -> None:
    left, right, bottom, top = span
    box = FancyBboxPatch((left, bottom), right - left, top - bottom, boxstyle="round,pad=0,rounding_size=0.2")
    box.set(facecolor="#F2F2F2", edgecolor="black")
    axis.add_patch(box)
    axis.text((left + right) / 2, (bottom + top) / 2, name, ha="center", va="center")


def _arrow(axis: Axes, start: tuple, end: tuple, colour: str, bend: float = 0.0, dashed: bool = False) -> None:
    style = {"connectionstyle": f"arc3,rad={bend}", "linestyle": "--" if dashed else "-", "color": colour, "linewidth": 1.6}
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, shrinkA=1, shrinkB=1, **style))
