"""A codebook in figures: layout in the plane, decoded patches, windows, stages, and where tokens occur."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from oasis_lib.figures.cohort import TISSUES
from oasis_lib.figures.grid import Row, content_box, frame, image_grid, sheet
from oasis_lib.figures.style import BAD, COLOURS, DIVERGING, MODEL, SEQUENTIAL, WIDTH, new_figure, show_image

BRIGHTNESS = "mean brightness of the token's patch"


def embedding(
    points: np.ndarray, counts: np.ndarray, shades: np.ndarray, tissue: np.ndarray, patches: np.ndarray, how: str
) -> Figure:
    """The codebook in the plane, four times: by use, by brightness, by tissue, and as patches that do not overlap."""
    figure, axes = new_figure(2, 2, height=7.2, title=f"{how} of {len(points)} codebook vectors")
    use, bright, kinds, pictures = axes.ravel()
    used = counts > 0
    drawn = use.scatter(*points[used].T, s=16, c=counts[used], cmap=SEQUENTIAL, norm=LogNorm(1, max(2, counts.max())))
    use.scatter(*points[~used].T, s=20, marker="x", c=COLOURS[3], label=f"never used ({(~used).sum()})")
    figure.colorbar(drawn, ax=use, label="uses by training subjects", shrink=0.8)
    drawn = bright.scatter(*points.T, s=16, c=shades, cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(drawn, ax=bright, label=BRIGHTNESS, shrink=0.8)
    for number, (name, colour) in enumerate(TISSUES.items()):
        kinds.scatter(*points[tissue == number].T, s=16, color=colour, label=f"{name} ({(tissue == number).sum()})")
    if (~used).any():
        use.legend(fontsize=8)
    known = (tissue >= 0).any()
    if known:
        kinds.legend(fontsize=8)
    titles = (
        "by use",
        "by brightness",
        "by the tissue it covers most" if known else "tissue is not known here",
        "as decoded patches",
    )
    for axis, title in zip(axes.ravel(), titles):
        axis.set(title=title, xticks=[], yticks=[], xlabel=f"{how} 1", ylabel=f"{how} 2")
        axis.margins(0.06)
    _patches_apart(pictures, points, patches, counts)
    return figure


def _patches_apart(axis: Axes, points: np.ndarray, patches: np.ndarray, counts: np.ndarray, side: float = 0.065) -> None:
    """Patches at their places, the most used first, each only where no other is."""
    low, high = points.min(0), points.max(0)
    flat = (points - low) / np.maximum(high - low, 1e-9)
    placed: list[int] = []
    for token in np.argsort(-counts, kind="stable"):
        if all(np.abs(flat[token] - flat[other]).max() > 1.1 * side for other in placed):
            placed.append(token)
            x, y = flat[token]
            axis.imshow(
                patches[token], cmap="gray", vmin=0, vmax=1, extent=(x - side / 2, x + side / 2, y - side / 2, y + side / 2)
            )
            frame(axis, y - side / 2 + 0.5, x - side / 2 + 0.5, side, side, BAD)
    axis.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06), aspect="auto")


def page(patches: np.ndarray, order: np.ndarray, columns: int, counts: np.ndarray) -> Figure:
    """The whole codebook as decoded patches, neighbours alike. A token that was never used is framed in orange."""
    grey, orange = np.array([0.7] * 3, np.float32), np.array([0.835, 0.369, 0.0], np.float32)
    side = patches.shape[1]
    cells = np.ones((len(order), side + 2, side + 2, 3), np.float32)
    for cell, token in zip(cells, order):
        if token >= 0:
            cell[:] = grey if counts[token] else orange
            cell[1:-1, 1:-1] = patches[token][..., None]
    whole, unused = sheet(cells, columns), int((counts == 0).sum())
    title = f"The codebook: {len(patches)} tokens as decoded patches" + (f" ({unused} never used, framed)" if unused else "")
    figure, ((axis,),) = new_figure(height=WIDTH * whole.shape[0] / whole.shape[1] + 0.4, title=title)
    show_image(axis, whole)
    return figure


def gallery(found: Sequence[np.ndarray], tokens: Sequence[int], factor: int, shown: int = 5) -> Figure:
    """A column a token: the mean of its windows in test subjects, then some of them; the token's own pixels are framed."""
    rows = {f"mean of {max(map(len, found))}": [each.mean(0) if len(each) else None for each in found]}
    for number in range(shown):
        rows[" " * number or "examples"] = [each[number * len(each) // shown] if len(each) >= shown else None for each in found]
    figure = image_grid(rows, [f"token {token}" for token in tokens], "Windows of test slices, by token", crop=False)
    for axis in figure.axes:
        if axis.images:
            margin = (axis.images[0].get_array().shape[0] - factor) // 2
            frame(axis, margin, margin, factor, factor)
    return figure


def stages(parts: dict[str, np.ndarray], names: Sequence[str], mm: float | None = None) -> Figure:
    """Slices (columns) at each stage of the model (rows): see `evaluation.codebook.through`."""
    reach = float(np.abs([parts["latent"], parts["quantised"]]).max()) or 1.0
    look = {"cmap": DIVERGING, "low": -reach, "high": reach, "bar": "latent value"}
    rows = {
        "input": Row(parts["input"]),
        "latent channel": Row(parts["latent"], **look),
        "moved by quantisation": Row(parts["quantised"] - parts["latent"], **look),
        "tokens": Row(parts["tokens"], cmap=SEQUENTIAL, bar="brightness"),
        "reconstruction": Row(parts["reconstruction"]),
    }
    return image_grid(rows, names, mm=mm)


def firing(maps: np.ndarray, tokens: Sequence[int], patches: np.ndarray, counts: np.ndarray, mean: np.ndarray) -> Figure:
    """One map a token: the share of slices that have it there, over the outline of the mean slice; its patch in the corner."""
    across, peaks = 6, np.maximum(maps.max((1, 2)), 1e-9)
    names = [f"{token}: {counts[token] / counts.sum():.1%}\npeak {peak:.0%}" for token, peak in zip(tokens, peaks)]
    scaled = list(maps / peaks[:, None, None])
    rows = {" " * at: Row(scaled[at : at + across], names[at : at + across], "magma", bar="share of the peak")
            for at in range(0, len(scaled), across)}  # fmt: skip
    figure = image_grid(rows, title="Where the most used tokens occur", crop=content_box([mean], maps.shape[1]))
    (height, width), (down, right) = maps.shape[1:], mean.shape
    x, y = np.linspace(-0.5, width - 0.5, right), np.linspace(-0.5, height - 0.5, down)
    for axis, token in zip([a for a in figure.axes if a.images], tokens):
        axis.contour(x, y, mean, levels=[0.15 * mean.max()], colors="white", linewidths=0.6)
        corner = axis.inset_axes((0.0, 0.0, 0.25, 0.25))
        show_image(corner, patches[token])
        corner.spines[:].set(visible=True, color=MODEL)
    return figure
