"""Has a prior learned subjects by heart? Distances to the nearest training slice, calibrated on subjects held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from oasis_lib.evaluation.features import to_tensor
from oasis_lib.metrics import batch_size_for, ssim

SEEDS_LINE = 0.6  # SSIM above which earlier work counted a sample as a brain


@dataclass(frozen=True)
class Nearest:
    index: np.ndarray  # (N,) of the nearest training slice
    distance: np.ndarray  # (N,)
    ratio: np.ndarray  # (N,) that distance over the nearest slice of any other subject: a copy stands out, a bland slice doesn't


def thumbnails(images: np.ndarray, side: int = 64, device: str = "cpu") -> np.ndarray:
    """(N, side * side): brains moved to the middle, shrunk, brightness and contrast taken out, so that no shift hides a copy."""
    done, few = [], batch_size_for(images[0].size, device)
    for start in range(0, len(images), few):
        x = to_tensor(images[start : start + few], device)[:, 0]
        size = x.shape[-1]
        place = torch.arange(size, device=x.device) - (size - 1) / 2
        mass = x.sum((1, 2)).clamp(min=1e-6)
        rows, columns = ((x.sum(axis) * place).sum(1) / mass for axis in (2, 1))
        across, down = (place + columns[:, None]) * 2 / size, (place + rows[:, None]) * 2 / size
        grid = torch.stack(torch.broadcast_tensors(across[:, None], down[:, :, None]), -1)  # (B, size, size, 2) in [-1, 1]
        small = F.adaptive_avg_pool2d(F.grid_sample(x[:, None], grid, align_corners=False), side).flatten(1)
        small = small - small.mean(1, keepdim=True)
        done.append((small / small.norm(dim=1, keepdim=True).clamp(min=1e-6)).cpu())
    return torch.cat(done).numpy()


def mirrored(thumbs: np.ndarray) -> np.ndarray:
    side = int(round(thumbs.shape[1] ** 0.5))
    return thumbs.reshape(-1, side, side)[:, :, ::-1].reshape(len(thumbs), -1)


def nearest(
    points: np.ndarray,
    bank: np.ndarray,
    subjects: np.ndarray,
    mirror: np.ndarray | None = None,
    own: np.ndarray | None = None,
) -> Nearest:
    """Of each point in a bank of training slices. `mirror` is the points left for right, tried as well.

    `own` is who each point shows, where that is known: real training subjects are not compared with themselves.
    """
    distance = _distances(points, bank)
    if mirror is not None:
        distance = np.minimum(distance, _distances(mirror, bank))
    if own is not None:
        distance[np.asarray(own)[:, None] == subjects[None]] = np.inf
    index = distance.argmin(1)
    best = distance[np.arange(len(points)), index]
    distance[subjects[index][:, None] == subjects[None]] = np.inf
    return Nearest(index, best, best / np.maximum(distance.min(1), 1e-9))


def _distances(points: np.ndarray, bank: np.ndarray) -> np.ndarray:
    points, bank = points.astype(np.float32), bank.astype(np.float32)
    squares = (points**2).sum(1)[:, None] + (bank**2).sum(1)[None] - 2 * points @ bank.T
    return np.sqrt(np.maximum(squares, 1e-12))


class Calibration:
    """The first percentile of held-out subjects' distances, each relative to what is usual at its slice index."""

    def __init__(self, held_out: Nearest, slice_indices: np.ndarray):
        self.usual = {
            slice_index: np.median(held_out.distance[slice_indices == slice_index]) for slice_index in np.unique(slice_indices)
        }
        self.all = float(np.median(held_out.distance))
        self.line = float(np.quantile(self.relative(held_out, slice_indices), 0.01))
        self.ratio_line = float(np.quantile(held_out.ratio, 0.01))

    def relative(self, found: Nearest, slice_indices: np.ndarray) -> np.ndarray:
        return found.distance / np.array([self.usual.get(slice_index, self.all) for slice_index in slice_indices])

    def shares(self, found: Nearest, slice_indices: np.ndarray) -> dict[str, float]:
        """Of slices nearer than 99 % of held-out ones; of slices whose nearest stands out more than for 99 %."""
        near = float((self.relative(found, slice_indices) < self.line).mean())
        return {"memorised": near, "standing_out": float((found.ratio < self.ratio_line).mean())}


@torch.no_grad()
def best_ssim(
    images: np.ndarray, bank: np.ndarray, thumbnails: np.ndarray, *, candidates: int = 3, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Each image's highest full-frame SSIM to a training slice, and which one.

    Coarse to fine: the nearest `candidates` on the `thumbnails` (the bank, shrunk once for all), then SSIM at full size with each.
    """
    order = _distances(shrink(images, device), thumbnails).argsort(1)[:, :candidates]
    best, index, few = np.full(len(images), -1.0), np.zeros(len(images), int), batch_size_for(images[0].size, device)
    for start in range(0, len(images), few):
        rows = np.arange(start, min(start + few, len(images)))
        x = to_tensor(images[rows], device)
        for column in order[rows].T:
            score = ssim(x, to_tensor(bank[column], device)).cpu().numpy()
            better = score > best[rows]
            best[rows[better]], index[rows[better]] = score[better], column[better]
    return best, index


def shrink(images: np.ndarray, device: str = "cpu") -> np.ndarray:
    """(N, 1024): to 32 x 32 pixels."""
    few = batch_size_for(images[0].size, device)
    chunks = [images[i : i + few] for i in range(0, len(images), few)]
    return torch.cat([F.adaptive_avg_pool2d(to_tensor(c, device), 32).flatten(1).cpu() for c in chunks]).numpy()
