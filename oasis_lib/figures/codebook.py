"""A codebook in figures: layout in the plane, decoded patches, windows, stages, and where tokens occur."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from oasis_lib.figures.cohort import TISSUES
from oasis_lib.figures.grid import Row, content_box, frame, image_grid, sheet
from oasis_lib.figures.style import BAD, COLOURS, MODEL, SEQUENTIAL, WIDTH, new_figure, show_image


def embedding(
    points: np.ndarray, counts: np.ndarray, shades: np.ndarray, tissue: np.ndarray, patches: np.ndarray, how: str
) -> Figure:
    """The codebook in the plane, four times: by use, by brightness, by tissue, and as patches that do not overlap."""
    figure, axes = new_figure(2, 2, height=7.2, title=f"{how} of {len(points)} codebook vectors")
    (use, bright), (kinds, pictures) = axes
    used, known = counts > 0, (tissue >= 0).any()
    named = "by the tissue it covers most" if known else "tissue is not known here"
    for axis, title in zip(axes.ravel(), ("by use", "by brightness", named, "as decoded patches")):
        axis.set(title=title, xticks=[], yticks=[], xlabel=f"{how} 1", ylabel=f"{how} 2")
        axis.margins(0.06)
    drawn = use.scatter(*points[used].T, s=16, c=counts[used], cmap=SEQUENTIAL, norm=LogNorm(1, max(2, counts.max())))
    use.scatter(*points[~used].T, s=20, marker="x", c=COLOURS[3], label=f"never used ({(~used).sum()})")
    figure.colorbar(drawn, ax=use, label="uses by training subjects", shrink=0.8)
    drawn = bright.scatter(*points.T, s=16, c=shades, cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(drawn, ax=bright, label="mean brightness of the token's patch", shrink=0.8)
    for number, (name, colour) in enumerate(TISSUES.items()):
        kinds.scatter(*points[tissue == number].T, s=16, color=colour, label=f"{name} ({(tissue == number).sum()})")
    for axis, shown in ((use, not used.all()), (kinds, known)):
        if shown:
            axis.legend(fontsize=8)
    _patches_apart(pictures, points, patches, counts)
    return figure


def _patches_apart(axis: Axes, points: np.ndarray, patches: np.ndarray, counts: np.ndarray) -> None:
    """Patches at their places, the most used first, each only where no other is."""
    flat = (points - points.min(0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    placed: list[int] = []
    side = 0.065
    for token in np.argsort(-counts, kind="stable"):
        if all(np.abs(flat[token] - flat[other]).max() > 1.1 * side for other in placed):
            placed.append(token)
            left, bottom = flat[token] - side / 2
            extent = (left, left + side, bottom, bottom + side)
            axis.imshow(patches[token], cmap="gray", vmin=0, vmax=1, extent=extent)
            frame(axis, bottom + 0.5, left + 0.5, side, side, BAD)
    axis.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06), aspect="auto")


def page(patches: np.ndarray, order: np.ndarray, columns: int, counts: np.ndarray) -> Figure:
    """The whole codebook as decoded patches, neighbours alike. A token that was never used is framed in orange."""
    side, unused = patches.shape[1], int((counts == 0).sum())
    cells = np.ones((len(order), side + 2, side + 2, 3), np.float32)
    for cell, token in zip(cells, order):
        if token >= 0:
            cell[:] = 0.7 if counts[token] else (0.835, 0.369, 0.0)
            cell[1:-1, 1:-1] = patches[token][..., None]
    whole = sheet(cells, columns)
    title = f"The codebook: {len(patches)} tokens as decoded patches" + f" ({unused} never used, framed)" * bool(unused)
    figure, ((axis,),) = new_figure(height=WIDTH * whole.shape[0] / whole.shape[1] + 0.4, title=title)
    show_image(axis, whole)
    return figure


def gallery(found: Sequence[np.ndarray], tokens: Sequence[int], factor: int, shown: int = 5) -> Figure:
    """A column a token: the mean of its windows in test subjects, then some of them; the token's pixels are framed."""
    rows = {f"mean of {max(map(len, found))}": [each.mean(0) if len(each) else None for each in found]}
    for at in range(shown):
        some = [each[at * len(each) // shown] if len(each) >= shown else None for each in found]
        rows[" " * at or "examples"] = some
    figure = image_grid(rows, [f"token {token}" for token in tokens], "Windows of test slices, by token", crop=False)
    for axis in figure.axes:
        if axis.images:
            margin = (axis.images[0].get_array().shape[0] - factor) // 2
            frame(axis, margin, margin, factor, factor)
    return figure


def firing(maps: np.ndarray, tokens: np.ndarray, patches: np.ndarray, counts: np.ndarray, mean: np.ndarray) -> Figure:
    """The share of slices that have a token at a position, over the mean slice's outline; its patch in the corner."""
    peaks = np.maximum(maps.max((1, 2)), 1e-9)
    names = [f"{token}: {counts[token] / counts.sum():.1%}\npeak {peak:.0%}" for token, peak in zip(tokens, peaks)]
    scaled, rows = list(maps / peaks[:, None, None]), {}
    for at in range(0, len(scaled), 6):
        rows[" " * at] = Row(scaled[at : at + 6], names[at : at + 6], "magma", bar="share of the peak")
    figure = image_grid(rows, title="Where the most used tokens occur", crop=content_box([mean], maps.shape[1]))
    (height, width), (down, right) = maps.shape[1:], mean.shape
    x, y = np.linspace(-0.5, width - 0.5, right), np.linspace(-0.5, height - 0.5, down)
    for axis, token in zip([a for a in figure.axes if a.images], tokens):
        axis.contour(x, y, mean, levels=[0.15 * mean.max()], colors="white", linewidths=0.6)
        corner = axis.inset_axes((0.0, 0.0, 0.25, 0.25))
        show_image(corner, patches[token])
        corner.spines[:].set(visible=True, color=MODEL)
    return figure
