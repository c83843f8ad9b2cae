"""Pictures of what priors make: rows of heads, code maps beside images, settings, ratings, whole heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter

from oasis_lib.figures.style import BAD, MODEL, REAL, SEQUENTIAL, new_figure, show_image


def nothing(why: str) -> Figure:
    """In the place of a figure that a cohort gives no ground for."""
    figure, ((axis,),) = new_figure(width=8, height=1.2)
    axis.set_axis_off()
    axis.text(0.5, 0.5, why, ha="center", va="center")
    return figure


def rows_of(rows: Mapping[str, np.ndarray], titles: Sequence[str] = (), title: str = "", high: float = 255) -> Figure:
    """A row of slices for each name: (N, H, W) uint8, rows of unequal length allowed."""
    columns = max(len(images) for images in rows.values())
    figure, axes = new_figure(len(rows), columns, width=1.35 * columns + 1.2, height=1.45 * len(rows) + 0.6, title=title)
    for line, (name, images) in zip(axes, rows.items()):
        for axis in line[len(images) :]:
            axis.set_axis_off()
        for axis, image in zip(line, images):
            show_image(axis, image, high=high)
        line[0].set_ylabel(name.replace(" ", "\n", 1), rotation=0, ha="right", va="center", fontsize=8)
    for axis, text in zip(axes[0], titles):
        axis.set_title(text, fontsize=8)
    return figure


def codes_and_images(sets: Mapping[str, tuple[np.ndarray, np.ndarray]], entries: int) -> Figure:
    """The four panels of earlier work, per set: a code map, and what it decodes to."""
    figure, axes = new_figure(2, 2 * len(sets), width=4.2 * len(sets), height=4.6, title="Code maps, and the slices they decode to")
    for column, (name, (codes, images)) in enumerate(sets.items()):
        for row in range(2):
            left, right = axes[row, 2 * column], axes[row, 2 * column + 1]
            drawn = show_image(left, codes[row], f"{name}: codes" if not row else "", low=0, high=entries - 1, cmap=SEQUENTIAL)
            show_image(right, images[row], "decoded" if not row else "", high=255)
    figure.colorbar(drawn, ax=list(axes.ravel()), label="code number (a name, not a size)", shrink=0.6)
    return figure


def settings(table: pd.DataFrame, examples: Mapping[str, np.ndarray]) -> Figure:
    """Left, the score of every setting on validate people; right, one sample of each at the same level and seed."""
    figure, axes = new_figure(
        1, len(examples) + 1, width=3.6 + 1.7 * len(examples), height=2.9, width_ratios=[2.2] + [1] * len(examples)
    )
    for column, marker, colour in (("frechet_trained", "o", REAL), ("frechet_fixed", "s", MODEL)):
        axes[0, 0].plot(table.index, table[column], marker, color=colour, label=column.split("_")[1] + " features")
    axes[0, 0].set(ylabel="Fréchet to validate people", yscale="log", title="Which settings come nearest?")
    axes[0, 0].set_xticks(range(len(table)), table.index, rotation=40, ha="right")
    axes[0, 0].yaxis.set_major_formatter(LogFormatter())
    axes[0, 0].yaxis.set_minor_formatter(LogFormatter())
    axes[0, 0].legend(fontsize=7)
    for axis, (name, image) in zip(axes[0, 1:], examples.items()):
        show_image(axis, image, name, high=255)
    return figure


def ratings(table: pd.DataFrame, shown: Mapping[float, np.ndarray], columns: int = 4) -> Figure:
    """Samples by clinical rating, and the ventricle area that people and samples have at each."""
    count = len(shown)
    figure, axes = new_figure(
        count, columns + 1, width=1.7 * columns + 4, height=max(3.0, 1.6 * count), width_ratios=[1] * columns + [2.4]
    )
    for line, (rating, images) in zip(axes, shown.items()):
        for axis, image in zip(line, images):
            show_image(axis, image, high=255)
        line[0].set_ylabel(f"rating {rating:g}", rotation=0, ha="right", va="center")
        line[-1].set_axis_off()
    plot = figure.add_subplot(axes[0, 0].get_gridspec()[:, -1])
    plot.plot(table["rating"], table["people"], "o-", color=REAL, label="training people")
    plot.plot(table["rating"], table["drawn"], "s-", color=MODEL, label="samples")
    plot.set(xlabel="clinical dementia rating", ylabel="ventricles, percent of the frame", title="Do they grow with the rating?")
    plot.legend(fontsize=7)
    return figure


def filled(original: np.ndarray, mask: np.ndarray, fills: np.ndarray) -> Figure:
    """A slice with its box, and the same slice with the box filled in anew."""
    figure, (axes,) = new_figure(1, len(fills) + 1, width=1.8 * (len(fills) + 1), height=2.4, title="One box, filled in anew")
    factor = original.shape[0] / mask.shape[0]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    corner = (columns[0] * factor - 0.5, rows[0] * factor - 0.5)
    for number, (axis, image) in enumerate(zip(axes, [original, *fills])):
        show_image(axis, image, f"filling {number}" if number else "as it was", high=255)
        box = axis.add_patch(Rectangle(corner, len(columns) * factor, len(rows) * factor))
        box.set(fill=False, edgecolor=MODEL, linewidth=1.2)
    return figure


def heads(sets: Mapping[str, np.ndarray], alike: Mapping[str, np.ndarray], every: int = 4) -> Figure:
    """Whole heads, every few levels, and how alike each level is to the next: (levels, H, W) and (people, levels - 1) a name."""
    if not sets:
        return nothing("Nobody in this cohort has every level of a head.")
    first = next(iter(sets.values()))
    shown = range(0, len(first), every)
    figure, axes = new_figure(len(sets) + 1, len(shown), width=1.3 * len(shown) + 1.2, height=1.4 * len(sets) + 2.8,
                              height_ratios=[1] * len(sets) + [1.8])  # fmt: skip
    for line, (name, head) in zip(axes, sets.items()):
        for axis, level in zip(line, shown):
            show_image(axis, head[level], f"level {level + 1}" if line is axes[0] else "", high=255)
        line[0].set_ylabel(name.replace(" ", "\n"), rotation=0, ha="right", va="center", fontsize=8)
    for axis in axes[-1]:
        axis.set_axis_off()
    plot = figure.add_subplot(axes[0, 0].get_gridspec()[-1, :])
    for (name, values), colour in zip(alike.items(), (REAL, MODEL, BAD)):
        plot.plot(np.arange(1, values.shape[1] + 1), values.mean(0), color=colour, label=name)
        plot.fill_between(np.arange(1, values.shape[1] + 1), values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
    plot.set(xlabel="level", ylabel="MS-SSIM with the next level", title="Do neighbours belong together?")
    plot.legend(fontsize=7, ncols=3)
    return figure
