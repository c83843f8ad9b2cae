"""A codebook on paper: its entries, where they fire, how they follow each other, and what tampering does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from oasis_lib.figures.style import BAD, COLOURS, DIVERGING, MODEL, REAL, SEQUENTIAL, new_figure, show_image


def slices(
    images: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    shades: np.ndarray,
    decoded: np.ndarray,
    names: Sequence[str],
    mm: float | None = None,
) -> Figure:
    """One row a person: the slice, a latent channel before and after quantising, what rounding moved, codes, the decoded slice."""
    figure, axes = new_figure(len(images), 6, width=12, height=2.1 * len(images) + 0.6, title="Slices of the embedding")
    reach = float(np.abs(np.concatenate([before, after])).max()) or 1.0
    for row, image, first, second, shade, back, name in zip(axes, images, before, after, shades, decoded, names):
        show_image(row[0], image)
        scale_bar(row[0], mm)
        row[0].set_ylabel(name)
        show_image(row[1], first, low=-reach, high=reach, cmap=DIVERGING)
        latent = show_image(row[2], second, low=-reach, high=reach, cmap=DIVERGING)
        show_image(row[3], second - first, low=-reach, high=reach, cmap=DIVERGING)
        show_image(row[4], shade, cmap=SEQUENTIAL)
        show_image(row[5], back)
    for axis, title in zip(axes[0], ("input", "latent channel", "after quantising", "moved by rounding", "code map", "decoded")):
        axis.set_title(title)
    figure.colorbar(latent, ax=list(axes[:, 1:4].ravel()), label="latent value", location="bottom", shrink=0.5, aspect=40)
    return figure


def code_maps(images: np.ndarray, shades: np.ndarray, names: Sequence[str], level: int, mm: float | None = None) -> Figure:
    """Several people at one level, and their code maps below; a colour is an entry's rank in brightness."""
    count = len(images)
    side, title = max(1.9, 7.5 / count), f"{count} people at level {level + 1}, in pixels and in codes"
    figure, axes = new_figure(2, count, width=side * count, height=2 * side + 0.6, title=title)
    for column, (image, shade, name) in enumerate(zip(images, shades, names)):
        show_image(axes[0, column], image, name)
        drawn = show_image(axes[1, column], shade, cmap=SEQUENTIAL)
    scale_bar(axes[0, 0], mm)
    figure.colorbar(drawn, ax=list(axes.ravel()), label="entry, by rank in brightness", shrink=0.7)
    return figure


def usage(history: pd.DataFrame, by_level: pd.DataFrame, counts: np.ndarray) -> Figure:
    """Is the codebook used? Over training, per level, and entry by entry."""
    entries = len(counts)
    figure, (axes,) = new_figure(1, 3, width=12, height=3.6, title=f"How much of {entries} entries is in use")
    for column, colour in zip([c for c in history if c.endswith(("perplexity", "used"))], COLOURS):
        kept = history[["step", column]].dropna()
        axes[0].plot(kept["step"], kept[column], color=colour, marker=".", label=column.replace("_", " "))
    axes[0].axhline(entries, color=BAD, ls=":", label="entries there are")
    axes[0].set(xlabel="training step", ylabel="entries", title="over training (held-out people)", ylim=(0, None))
    axes[0].legend(fontsize=8)
    axes[1].plot(by_level["level"] + 1, by_level["used"], color=REAL, marker=".", label="used at all")
    axes[1].plot(by_level["level"] + 1, by_level["perplexity"], color=MODEL, marker=".", label="perplexity")
    axes[1].set(xlabel="level (low to high in the head)", ylabel="entries", title="per level", ylim=(0, None))
    axes[1].legend(fontsize=8)
    ranked = np.sort(counts)[::-1]
    ranked = ranked[ranked > 0]
    axes[2].loglog(np.arange(1, len(ranked) + 1), ranked / ranked.sum(), color=REAL)
    axes[2].axhline(1 / entries, color=BAD, ls=":", label="all alike")
    axes[2].set(xlabel="entry, commonest first", ylabel="share of all codes", title="commonest to rarest")
    axes[2].legend(fontsize=8)
    return figure


