"""Distances between two sets of features, and the similarity of slices within one set."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from oasis_lib.evaluation.features import to_tensor
from oasis_lib.metrics import batch_size_for, ms_ssim


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
