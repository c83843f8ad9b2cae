"""The embedding drawn in the plane: codebook entries among the encoder outputs that they stand for."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from oasis_lib.figures.style import COLOURS, MODEL, REAL, new_figure

TISSUES = {0: ("air", "#BBBBBB"), 1: ("CSF", COLOURS[0]), 2: ("grey matter", COLOURS[2]), 3: ("white matter", COLOURS[1])}
FAINT = "#DDDDDD"


def embedding(points: np.ndarray, outputs: pd.DataFrame, counts: np.ndarray, patches: np.ndarray, method: str = "UMAP") -> Figure:
    """Four views of one plane: `points` are the entries, then the outputs; by usage, tissue and brightness, and as patches."""
    entries = len(counts)
    code, output = points[:entries], points[entries:]
    figure, axes = new_figure(2, 2, width=10, height=9, title=f"{entries} codebook entries among {len(output):,} encoder outputs")
    usage, tissue, bright, pictures = axes.ravel()

    usage.scatter(*output.T, s=1, c=FAINT, rasterized=True)
    used = counts > 0
    usage.scatter(*code[~used].T, s=14, marker="x", c=COLOURS[3], label=f"never used ({(~used).sum()})")
    drawn = usage.scatter(*code[used].T, s=14, c=counts[used], cmap="viridis", norm=LogNorm(1, max(2, counts.max())))
    figure.colorbar(drawn, ax=usage, label="times used in training people", shrink=0.8)
    usage.legend(loc="best", fontsize=8)
    usage.set_title("entries by usage")

    _by_tissue(tissue, code, output, outputs["tissue"].to_numpy())
    drawn = bright.scatter(*output.T, s=2, c=outputs["brightness"], cmap="cividis", vmin=0, vmax=1, rasterized=True)
    figure.colorbar(drawn, ax=bright, label="mean brightness of the pixels it covers", shrink=0.8)
    bright.set_title("outputs by brightness")

    pictures.imshow(paste(code, patches, _limits(points)), extent=_limits(points), origin="upper", aspect="auto", zorder=2)
    pictures.set_title("each entry's decoded patch at its place")
    for axis in axes.ravel():
        _plane(axis, points, method)
    return figure


def compare(planes: dict[str, np.ndarray], lost: pd.DataFrame, outputs: pd.DataFrame, entries: int) -> Figure:
    """Projections side by side in the same colours, and what each keeps. `lost`: one row a projection, columns are shares kept."""
    figure, axes = new_figure(
        1, len(planes) + 1, width=4 * (len(planes) + 1), height=3.8, title="Two ways to flatten the same space"
    )
    for axis, (name, points) in zip(axes[0], planes.items()):
        drawn = axis.scatter(*points[entries:].T, s=2, c=outputs["brightness"], cmap="cividis", vmin=0, vmax=1, rasterized=True)
        axis.scatter(*points[:entries].T, s=8, facecolors="none", edgecolors=COLOURS[3], linewidths=0.6, label="codebook entry")
        axis.set_title(name)
        _plane(axis, points, name.split(" (")[0])
    axes[0, 0].legend(loc="best", fontsize=8)
    figure.colorbar(drawn, ax=list(axes[0, :-1]), label="mean brightness", shrink=0.8)
    bars, place = axes[0, -1], np.arange(len(lost.columns))
    for index, (name, row) in enumerate(lost.iterrows()):
        across = place + 0.4 * (index - (len(lost) - 1) / 2)
        drawn = bars.bar(across, row.to_numpy(), width=0.36, color=(REAL, MODEL)[index % 2], label=name)
        bars.bar_label(drawn, fmt="%.2f", fontsize=8)
    bars.set(
        xticks=place,
        xticklabels=[c.replace("_", "\n") for c in lost.columns],
        ylim=(0, 1.15),
        ylabel="share kept",
        title="what is kept",
    )
    bars.legend(loc="upper right", fontsize=8)
    return figure


def paste(points: np.ndarray, patches: np.ndarray, limits: tuple[float, float, float, float], side: int = 1000) -> np.ndarray:
    """(side, side, 4): patches at their places on one transparent canvas, for one picture instead of a thousand."""
    size = max(8, min(44, round(side / np.sqrt(len(points)) * 0.8)))
    canvas = np.zeros((side, side, 4), dtype=np.float32)
    low_x, high_x, low_y, high_y = limits
    columns = (points[:, 0] - low_x) / (high_x - low_x) * side
    rows = (high_y - points[:, 1]) / (high_y - low_y) * side
    grid = np.arange(size) * patches.shape[1] // size  # nearest pixel
    for row, column, patch in zip(rows.astype(int), columns.astype(int), patches):
        top, left = (int(np.clip(v - size // 2, 0, side - size)) for v in (row, column))
        canvas[top : top + size, left : left + size] = (0.7, 0.7, 0.7, 1.0)  # a thin frame
        canvas[top + 1 : top + size - 1, left + 1 : left + size - 1, :3] = patch[np.ix_(grid, grid)][1:-1, 1:-1, None]
    return canvas


def _by_tissue(axis: Axes, code: np.ndarray, output: np.ndarray, tissue: np.ndarray) -> None:
    if (tissue < 0).all():
        axis.scatter(*output.T, s=1, c=FAINT, rasterized=True)
        axis.set_title("outputs (tissue is not known here)")
    for kind, (name, colour) in TISSUES.items():
        here = tissue == kind
        if here.any():
            axis.scatter(*output[here].T, s=2, c=colour, rasterized=True)
            axis.scatter([], [], s=20, c=colour, label=name)
    if (tissue >= 0).any():
        axis.set_title("outputs by the tissue beneath")
        axis.legend(loc="best", fontsize=8)
    axis.scatter(*code.T, s=4, c="black", linewidths=0)


def _limits(points: np.ndarray) -> tuple[float, float, float, float]:
    low, high = points.min(0), points.max(0)
    margin = 0.04 * np.maximum(high - low, 1e-3)
    return low[0] - margin[0], high[0] + margin[0], low[1] - margin[1], high[1] + margin[1]


def _plane(axis: Axes, points: np.ndarray, method: str) -> None:
    low_x, high_x, low_y, high_y = _limits(points)
    axis.set(xlim=(low_x, high_x), ylim=(low_y, high_y), xticks=[], yticks=[], xlabel=f"{method} 1", ylabel=f"{method} 2")