def firing(maps: np.ndarray, entries: Sequence[int], patches: np.ndarray, counts: np.ndarray, head: np.ndarray) -> Figure:
    """One map an entry: in what share of slices it stands where, inside the outline of the mean head; its patch in the corner."""
    columns = 6
    rows = -(-len(entries) // columns)
    figure, axes = new_figure(
        rows, columns, width=11, height=2.0 * rows + 0.5, title="Where in the head each of the most used entries fires"
    )
    height, width = maps.shape[1:]
    for axis in axes.ravel()[len(entries) :]:
        axis.set_visible(False)
    for axis, entry, share in zip(axes.ravel(), entries, maps):
        peak = max(float(share.max()), 1e-9)
        show_image(
            axis,
            share / peak,
            f"{entry}: {counts[entry] / counts.sum():.1%}, peak {peak:.0%}",
            cmap="magma",
            extent=(0, width, height, 0),
        )
        across, down = (np.linspace(0, n, m) for n, m in ((width, head.shape[1]), (height, head.shape[0])))
        axis.contour(across, down, head, levels=[0.15 * head.max()], colors="white", linewidths=0.5)
        corner = axis.inset_axes((0.0, 0.0, 0.24, 0.24))
        corner.imshow(patches[entry], cmap="gray", vmin=0, vmax=1)
        corner.set(xticks=[], yticks=[])
        for spine in corner.spines.values():
            spine.set(visible=True, color=MODEL)
    return figure


def gallery(patches: np.ndarray, real: Sequence[np.ndarray], entries: Sequence[int]) -> Figure:
    """One column an entry: its decoded patch above, then patches of people that were given this code."""
    rows = 1 + max(len(found) for found in real)
    figure, axes = new_figure(
        rows, len(entries), width=11, height=0.8 * rows + 0.7, title="One code, many patches: what each entry stands for"
    )
    for axis in axes.ravel():
        axis.set_axis_off()
    for column, (entry, found) in enumerate(zip(entries, real)):
        axes[0, column].set_title(f"{entry}", color=MODEL)
        for axis, patch in zip(axes[:, column], [patches[entry], *found]):
            axis.imshow(patch, cmap="gray", vmin=0, vmax=1)
    for row, words in ((0, "decoded"), (1, "in test\npeople")):
        axes[row, 0].text(-0.25, 0.5, words, transform=axes[row, 0].transAxes, ha="right", va="center", fontsize=8)
    return figure


def page(patches: np.ndarray, order: np.ndarray, shape: tuple[int, int], counts: np.ndarray) -> Figure:
    """The whole codebook, neighbours alike. An entry that was never used is framed in orange."""
    rows, columns = shape
    side = patches.shape[1] + 2
    sheet = np.ones((rows * side, columns * side, 3), dtype=np.float32)
    for cell, entry in enumerate(order):
        if entry >= 0:
            top, left = (cell // columns) * side, (cell % columns) * side
            sheet[top : top + side, left : left + side] = 0.7 if counts[entry] else (0.835, 0.369, 0.0)
            sheet[top + 1 : top + side - 1, left + 1 : left + side - 1] = patches[entry][..., None]
    unused = int((counts == 0).sum())
    title = f"The codebook: {len(patches)} entries as the decoder draws them" + (
        f" ({unused} never used, framed)" if unused else ""
    )
    figure, ((axis,),) = new_figure(width=11, height=11 * rows / columns + 0.5, title=title)
    show_image(axis, sheet)
    return figure


def followers(pairs: np.ndarray, order: np.ndarray, bits: dict[str, float]) -> Figure:
    """Which entry stands beside which, alike entries next to each other; and how many bits a neighbour saves."""
    figure, axes = new_figure(1, 2, width=9.5, height=5.2, title="Which codes go together", width_ratios=[2, 1])
    matrix, bars = axes[0]
    ordered = np.ma.masked_equal(pairs[np.ix_(order, order)], 0)
    drawn = matrix.imshow(ordered, cmap=SEQUENTIAL, norm=LogNorm(1, max(2, pairs.max())), interpolation="none")
    matrix.set(
        xlabel="code to the right or below (alike ones side by side)",
        ylabel="code",
        title="white: never neighbours in training people",
    )
    figure.colorbar(drawn, ax=matrix, label="times neighbours", shrink=0.8)
    drawn = bars.bar([name.replace(" ", "\n") for name in bits], list(bits.values()), color=[BAD, REAL, MODEL])
    bars.bar_label(drawn, fmt="%.2f")
    bars.set(ylabel="bits a code", title="what a guess costs")
    return figure


def tampering(images: dict[str, np.ndarray], box: tuple[int, int, int, int]) -> Figure:
    """Above the pictures, below how each differs from the first. `box` (row, column, height, width) frames the swapped code."""
    reach, names = 0.3, list(images)
    figure, axes = new_figure(2, len(names), width=2.3 * len(names), height=5.0, title="Tampering with the codes")
    for (above, below), (name, image) in zip(axes.T, images.items()):
        show_image(above, image, name)
        change = image - images[names[0]]
        title = f"mean change {np.abs(change).mean():.1%}"
        drawn = show_image(below, change, title, low=-reach, high=reach, cmap=DIVERGING)
    row, left, height, width = box
    for axis in axes[:, 1]:
        across, down = np.array([0, width, width, 0, 0]) + left - 0.5, np.array([0, 0, height, height, 0]) + row - 0.5
        axis.plot(across, down, color=MODEL, lw=1)
    figure.colorbar(drawn, ax=list(axes[1]), label=f"change from “{names[0]}”", shrink=0.8)
    return figure


def scale_bar(axis: Axes, mm: float | None, length: int = 50) -> None:
    """Five centimetres, where the size of a pixel is known."""
    if mm:
        bottom, left = axis.get_ylim()[0] - 5, axis.get_xlim()[0] + 5
        axis.plot([left, left + length / mm], [bottom, bottom], color="white", lw=2, solid_capstyle="butt")
        axis.text(left, bottom - 3, f"{length} mm", color="white", fontsize=7, va="bottom")
