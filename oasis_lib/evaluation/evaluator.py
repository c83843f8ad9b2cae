"""Measures of generated slices, each beside real-vs-real, at equal numbers of slices of each slice index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from scipy.stats import t

from oasis_lib.cohort import Cohort
from oasis_lib.config import EvaluationConfig
from oasis_lib.evaluation import anatomy, distances, features
from oasis_lib.evaluation.features import Samples, shared_counts
from oasis_lib.storage import fingerprint, kept_arrays
from oasis_lib.training import codes_of, decode_codes

FEWEST = 4  # slices of a set: fewer have no covariance
SHARES = ("precision", "recall", "slice_index_within_one", "memorised")  # first words of measures in [0, 1]


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of each slice of a set."""

    points: np.ndarray  # (N, components) features
    areas: np.ndarray  # (N, 4) percent of the frame
    slice_index_errors: np.ndarray  # (N,)
    near: dict[str, distances.Nearest]  # in pixels and in features
    relative: dict[str, np.ndarray]  # (N,) distance to the nearest training slice over the median of held-out subjects


class Evaluator:
    """`measure` compares sets with the real subjects of `split`: "test", or "validate" while settings are being chosen.

    Features are fitted on one half of the training subjects; the other half is the real-vs-real baseline. With the
    `vqvae` that samples come from, the memorisation audit sees real subjects through its tokens, as samples are seen.
    """

    def __init__(
        self,
        cohort: Cohort,
        config: EvaluationConfig | None = None,
        *,
        device: str = "cpu",
        cache: str | Path | None = None,
        split: str = "test",
        vqvae: Any | None = None,
    ):
        self.cohort, self.config, self.device, self.vqvae = cohort, config or EvaluationConfig(), str(device), vqvae
        self.split, self.real = split, cohort[split]
        train, seed, steps = cohort["train"], self.config.seed, self.config.feature_steps
        subjects = np.unique(train.subjects)
        if len(subjects) < 4 or not len(self.real):
            raise ValueError(f"{cohort.folder}: an evaluation needs at least 4 training subjects and 1 in {split}")
        half = np.random.default_rng(seed).permutation(subjects)[: len(subjects) // 2]
        fitted = np.isin(train.subjects, half)
        self.fit_rows, self.baseline_rows = np.flatnonzero(fitted), np.flatnonzero(~fitted)
        self.cache = Path(cache) / "features" if cache else None
        key = {"cohort": cohort.hash, "features": features.VERSION, "steps": steps, "seed": seed}
        self.network = features.cached_network(self.cache, key, self._train_network)
        self.key = key | {"network": fingerprint(self.network)}
        self.raw = {name: self._of_subjects(name) for name in sorted({"train", "validate", "test", split})}
        self.space = features.Space.fit(self.raw["train"][self.fit_rows], self.config.components)
        self.real_points = self.space.project(self.raw[split])
        baseline = Samples.of(train, self.baseline_rows)
        self.baseline = replace(baseline, raw=self.raw["train"][self.baseline_rows])
        self.thumbnails = distances.shrink(train.images, self.device)
        self.mixture = anatomy.Mixture.fit(train.images, seed)
        self.real_areas = self.mixture.areas(np.asarray(self.real.images))
        self.real_similarity = self._similarity(self.real.images, self.real.slice_indices, self.real.subjects)
        self._known: WeakKeyDictionary[Samples, Seen] = WeakKeyDictionary()

    def _train_network(self) -> features.FeatureNet:
        options = {"steps": self.config.feature_steps, "seed": self.config.seed, "device": self.device}
        return features.train_network(Samples.of(self.cohort["train"], self.fit_rows), **options)

    def _of_subjects(self, name: str) -> np.ndarray:
        images = self.cohort[name].images
        return kept_arrays(self.cache, f"subjects-{name}", self.key, lambda: {"raw": self.extract(images)})["raw"]

    def extract(self, images: np.ndarray) -> np.ndarray:
        return features.extract(self.network, images, self.device)

    def _similarity(self, images: np.ndarray, slice_indices: np.ndarray, subjects: np.ndarray) -> pd.DataFrame:
        options = {"seed": self.config.seed, "device": self.device}
        return distances.pairwise_similarity(images, slice_indices, subjects, **options)

    @cached_property
    def reader(self) -> anatomy.SliceIndexRegressor | None:
        """None where the cohort knows no slice indices."""
        train = self.cohort["train"]
        if self.cohort.slice_indices < 2 or train.slice_indices.min() < 0:
            return None
        seen = np.concatenate([self.raw["train"], self.thumbnails], 1)
        return anatomy.SliceIndexRegressor(seen, train.slice_indices, train.subjects)

    def slice_index_errors(self, samples: Samples, raw: np.ndarray) -> np.ndarray:
        """(N,) distance of the slice index read from the one asked for; NaN where none can be read."""
        if self.reader is None:
            return np.full(len(samples.images), np.nan)
        seen = np.concatenate([raw, distances.shrink(samples.images, self.device)], 1)
        return np.abs(self.reader.read(seen, samples.subjects) - samples.slice_indices)

    @cached_property
    def audit(self) -> tuple[dict[str, np.ndarray], dict[str, distances.Calibration]]:
        """Training slices in pixels and in features, and the distances of held-out subjects from them.

        Both through the tokens: a copy is as blurred as any decoded slice, and would lie far from its original.
        """
        bank, held = self._audited("train"), [self._audited(name) for name in ("validate", "test")]
        slice_indices = np.concatenate([self.cohort[name].slice_indices for name in ("validate", "test")])
        lines = {}
        for where in bank:
            found = self._nearest(np.concatenate([one[where] for one in held]), where, bank[where])
            lines[where] = distances.Calibration(found, slice_indices)
        return bank, lines

    def _audited(self, name: str) -> dict[str, np.ndarray]:
        def look() -> dict[str, np.ndarray]:
            images, raw = self.cohort[name].images, self.raw[name]
            if self.vqvae is not None:
                images = decode_codes(self.vqvae, codes_of(self.vqvae, self.cohort, name, self.device), self.device)
                raw = self.extract(images)
            thumbnails = distances.thumbnails(images, device=self.device)
            return {"pixels": thumbnails.astype(np.float16), "features": raw}

        key = self.key | {"vqvae": self.vqvae and fingerprint(self.vqvae)}
        kept = kept_arrays(self.cache, f"audit-{name}", key, look)
        return kept | {"features": self.space.project(kept["features"])}

    def _nearest(self, points: np.ndarray, where: str, bank: np.ndarray, own: Any = None) -> distances.Nearest:
        flip = where == "pixels" and self.cohort.info.get("left_right")
        mirror = distances.mirrored(points) if flip else None
        return distances.nearest(points, bank, self.cohort["train"].subjects, mirror, own)

    def look(self, samples: Samples) -> Seen:
        """Computed once a set."""
        if samples not in self._known:
            raw, (bank, lines) = self.extract(samples.images) if samples.raw is None else samples.raw, self.audit
            points = self.space.project(raw)
            query = {"pixels": distances.thumbnails(samples.images, device=self.device), "features": points}
            near = {where: self._nearest(query[where], where, bank[where], samples.subjects) for where in query}
            relative = {where: lines[where].relative(near[where], samples.slice_indices) for where in near}
            areas, errors = self.mixture.areas(np.asarray(samples.images)), self.slice_index_errors(samples, raw)
            self._known[samples] = Seen(points, areas, errors, near, relative)
        return self._known[samples]

    def counts(self, *sets: Samples) -> dict[int, int]:
        """Slices of each slice index that all sets, the baseline and the real subjects have."""
        counts = shared_counts(
            *(one.slice_indices for one in sets), self.real.slice_indices, self.baseline.slice_indices
        )
        if (total := sum(counts.values())) < FEWEST:
            where = f"slice indices {sorted(counts)}, where {self.cohort.who(self.split)} are few"
            raise ValueError(f"{total} slices of a set can be compared, {FEWEST} are needed: all are at {where}")
        return counts

    def measure(self, samples: Samples, counts: dict[int, int] | None = None) -> dict[str, Any]:
        """All measures of one set, each with the ends of its 95 % interval: one flat dict of numbers."""
        rng, counts = np.random.default_rng(self.config.seed), counts or self.counts(samples)
        ours, theirs = (pick_rows(side.slice_indices, counts, rng) for side in (samples, self.real))
        images, real, seen = np.asarray(samples.images[ours]), self.real_similarity, self.look(samples)
        alike = self._similarity(images, samples.slice_indices[ours], samples.groups[ours])
        alike[["first", "second"]] = ours[alike[["first", "second"]].to_numpy(int)]

        def numbers(mine: np.ndarray, others: np.ndarray) -> dict[str, float]:
            pairs = similarity_gap(_among(alike, mine), _among(real, others) if len(others) < len(theirs) else real)
            return self._numbers(seen, samples, mine, others) | pairs

        found, half = numbers(ours, theirs), self._half_widths(numbers, samples.groups, ours, theirs)
        ends = {f"{name}_low": float(np.maximum(0, found[name] - reach)) for name, reach in half.items()}
        most = {name: 1.0 if name.startswith(SHARES) else np.inf for name in half}
        ends |= {f"{name}_high": float(np.minimum(most[name], found[name] + reach)) for name, reach in half.items()}
        some = images[:: max(1, len(images) // 100)]  # the earlier projects' count: best SSIM to a training slice > 0.6
        best, _ = distances.best_ssim(some, self.cohort["train"].images, self.thumbnails, device=self.device)
        count = {"seeds_count": float((best > distances.SEEDS_LINE).mean()), "seeds_best": float(best.max())}
        return {"slices": len(ours)} | found | count | ends

    def _numbers(self, seen: Seen, samples: Samples, ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
        points, real = seen.points[ours], self.real_points[theirs]
        found = {"frechet": distances.frechet(points, real)}
        sides = real, points, self.real.subjects[theirs], samples.groups[ours]
        found |= distances.manifold(*sides, self.config.neighbours)
        errors = seen.slice_index_errors[ours]
        if self.reader:
            found |= {"slice_index_within_one": float((errors < 1.5).mean()), "slice_index_error": float(errors.mean())}
        sides = seen.areas[ours], samples.slice_indices[ours], self.real_areas[theirs], self.real.slice_indices[theirs]
        apart = anatomy.area_distance(*sides)
        found |= {"tissue_distance": float(apart[:3].mean()), "ventricle_distance": float(apart[3])}
        for where, line in self.audit[1].items():
            found[f"memorised_{where}"] = float((seen.relative[where][ours] < line.line).mean())
        return found

    def _half_widths(self, numbers: Callable, subjects: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> dict:
        """Half of each 95 % interval: a jackknife that leaves out a tenth of the subjects at a time, on both sides."""
        parts = min(10, len(np.unique(self.real.subjects[theirs])), len(np.unique(subjects[ours])))
        if parts < 2:
            return dict.fromkeys(numbers(ours, theirs), float("nan"))
        rng = np.random.default_rng(self.config.seed)
        mine, others = parted([subjects[ours], self.real.subjects[theirs]], parts, rng)
        rows = pd.DataFrame([numbers(ours[mine != part], theirs[others != part]) for part in range(parts)])
        errors = np.sqrt((parts - 1) / parts * ((rows - rows.mean()) ** 2).sum(skipna=False))
        return (t.ppf(0.975, parts - 1) * errors).to_dict()

    def extremes(self, samples: Samples, where: str = "pixels", count: int = 6, farthest: bool = False) -> pd.DataFrame:
        """The samples nearest to (or farthest from) a training slice, for their slice index; with that slice's row."""
        seen = self.look(samples)
        rows = (-seen.relative[where] if farthest else seen.relative[where]).argsort()[:count]
        train, relative = seen.near[where].index[rows], seen.relative[where][rows]
        return pd.DataFrame({"sample": rows, "train": train, "relative": relative})

    def real_errors(self) -> dict[str, float]:
        """Errors of the instruments: the slice-index reader on real subjects, the tissue classes against truth."""
        errors, found = self.slice_index_errors(Samples.of(self.real), self.raw[self.split]), {}
        if self.reader:
            found = {"slice_index_within_one": float((errors < 1.5).mean()), "slice_index_error": float(errors.mean())}
        truth = anatomy.segmentation_error(self.mixture, self.real) if self.real.tissue is not None else {}
        return found | truth


def similarity_gap(alike: pd.DataFrame, real: pd.DataFrame) -> dict[str, float]:
    """Mean MS-SSIM of pairs of different subjects, and its distance from real pairs', over shared slice indices."""
    ours, theirs = (side.groupby("slice_index")["ms_ssim"].mean() for side in (alike, real))
    shared = ours.index.intersection(theirs.index)
    gap = float((ours[shared] - theirs[shared]).abs().mean()) if len(shared) else float("nan")
    return {"ms_ssim": float(ours[shared].mean()), "ms_ssim_gap": gap}


def _among(pairs: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    return pairs[pairs["first"].isin(rows) & pairs["second"].isin(rows)]


def parted(sides: list[np.ndarray], parts: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Which of `parts` equal parts each row's subject belongs to; subjects keep their part on both sides."""
    part: dict[Any, int] = {}
    for subjects in sides:
        fresh = rng.permutation([name for name in np.unique(subjects) if name not in part])
        part |= {name: number % parts for number, name in enumerate(fresh)}
    return [np.array([part[name] for name in subjects]) for subjects in sides]


def pick_rows(slice_indices: np.ndarray, counts: dict[int, int], rng: np.random.Generator) -> np.ndarray:
    """Rows with exactly `counts` slices of each slice index, without replacement where there are enough."""
    chosen = []
    for index, count in counts.items():
        pool = np.flatnonzero(slice_indices == index)
        if len(pool):
            chosen.append(rng.choice(pool, count, replace=len(pool) < count))
    return np.sort(np.concatenate(chosen))
