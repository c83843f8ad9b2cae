"""Many dimensions drawn in two: UMAP (seeded) or PCA, and how well neighbours are kept."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from sklearn.manifold import trustworthiness

FEW = 16  # distinct points below which UMAP's neighbourhoods mean nothing, and PCA answers


@dataclass(frozen=True)
class Projection:
    points: np.ndarray  # (n, 2) float32
    method: str  # "UMAP" or "PCA": what was really used
    kept: float  # share of the variance, PCA only; else nan
    trustworthiness: float  # 1: every neighbour in the plane is a neighbour in truth; 0.5: chance


def project(points: np.ndarray, method: str = "UMAP", *, seed: int = 0, neighbours: int = 15) -> Projection:
    """`points` (n, d) in the plane; PCA where UMAP is missing or has too few points.

    UMAP compiles for about 20 s in each kernel; a codebook then takes less than a second, 4,000 points a minute.
    """
    points = np.ascontiguousarray(points, dtype=np.float32)
    if points.ndim != 2 or not len(points):
        raise ValueError(f"points to project must be an array (n, d) with n > 0, not {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError(f"{(~np.isfinite(points)).any(1).sum()} of {len(points)} points to project are not finite")
    if method not in ("UMAP", "PCA"):
        raise ValueError(f"projection {method!r} must be 'UMAP' or 'PCA'")
    kept, neighbours = float("nan"), min(neighbours, len(points) - 1)
    if method == "PCA" or len(np.unique(points, axis=0)) < FEW or find_spec("umap") is None:
        method, flat, kept = "PCA", *_pca(points)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import umap  # compiles for seconds: imported here and nowhere else

            # From PCA: no eigenvectors to fail. One job is what a seed demands; unsaid, it warns.
            options = {"n_neighbors": neighbours, "n_epochs": 200, "init": "pca", "n_jobs": 1, "random_state": seed}
            flat = np.asarray(umap.UMAP(**options).fit_transform(points), dtype=np.float32)
    few = min(12, len(points) // 2 - 1)
    return Projection(flat, method, kept, float(trustworthiness(points, flat, n_neighbors=few)) if few > 0 else np.nan)


def _pca(points: np.ndarray) -> tuple[np.ndarray, float]:
    left, sizes, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    flat = np.zeros((len(points), 2), dtype=np.float32)
    flat[:, : len(sizes)] = (left * sizes)[:, :2]
    total = float((sizes**2).sum())
    return flat, float((sizes[:2] ** 2).sum()) / total if total > 0 else 1.0
