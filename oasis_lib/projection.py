"""Many dimensions drawn in two: UMAP (seeded, kept in a file) or PCA, and what either loses."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from oasis_lib.paths import atomic

FEW = 16  # distinct points below which UMAP's neighbourhoods mean nothing, and PCA answers


@dataclass(frozen=True)
class Projection:
    points: np.ndarray  # (n, 2) float32
    method: str  # "UMAP" or "PCA": what was really used
    kept: float  # share of the variance, PCA only; else nan
    notes: tuple[str, ...] = ()  # what UMAP warned of


def project(
    points: np.ndarray,
    method: str = "UMAP",
    *,
    seed: int = 0,
    neighbours: int = 15,
    epochs: int = 200,
    cache: str | Path | None = None,
) -> Projection:
    """`points` (n, d) in the plane; PCA where UMAP is missing or has too little to go by. `cache`: a folder, to do it once."""
    points = np.ascontiguousarray(points, dtype=np.float32)
    if points.ndim != 2 or not len(points):
        raise ValueError(f"points to project must be an array (n, d) with n > 0, not {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError(f"{(~np.isfinite(points)).any(1).sum()} of {len(points)} points to project are not finite")
    if method not in ("UMAP", "PCA"):
        raise ValueError(f"projection {method!r} must be 'UMAP' or 'PCA'")
    if method == "PCA" or len(np.unique(points, axis=0)) < FEW or find_spec("umap") is None:
        return _pca(points)
    if cache is None:
        return _umap(points, seed, neighbours, epochs)
    file = Path(cache) / f"umap-{_hash(points, seed, neighbours, epochs)}.npz"
    if file.is_file():
        with np.load(file) as kept:
            return Projection(kept["points"], "UMAP", float("nan"), tuple(str(note) for note in kept["notes"]))
    made = _umap(points, seed, neighbours, epochs)
    with atomic(file) as beside, open(beside, "wb") as stream:
        np.savez(stream, points=made.points, notes=np.array(made.notes, dtype=str))
    return made


def losses(points: np.ndarray, flat: np.ndarray, entries: int, codes: np.ndarray, seed: int = 0) -> dict[str, float]:
    """What a projection of `entries` codebook vectors and then encoder outputs loses, as two shares kept (1 is nothing lost).

    `trustworthiness`: are neighbours in the plane neighbours in truth? `same_code`: of the outputs, how many still lie nearest to
    the entry that the model gave them (`codes`)?
    """
    from scipy.spatial import cKDTree
    from sklearn.manifold import trustworthiness

    some = np.random.default_rng(seed).permutation(len(points))[:1500]
    neighbours = max(1, min(12, len(some) // 2 - 1))
    nearest = cKDTree(flat[:entries]).query(flat[entries:])[1]
    return {
        "trustworthiness": float(trustworthiness(points[some], flat[some], n_neighbors=neighbours)),
        "same_code": float(np.mean(nearest == codes)) if len(codes) else float("nan"),
    }


def _pca(points: np.ndarray) -> Projection:
    centred = points - points.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    flat = np.zeros((len(points), 2), dtype=np.float32)
    flat[:, : len(sizes)] = (left * sizes)[:, :2]
    total = float((sizes**2).sum())
    return Projection(flat, "PCA", float((sizes[:2] ** 2).sum()) / total if total > 0 else 1.0)


def _umap(points: np.ndarray, seed: int, neighbours: int, epochs: int) -> Projection:
    """umap-learn compiles for some ten seconds in each kernel: imported here and nowhere else."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import umap

        reducer = umap.UMAP(
            n_neighbors=min(neighbours, len(points) - 1),
            n_epochs=epochs,
            init="pca",  # no eigenvectors to fail, and the same layout every time
            random_state=seed,
            n_jobs=1,  # what a seed demands; unsaid, it warns
        )
        flat = reducer.fit_transform(points)
    notes = {str(w.message).splitlines()[0] for w in caught if issubclass(w.category, UserWarning)}
    return Projection(np.asarray(flat, dtype=np.float32), "UMAP", float("nan"), tuple(sorted(notes)))


def _hash(points: np.ndarray, *settings: int) -> str:
    """What the projection depends on: the points, the settings and UMAP's release."""
    from importlib.metadata import version

    digest = hashlib.sha256(points.tobytes())
    digest.update(repr((points.shape, settings, version("umap-learn"))).encode())
    return digest.hexdigest()[:16]
