"""Distances between two sets of features, written out plainly so that anyone can recompute them. None of them is FID."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^1/2) of two normal fits; (n, d) each. It grows as n falls: compare equal n only."""
    root = _root(np.cov(a, rowvar=False))
    inner = np.linalg.eigvalsh(root @ np.cov(b, rowvar=False) @ root)
    shared = np.sqrt(np.maximum(inner, 0)).sum()
    spread = a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + spread - 2 * shared)


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy, kernel (x.y / d + 1)^3 (Binkowski et al. 2018); may fall below zero."""
    n, m = len(a), len(b)
    aa, bb, ab = (((x @ y.T) / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = (aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1))
    return float(within - 2 * ab.mean())


def manifold(
    real: np.ndarray, fake: np.ndarray, real_people: np.ndarray, fake_people: np.ndarray | None = None, neighbours: int = 5
) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), by person.

    A slice's radius reaches its k-th nearest slice of *another* person: a head's neighbouring slices are near-copies, and
    would shrink every ball to one head. Generated slices count as one person each unless `fake_people` says otherwise.
    """
    fake_people = np.arange(len(fake)) if fake_people is None else fake_people
    real_radius, fake_radius = (_radius(x, p, neighbours) for x, p in ((real, real_people), (fake, fake_people)))
    between = pairwise(real, fake)  # (real, fake)
    inside = between <= real_radius[:, None]
    return {
        "precision": float(inside.any(0).mean()),
        "recall": float((between <= fake_radius[None]).any(1).mean()),
        "density": float(inside.sum(0).mean() / neighbours),
        "coverage": float(inside.any(1).mean()),
    }


def _radius(points: np.ndarray, people: np.ndarray, k: int) -> np.ndarray:
    distance = pairwise(points, points)
    distance[np.asarray(people)[:, None] == np.asarray(people)[None]] = np.inf
    distance.sort(axis=1)
    others = np.isfinite(distance).sum(1)
    return distance[np.arange(len(points)), np.clip(others, 1, k) - 1]


def pairwise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances (len(a), len(b))."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def jackknife(without: Callable[[int], Sequence[float]], parts: int) -> np.ndarray:
    """Standard errors of the numbers that `without(part)` gives when one of so many equal parts is left out."""
    found = np.array([without(part) for part in range(parts)])
    return np.sqrt((parts - 1) / parts * ((found - found.mean(0)) ** 2).sum(0))


def two_sample(
    real: np.ndarray, fake: np.ndarray, real_people: np.ndarray, fake_people: np.ndarray, *, repeats: int = 500, seed: int = 0
) -> tuple[float, float, float]:
    """How often a classifier tells fake from real, held out by person on both sides; 0.5 is chance. Interval: over people."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.concatenate([real, fake])
    y = np.repeat([0, 1], [len(real), len(fake)])
    groups = np.concatenate([[f"real {p}" for p in real_people], [f"fake {p}" for p in fake_people]])
    right = np.zeros(len(x))
    fold = np.concatenate([_folds(real_people, GroupKFold), _folds(fake_people, GroupKFold)])
    for number in range(fold.max() + 1):
        train, test = fold != number, fold == number
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.02, class_weight="balanced", max_iter=300))
        right[test] = model.fit(x[train], y[train]).predict(x[test]) == y[test]
    rng, sides = np.random.default_rng(seed), []
    for side in (0, 1):
        _, person = np.unique(groups[y == side], return_inverse=True)
        sums, counts = np.bincount(person, right[y == side]), np.bincount(person)
        draws = rng.integers(len(sums), size=(repeats, len(sums)))
        sides.append(sums[draws].sum(1) / counts[draws].sum(1))
    low, high = np.quantile((sides[0] + sides[1]) / 2, [0.025, 0.975])
    accuracy = (right[y == 0].mean() + right[y == 1].mean()) / 2
    return float(accuracy), float(low), float(high)


def _folds(people: np.ndarray, splitter, folds: int = 5) -> np.ndarray:
    """The fold of each row, whole people together."""
    fold = np.zeros(len(people), int)
    count = min(folds, len(np.unique(people)))
    if count < 2:
        raise ValueError(f"a two-sample test held out by person needs at least two people, not {count}")
    for number, (_, test) in enumerate(splitter(count).split(people, groups=people)):
        fold[test] = number
    return fold
