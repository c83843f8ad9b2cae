"""Distances of two sets, similarity in one, and memorisation: calibrated distances to the nearest training slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from oasis_lib.evaluation.features import to_tensor
from oasis_lib.metrics import batch_size_for, ms_ssim, ssim

SEEDS_LINE = 0.6  # SSIM above which the earlier projects counted a sample as a brain


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^1/2) of two normal fits; (n, d) each (Heusel et al. 2017).

    It grows as n falls: compare equal n only.
    """
    values, vectors = np.linalg.eigh(np.cov(a, rowvar=False))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ np.cov(b, rowvar=False) @ root), 0)).sum()
    spread = a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + spread - 2 * shared)


def manifold(
    real: np.ndarray, fake: np.ndarray, real_subjects: np.ndarray, fake_subjects: np.ndarray, neighbours: int = 5
) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), by subject.

    A slice's radius reaches its k-th nearest slice of *another* subject: neighbouring slices of one brain are
    near-copies, and would shrink every ball to one brain.
    """
    real_radius, fake_radius = (_radius(x, p, neighbours) for x, p in ((real, real_subjects), (fake, fake_subjects)))
    between = pairwise(real, fake)
    precision, recall = (between <= real_radius[:, None]).any(0).mean(), (between <= fake_radius).any(1).mean()
    return {"precision": float(precision), "recall": float(recall)}


def _radius(points: np.ndarray, subjects: np.ndarray, k: int) -> np.ndarray:
    distance = pairwise(points, points)
    distance[subjects[:, None] == subjects] = np.inf
    distance.sort(axis=1)
    others = np.isfinite(distance).sum(1)
    return distance[np.arange(len(points)), np.clip(others, 1, k) - 1]


def pairwise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances (len(a), len(b)), by one matrix product."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


@torch.no_grad()
def pairwise_similarity(
    images: np.ndarray,
    slice_indices: np.ndarray,
    subjects: np.ndarray,
    pairs: int = 8,
    seed: int = 0,
    device: str = "cpu",
) -> pd.DataFrame:
    """MS-SSIM of pairs of different subjects, so many a slice index: slice index, both rows, value.

    The aim is the value of real pairs, not the lowest one.
    """
    rng, chosen = np.random.default_rng(seed), []
    for slice_index in np.unique(slice_indices):
        rows = np.flatnonzero(slice_indices == slice_index)
        for _ in range(pairs):
            a = rng.choice(rows)
            others = rows[subjects[rows] != subjects[a]]
            if len(others):
                chosen.append((slice_index, a, rng.choice(others)))
    slice_index, first, second = np.array(chosen, int).reshape(-1, 3).T
    values, few = [np.empty(0)], batch_size_for(images[0].size, device)
    for start in range(0, len(slice_index), few):
        sides = (to_tensor(images[rows[start : start + few]], device) for rows in (first, second))
        values.append(ms_ssim(*sides).cpu().numpy())
    table = {"slice_index": slice_index, "first": first, "second": second}
    return pd.DataFrame(table | {"ms_ssim": np.concatenate(values)})


@dataclass(frozen=True)
class Nearest:
    index: np.ndarray  # (N,) of the nearest training slice
    distance: np.ndarray  # (N,)


def thumbnails(images: np.ndarray, side: int = 64, device: str = "cpu") -> np.ndarray:
    """(N, side * side): brains centred, shrunk, of equal brightness and contrast, so that these hide no copy."""
    done, few = [], batch_size_for(images[0].size, device)
    for start in range(0, len(images), few):
        x = to_tensor(images[start : start + few], device)[:, 0]
        size = x.shape[-1]
        place = torch.arange(size, device=x.device) - (size - 1) / 2
        mass = x.sum((1, 2)).clamp(min=1e-6)
        rows, columns = ((x.sum(axis) * place).sum(1) / mass for axis in (2, 1))
        across, down = (place + columns[:, None]) * 2 / size, (place + rows[:, None]) * 2 / size
        grid = torch.stack(torch.broadcast_tensors(across[:, None], down[:, :, None]), -1)  # (B, size, size, 2)
        small = F.adaptive_avg_pool2d(F.grid_sample(x[:, None], grid, align_corners=False), side).flatten(1)
        small = small - small.mean(1, keepdim=True)
        done.append(F.normalize(small, eps=1e-6).cpu())
    return torch.cat(done).numpy()


def mirrored(thumbs: np.ndarray) -> np.ndarray:
    side = round(thumbs.shape[1] ** 0.5)
    return thumbs.reshape(-1, side, side)[:, :, ::-1].reshape(len(thumbs), -1)


def nearest(
    points: np.ndarray,
    bank: np.ndarray,
    subjects: np.ndarray,
    mirror: np.ndarray | None = None,
    own: np.ndarray | None = None,
) -> Nearest:
    """The nearest of a bank of training slices, whose subjects are given, for each point.

    `mirror` holds the points left for right, tried as well. `own` are the points' subjects where these are known:
    training subjects are not compared with themselves.
    """
    bank = bank.astype(np.float32)
    sides = [pairwise(side.astype(np.float32), bank) for side in (points, mirror) if side is not None]
    distance = np.minimum.reduce(sides)
    if own is not None:
        distance[np.asarray(own)[:, None] == subjects] = np.inf
    index = distance.argmin(1)
    return Nearest(index, distance[np.arange(len(points)), index])


class Calibration:
    """The first percentile of held-out subjects' distances, each relative to the median at its slice index."""

    def __init__(self, held_out: Nearest, slice_indices: np.ndarray):
        self.usual = pd.Series(held_out.distance).groupby(slice_indices).median().to_dict()
        self.all = float(np.median(held_out.distance))
        self.line = float(np.quantile(self.relative(held_out, slice_indices), 0.01))

    def relative(self, found: Nearest, slice_indices: np.ndarray) -> np.ndarray:
        return found.distance / np.array([self.usual.get(index, self.all) for index in slice_indices])


@torch.no_grad()
def best_ssim(
    images: np.ndarray, bank: np.ndarray, thumbnails: np.ndarray, *, candidates: int = 3, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Each image's highest full-frame SSIM to a training slice, and that slice's row.

    SSIM is computed with the nearest `candidates` on the `thumbnails` of the bank (see `shrink`).
    """
    order = pairwise(shrink(images, device), thumbnails).argsort(1)[:, :candidates]
    scores, few = np.full(order.shape, -1.0), batch_size_for(images[0].size, device)
    for start in range(0, len(images), few):
        part = slice(start, start + few)
        x = to_tensor(images[part], device)
        for column, rows in enumerate(order[part].T):
            scores[part, column] = ssim(x, to_tensor(bank[rows], device)).cpu().numpy()
    rows, best = np.arange(len(images)), scores.argmax(1)
    return scores[rows, best], order[rows, best]


def shrink(images: np.ndarray, device: str = "cpu") -> np.ndarray:
    """(N, 1024): to 32 x 32 pixels."""
    few = batch_size_for(images[0].size, device)
    chunks = (to_tensor(images[i : i + few], device) for i in range(0, len(images), few))
    return torch.cat([F.adaptive_avg_pool2d(chunk, 32).flatten(1).cpu() for chunk in chunks]).numpy()
