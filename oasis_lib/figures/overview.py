"""The study in one picture: people, their code maps, what comes back from those, and people who never were."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from oasis_lib.figures.style import new_figure, show_image, synthetic


def overview(real: np.ndarray, rebuilt: np.ndarray, codes: np.ndarray, new: np.ndarray, is_synthetic: bool) -> Figure:
    """Four rows of the same levels; images are (N, H, W) uint8, codes (N, h, w)."""
    rows = [
        ("test people", real, {}),
        ("their codes", codes, {"cmap": "viridis", "high": max(float(codes.max()), 1.0)}),
        ("decoded again", rebuilt, {}),
        ("new heads,\nfrom the prior", new, {}),
    ]
    figure, axes = new_figure(len(rows), len(real), width=1.25 * len(real) + 1.0, height=1.3 * len(rows))
    for row, (name, images, options) in zip(axes, rows):
        for axis, image in zip(row, images):
            show_image(axis, image if options else image / 255, **options)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return synthetic(figure, is_synthetic)
