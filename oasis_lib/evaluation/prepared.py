"""Sets of slices to be judged, and how they are made ready for a detector."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from oasis_lib.cohort import Split
from oasis_lib.metrics import brain_mask

SCALES = (1, 2, 4, 8)
SIDE = 48  # pixels across a crop, at every scale
NOISE = 1.5  # standard deviation, of 255: hides rounding and flat regions on both sides alike
QUALITY = 90  # of the JPEG step that both sides pass


@dataclass(frozen=True, eq=False)
class Samples:
    """A set of slices to be judged. Without `subjects`, as for generated slices, each slice is a subject of its own."""

    images: np.ndarray  # (N, H, W) uint8, or floats in [0, 1]
    slice_indices: np.ndarray  # (N,) asked for, or drawn; -1 where open
    subjects: np.ndarray | None = None
    raw: np.ndarray | None = None  # (N, features), where these are known already

    @classmethod
    def of(cls, split: Split, rows: np.ndarray | slice = slice(None)) -> Samples:
        """Real slices."""
        return cls(np.asarray(split.images[rows]), split.slice_indices[rows], split.subjects[rows])

    def some(self, rows: np.ndarray) -> Samples:
        """Those rows alone."""
        parts = (self.images, self.slice_indices, self.subjects, self.raw)
        return Samples(*(None if part is None else np.asarray(part)[rows] for part in parts))

    @property
    def groups(self) -> np.ndarray:
        return np.arange(len(self.images)) if self.subjects is None else np.asarray(self.subjects)


def shared_counts(*sides: np.ndarray) -> dict[int, int]:
    """slice index -> how many slices of it every side (an array of slice indices) can give."""
    counts = [dict(zip(*np.unique(side, return_counts=True))) for side in sides]
    if not (shared := set.intersection(*map(set, counts))):
        raise ValueError("samples and cohort have no slice index in common; draw samples with `slice_index=`")
    return {int(index): int(min(count[index] for count in counts)) for index in sorted(shared)}


@dataclass(frozen=True, eq=False)
class Prepared:
    """Slices without cues that are no anatomy, cropped to a common box, one array a scale."""

    scales: dict[int, Tensor]  # scale -> (N, h, w) uint8, at least SIDE x SIDE
    inside: dict[int, Tensor]  # scale -> (N, P) 1 at crop positions with half as much brain as the fullest crop, else 0
    slice_indices: np.ndarray  # (N,)
    subjects: np.ndarray  # (N,)

    def at(self, scale: int, rows: np.ndarray | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Images and crop positions of one scale."""
        return self.scales[scale][rows], self.inside[scale][rows]


def without_cues(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N, H, W) -> uint8: background zero, faint noise inside the brain, one JPEG step."""
    images = images if images.dtype == np.uint8 else (np.clip(images, 0, 1) * 255).round().astype(np.uint8)
    rng, mask, done = np.random.default_rng(seed), brain_mask(images), np.empty_like(images)
    for row, (image, inside) in enumerate(zip(images, mask)):
        noisy = np.where(inside, image + rng.normal(0, NOISE, image.shape), 0)
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
        done[row] = np.where(inside, np.maximum(np.asarray(Image.open(file)), 1), 0)
    return done


def prepare(samples: Samples, box: tuple[slice, slice], scales: Sequence[int], device: str = "cpu") -> Prepared:
    """Scales are area averages of the cropped slices, rounded to 8 bits."""
    subjects = np.array([f"generated {row}" for row in range(len(samples.images))])
    subjects = subjects if samples.subjects is None else np.asarray(samples.subjects)
    clean = without_cues(np.asarray(samples.images))[:, box[0], box[1]]
    full, found, inside = torch.from_numpy(np.ascontiguousarray(clean)).to(device)[:, None], {}, {}
    for scale in scales:
        small = torch.cat([F.avg_pool2d(part.float(), scale).round().to(torch.uint8)[:, 0] for part in full.split(64)])
        down, across = (max(0, SIDE - side) for side in small.shape[1:])
        found[scale] = F.pad(small, [across // 2, across - across // 2, down // 2, down - down // 2])
        share = F.avg_pool2d((found[scale] > 0).float()[:, None], SIDE, _stride(found[scale])).flatten(1)
        inside[scale] = (share >= 0.5 * share.amax(1, keepdim=True)).float()
    return Prepared(found, inside, np.asarray(samples.slice_indices), subjects)


def _stride(images: Tensor) -> int:
    return max(1, (min(images.shape[1:]) - SIDE) // 8)


def crops_of(images: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """(B, 1, SIDE, SIDE) in [0, 1]: the crop of image `rows[i]` at position `places[i]`."""
    stride = _stride(images)
    across = (images.shape[2] - SIDE) // stride + 1
    reach = torch.arange(SIDE, device=images.device)
    down, right = (places // across * stride)[:, None] + reach, (places % across * stride)[:, None] + reach
    return (images[rows[:, None, None], down[:, :, None], right[:, None, :]].float() / 255)[:, None]
