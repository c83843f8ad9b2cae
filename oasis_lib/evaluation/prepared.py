"""Slices made ready for a detector: cues that are no anatomy removed, one array for each scale, crops inside the brain."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from oasis_lib.metrics import brain_mask

SCALES = (1, 2, 4, 8)
SIDE = 48  # pixels across a crop, at every scale
NOISE = 1.5  # of 255: hides rounding and flat regions on both sides alike
QUALITY = 90  # of the JPEG step that both sides pass


@dataclass(frozen=True, eq=False)
class Prepared:
    """Slices ready to be compared: cues that are no anatomy removed, cropped to a common box, one array a scale."""

    scales: dict[int, Tensor]  # scale -> (N, h, w) uint8, at least SIDE x SIDE
    slice_indices: np.ndarray  # (N,) slice index
    subjects: np.ndarray  # (N,)

    def __len__(self) -> int:
        return len(self.slice_indices)

    @cached_property
    def inside(self) -> dict[int, Tensor]:
        """scale -> (N, P) weights of the crop positions: those with at least half as much brain as the fullest crop."""
        found = {}
        for scale, images in self.scales.items():
            share = F.avg_pool2d((images > 0).float()[:, None], SIDE, _stride(images)).flatten(1)
            found[scale] = (share >= 0.5 * share.amax(1, keepdim=True)).float()
        return found


def brain_box(images: np.ndarray, multiple: int = 8, margin: int = 2) -> tuple[slice, slice]:
    """Rows and columns that hold every brain of a set (N, H, W), the side a multiple of the coarsest scale."""
    lit = images.max(0) > 10
    found = []
    for axis, size in ((1, images.shape[1]), (0, images.shape[2])):
        where = np.flatnonzero(lit.any(axis))
        low, high = (where[0], where[-1] + 1) if len(where) else (0, size)
        side = min(-(-(high - low + 2 * margin) // multiple) * multiple, size)
        start = int(np.clip((low + high - side) // 2, 0, size - side))
        found.append(slice(start, start + side))
    return found[0], found[1]


def without_cues(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N, H, W) -> uint8: background zero, faint noise inside the brain, one JPEG step. Both sides alike."""
    from PIL import Image

    images = images if images.dtype == np.uint8 else (np.clip(images, 0, 1) * 255).round().astype(np.uint8)
    rng, mask, done = np.random.default_rng(seed), brain_mask(images), np.empty_like(images)
    for row, (image, inside) in enumerate(zip(images, mask)):
        noisy = np.where(inside, image + rng.normal(0, NOISE, image.shape), 0)
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
        done[row] = np.where(inside, np.maximum(np.asarray(Image.open(file)), 1), 0)
    return done


def prepare(
    images: np.ndarray,
    slice_indices: np.ndarray,
    subjects: np.ndarray,
    box: tuple[slice, slice],
    scales: Sequence[int] = SCALES,
    *,
    device: str = "cpu",
) -> Prepared:
    """A set once, for all its comparisons. Scales are area averages of the cropped slices, rounded to 8 bits."""
    clean = without_cues(np.asarray(images))[:, box[0], box[1]]
    full, found = torch.from_numpy(np.ascontiguousarray(clean)).to(device)[:, None], {}
    for scale in scales:
        parts = [F.avg_pool2d(part.float(), scale).round().to(torch.uint8)[:, 0] for part in full.split(64)]
        small = torch.cat(parts)
        missing = [max(0, SIDE - side) for side in small.shape[1:]]
        pad = [missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2]
        found[scale] = F.pad(small, pad)
    return Prepared(found, np.asarray(slice_indices), np.asarray(subjects))


def _stride(images: Tensor) -> int:
    return max(1, (min(images.shape[1:]) - SIDE) // 8)


def crops_of(images: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """(B, 1, SIDE, SIDE) floats in [0, 1]: of image `rows[i]` the crop at position `places[i]`."""
    stride = _stride(images)
    across = (images.shape[2] - SIDE) // stride + 1
    reach = torch.arange(SIDE, device=images.device)
    top, left = places // across * stride, places % across * stride
    found = images[rows[:, None, None], (top[:, None] + reach)[:, :, None], (left[:, None] + reach)[:, None, :]]
    return (found.float() / 255)[:, None]
