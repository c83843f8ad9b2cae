"""Images in rows and columns: the layout for slices, token maps and patches, the margin around brains cut off."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oasis_lib.figures.style import MODEL, WIDTH, new_figure, show_image

Box = tuple[float, float, float, float]  # top, bottom, left, right, in shares of the frame
WHOLE = (0.0, 1.0, 0.0, 1.0)


@dataclass(frozen=True)
class Row:
    """Images of one kind: their colours, a caption each, and the label of the colour bar that they need, if any."""

    images: Sequence[np.ndarray | None]  # (H, W) or (H, W, 3) each; uint8 is 0 to 255
    names: Sequence[str] = ()
    cmap: str = "gray"
    low: float = 0.0
    high: float = 1.0
    bar: str = ""


def image_grid(
    rows: Mapping[str, Row | Sequence[np.ndarray | None]],
    columns: Sequence[str] = (),
    title: str = "",
    *,
    crop: bool | Box = True,
    mm: float | None = None,
) -> Figure:
    """A named row of images each, cut to what is not background; `mm` (a pixel's size) adds a scale bar.

    `figure.axes` has the cells first, row by row, for what is to be drawn over them.
    """
    filled = {name: row if isinstance(row, Row) else Row(row) for name, row in rows.items()}
    images = [(row.cmap, image) for row in filled.values() for image in row.images if image is not None]
    across = max(len(row.images) for row in filled.values())
    box = crop or WHOLE
    if crop is True:
        box = content_box([image for cmap, image in images if cmap == "gray"], min(len(image) for _, image in images))
    bars = any(row.bar for row in filled.values())
    side = min(1.8, (WIDTH - 1.0 * any(map(str.strip, filled)) - 0.9 * bars) / across)
    tall = side * (box[1] - box[0]) / (box[3] - box[2]) + 0.05
    words = 0.3 * bool(title) + 0.2 * any(columns) + 0.2 * sum(any(row.names) for row in filled.values())
    figure, axes = new_figure(len(filled), across, height=max(1.5, tall * len(filled) + words), title=title)
    for number, (line, (name, row)) in enumerate(zip(axes, filled.items())):
        captions = [names for names in (columns if number == 0 else (), row.names) if names]
        for place, axis in enumerate(line):
            axis.set_axis_off()
            if place < len(row.images) and row.images[place] is not None:
                _show(axis, row.images[place], row, box)
            above = [names[place] for names in captions if place < len(names)]
            axis.set_title("\n".join(filter(None, above)), fontsize=8)
        lines = [textwrap.wrap(part, 15, break_on_hyphens=False) for part in name.split("\n")]
        label = "\n".join(sum(lines, []))  # a name of spaces is no name, but keeps rows apart
        line[0].text(-0.06, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=8.5)
    for bar, group in groupby(zip(axes, filled.values()), key=lambda pair: pair[1].bar):
        lines = [line for line, _ in group]
        if bar:  # inside the first row, right of its last cell: elsewhere it would move columns or rows apart
            drawn = next(axis.images[0] for line in lines for axis in line if axis.images)
            figure.colorbar(drawn, cax=lines[0][-1].inset_axes((1.08, 0, 0.07, 1)))
            drawn.colorbar.set_label(textwrap.fill(bar, 16), fontsize=8)
    if mm:
        scale_bar(axes[0, 0], mm)
    return figure


def _show(axis: Axes, image: np.ndarray, row: Row, box: Box) -> None:
    """One cell. The image stays whole; the axis shows the part in `box`."""
    high = 255 if np.asarray(image).dtype == np.uint8 and row.high == 1 else row.high
    smooth = "auto" if row.cmap == "gray" else "nearest"
    axis.set_axis_on()
    show_image(axis, image, low=row.low, high=high, cmap=row.cmap, interpolation=smooth)
    down, across = np.shape(image)[:2]
    axis.set(xlim=(box[2] * across - 0.5, box[3] * across - 0.5), ylim=(box[1] * down - 0.5, box[0] * down - 0.5))


def content_box(images: Sequence[np.ndarray], parts: int = 0) -> Box:
    """What is brighter than background in any of the images (of the first one's shape), widened to whole `parts`."""
    lit = [i > 0.1 * max(float(np.max(i)), 1e-9) for i in map(np.asarray, images) if i.shape == np.shape(images[0])]
    box, parts = [], max(16, parts)
    for axis in (1, 0):
        shares = np.max([mask.mean(axis) for mask in lit], axis=0) if lit else np.zeros(1)
        seen = np.flatnonzero(shares > 0.02)  # a speck is no content
        if not len(seen):
            return WHOLE
        low, high = seen[0] / len(shares) - 0.015, (seen[-1] + 1) / len(shares) + 0.015
        box += [max(0.0, np.floor(low * parts) / parts), min(1.0, np.ceil(high * parts) / parts)]
    return tuple(box)


def cut(image: np.ndarray, box: Box) -> np.ndarray:
    """The part of (H, W) or (H, W, 3) pixels that lies in `box`."""
    height, width = image.shape[:2]
    return image[round(box[0] * height) : round(box[1] * height), round(box[2] * width) : round(box[3] * width)]


def sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """(N, H, W) or (N, H, W, 3) as one image in [0, 1], row by row, a white line between."""
    import torch

    from oasis_lib.vision import torchvision

    pixels = np.asarray(images, dtype=np.float32) / (255 if np.asarray(images).dtype == np.uint8 else 1)
    tensor = torch.from_numpy(pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2).copy())
    return torchvision.utils.make_grid(tensor, columns, padding=1, pad_value=1.0).permute(1, 2, 0).numpy()


def frame(axis: Axes, row: float, column: float, height: float, width: float, colour: str = MODEL) -> None:
    """A thin frame around pixels (or tokens) of the image in an axis."""
    across, down = np.array([0, width, width, 0, 0]) + column - 0.5, np.array([0, 0, height, height, 0]) + row - 0.5
    axis.plot(across, down, color=colour, lw=1.2)


def scale_bar(axis: Axes, mm: float, length: int = 50) -> None:
    """Five centimetres, in the lower left corner."""
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    left, bottom = left + 0.05 * (right - left), bottom - 0.05 * (bottom - top)
    axis.plot([left, left + length / mm], [bottom, bottom], color="white", lw=2, solid_capstyle="butt")
    axis.text(left, bottom - 0.02 * abs(top - bottom), f"{length} mm", color="white", fontsize=8, va="bottom")
