"""Anatomy of slices: tissue areas by an intensity mixture, and the slice index that a slice looks like."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from oasis_lib.cohort import Split
from oasis_lib.metrics import brain_mask

TISSUES = ("csf", "grey", "white")
AREAS = (*TISSUES, "ventricles")
DEEP = 0.11  # CSF farther from the brain's edge than this share of the frame's width counts as ventricle


@dataclass(frozen=True)
class Mixture:
    """Three normals over the intensities of the brain, relative to each slice's own white matter."""

    cuts: tuple[float, float]  # CSF | grey | white

    @classmethod
    def fit(cls, images: np.ndarray, seed: int = 0) -> Mixture:
        from sklearn.mixture import GaussianMixture

        rng = np.random.default_rng(seed)
        images = np.asarray(images[np.sort(rng.choice(len(images), min(len(images), 200), replace=False))])
        values = (images / whites(images)[:, None, None])[brain_mask(images)]
        values = rng.choice(values, min(len(values), 40_000), replace=False)
        start = np.quantile(values, [0.08, 0.4, 0.8])[:, None]
        model = GaussianMixture(3, means_init=start, random_state=seed).fit(values[:, None])
        order = np.argsort(model.means_[:, 0])
        grid = np.linspace(*model.means_[order[[0, 2]], 0], 500)
        label = np.argsort(order)[model.predict(grid[:, None])]
        return cls((float(grid[label >= 1][0]), float(grid[label >= 2][0])))

    def segment(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W) -> 0 background, 1 CSF, 2 grey, 3 white matter."""
        white = whites(images)[:, None, None]
        return brain_mask(images) * (1 + sum(np.uint8(images >= cut * white) for cut in self.cuts))

    def areas(self, images: np.ndarray) -> np.ndarray:
        """(N, 4) percent of the frame, as in AREAS."""
        parts = np.array_split(images, max(1, len(images) // 64))
        with ThreadPoolExecutor() as pool:
            return np.concatenate(list(pool.map(lambda part: measure_areas(self.segment(part)), parts)))


def whites(images: np.ndarray) -> np.ndarray:
    """(N,) the 0.9 quantile of each slice's brain: intensities over that do not depend on a scan's gain."""
    threshold = 10 if images.dtype == np.uint8 else 10 / 255
    lit = (image[image > threshold] for image in images)
    return np.array([np.quantile(values, 0.9) if values.size else 1.0 for values in lit])


def measure_areas(tissue: np.ndarray) -> np.ndarray:
    """(N, 4) areas of a segmentation (N, H, W), in percent of the frame."""
    from scipy.ndimage import distance_transform_edt

    size = tissue.shape[-1]
    step = max(1, size // 64)  # depth needs no finer grid
    depth = np.stack([distance_transform_edt(t[::step, ::step] > 0) * step for t in tissue])
    deep = (depth > DEEP * size).repeat(step, 1).repeat(step, 2)[:, : tissue.shape[1], :size]
    parts = [tissue == 1, tissue == 2, tissue == 3, (tissue == 1) & deep]
    return 100 * np.stack([part.mean((1, 2)) for part in parts], axis=1)


def segmentation_error(mixture: Mixture, split: Split, most: int = 200) -> dict[str, float]:
    """Against a cohort's ground truth: Dice of each tissue, and each area's mean error relative to its mean."""
    rows = np.linspace(0, len(split) - 1, min(most, len(split))).astype(int)
    truth, found = np.asarray(split.tissue[rows]), mixture.segment(np.asarray(split.images[rows]))
    true_area, area, errors = measure_areas(truth), measure_areas(found), {}
    for label, name in enumerate(TISSUES, 1):
        a, b = truth == label, found == label
        errors[f"dice_{name}"] = float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))
    apart = np.abs(area - true_area).mean(0) / np.maximum(true_area.mean(0), 1e-6)
    return errors | {f"area_error_{name}": float(error) for name, error in zip(AREAS, apart)}


def area_distance(areas: np.ndarray, indices: np.ndarray, real: np.ndarray, real_indices: np.ndarray) -> np.ndarray:
    """(4,): Wasserstein distance of each area, mean over slice indices, relative to the real mean."""
    from scipy.stats import wasserstein_distance

    found = []
    for index in np.intersect1d(indices, real_indices):
        ours, theirs = areas[indices == index], real[real_indices == index]
        found.append([wasserstein_distance(a, b) for a, b in zip(ours.T, theirs.T)])
    return np.mean(found, axis=0) / np.maximum(real.mean(0), 1e-6)


class SliceIndexRegressor:
    """Kernel ridge regression of the slice index on features of training subjects, in folds of subjects.

    A training subject is read by the one model that has not seen that subject, every other by the models' mean.
    """

    def __init__(self, features: np.ndarray, slice_indices: np.ndarray, subjects: np.ndarray, folds: int = 4):
        from sklearn.kernel_ridge import KernelRidge

        self.mean, spread = features.mean(0), features.std(0)
        self.scale = np.maximum(spread, 0.1 * np.median(spread[spread > 0])) * np.sqrt(features.shape[1])
        self.middle, self.last, names = slice_indices.mean(), slice_indices.max(), np.unique(subjects)
        self.fold = {name: i % folds for i, name in enumerate(np.random.default_rng(0).permutation(names))}
        fold, scaled, self.models = np.array([self.fold[name] for name in subjects]), self._scaled(features), []
        for number in range(min(folds, len(names))):
            rows = np.flatnonzero(fold != number)[:: max(1, len(features) // 4000)]
            model = KernelRidge(kernel="rbf", gamma=0.04, alpha=0.003)
            self.models.append(model.fit(scaled[rows], slice_indices[rows] - self.middle))

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) / self.scale

    def read(self, features: np.ndarray, subjects: np.ndarray | None = None) -> np.ndarray:
        """(N, features) -> (N,) slice indices, not rounded."""
        scaled = self._scaled(features)
        each = np.stack([model.predict(scaled) for model in self.models])  # (folds, N)
        found = each.mean(0)
        for row, name in enumerate([] if subjects is None else subjects):
            if name in self.fold:
                found[row] = each[self.fold[name], row]
        return np.clip(found + self.middle, 0, self.last)
