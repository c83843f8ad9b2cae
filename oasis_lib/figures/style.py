"""One look for every figure: colour-blind safe, readable in print, at least 1,000 pixels wide."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

# Okabe and Ito's palette: told apart under every common colour blindness.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000"]
REAL, MODEL, BAD = COLOURS[0], COLOURS[1], "#888888"  # the same meaning in every figure
DIVERGING, SEQUENTIAL = "RdBu_r", "viridis"
DPI, WIDTH = 150, 8.0  # inches across a printed page: text of 8 points stays legible

STYLE = {
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.dpi": DPI,
    "figure.constrained_layout.use": True,
    "figure.titlesize": 12,
    "font.size": 9,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "savefig.dpi": DPI,
}


def new_figure(rows: int = 1, columns: int = 1, *, width: float = WIDTH, height: float = 4, title: str = "", **options):
    """A figure and its axes (always an array of `rows` x `columns`), in the house style."""
    mpl.rcParams.update(STYLE)
    figure = plt.figure(figsize=(max(width, 7.0), height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    if title:
        figure.suptitle(title)
    plt.close(figure)  # the notebook shows it because the cell returns it, once
    return figure, axes


def nothing(why: str) -> Figure:
    """In the place of a figure that a cohort gives no ground for."""
    figure, ((axis,),) = new_figure(height=1.2)
    axis.set_axis_off()
    axis.text(0.5, 0.5, why, ha="center", va="center")
    return figure


def show_image(axis: Axes, image, *, low: float = 0.0, high: float = 1.0, **options):
    """A slice, grey, without ticks. Anterior is up."""
    drawn = axis.imshow(image, vmin=low, vmax=high, **options)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    return drawn


def plain_log(axis: Axes) -> None:
    """Round numbers on a logarithmic x-axis, 1 and 3 of each decade, in place of powers."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.xaxis.set_major_formatter("{x:,g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def synthetic(figure: Figure, is_synthetic: bool) -> Figure:
    """A line under the figure that marks synthetic subjects as such."""
    return footnote(figure, "SYNTHETIC", 0.995, ha="right", weight="bold") if is_synthetic else figure


def footnote(figure: Figure, text: str, x: float = 0.005, **options) -> Figure:
    """A line under the figure, never across an image."""
    strip = 0.16 / figure.get_figheight()
    figure.get_layout_engine().set(rect=(0, strip, 1, 1 - strip))
    for legend in figure.legends:
        legend.borderaxespad = 0.5 + 72 * 0.16 / legend.prop.get_size()  # above that line, too
    figure.text(x, 0.005, text, va="bottom", color="#D55E00", fontsize=8, **options)
    return figure
