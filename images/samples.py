"""A sheet of samples, none picked: the first of every third slice index.

`python images/samples.py NEW/samples.npz OUT.webp`
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

COLUMNS, ROWS = 11, 4  # slice indices, samples of each


def main(samples: str, out: str) -> None:
    drawn = np.load(samples)
    images, indices = drawn["images"], drawn["slice_index"]
    shown = np.linspace(indices.min(), indices.max(), COLUMNS).round().astype(int)
    picked = np.stack(
        [images[np.flatnonzero(indices == index)[:ROWS]] for index in shown], axis=1
    )  # rows, columns, H, W
    lit = np.argwhere((picked > 12).mean((0, 1)) > 0.005)
    (top, left), (bottom, right) = lit.min(0), lit.max(0) + 1
    tiles = np.pad(picked[:, :, top:bottom, left:right], ((0, 0), (0, 0), (2, 2), (2, 2)))
    rows, columns, height, width = tiles.shape
    sheet = Image.fromarray(tiles.swapaxes(1, 2).reshape(rows * height, columns * width))
    sheet.save(out, quality=75, method=6)


if __name__ == "__main__":
    main(*sys.argv[1:])
