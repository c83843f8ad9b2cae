"""How good are generated slices? Every measure beside real-vs-real, at equal numbers of slices of each slice index."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from scipy.stats import t

from oasis_lib.evaluation import anatomy, distances, memorisation
from oasis_lib.evaluation.fitted import Fitted, Samples

SHARES = ("precision", "recall", "slice_index_within_one", "memorised", "standing_out")  # how those measures' names begin


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of each slice of a set: looked at once, however many measures ask."""

    points: np.ndarray  # (N, components) features
    areas: np.ndarray  # (N, 4) percent of the frame
    slice_index_errors: np.ndarray  # (N,)
    near: dict[str, memorisation.Nearest]  # in pixels and in features
    relative: dict[str, np.ndarray]  # (N,) distance to the nearest training slice over what is usual for held-out subjects


class Evaluator(Fitted):
    """`measure` for each generator, against the real subjects of `split`."""

    @cached_property
    def _known(self) -> WeakKeyDictionary[Samples, Seen]:
        return WeakKeyDictionary()

    def look(self, samples: Samples) -> Seen:
        if samples not in self._known:
            raw = self.extract(samples.images) if samples.raw is None else samples.raw
            near = self.nearest(samples, raw)
            lines = self.audit["lines"]
            self._known[samples] = Seen(
                self.space.project(raw),
                self.mixture.areas(np.asarray(samples.images)),
                self.slice_index_errors(samples, raw),
                near,
                {where: lines[where].relative(one, samples.slice_indices) for where, one in near.items()},
            )
        return self._known[samples]

    def nearest(self, samples: Samples, raw: np.ndarray) -> dict[str, memorisation.Nearest]:
        """The nearest training slice of every sample, in pixels and in features."""
        query = {"pixels": memorisation.thumbnails(samples.images, device=self.device), "features": self.space.project(raw)}
        return {where: self.nearest_to(points, where, self.audit["bank"], samples.subjects) for where, points in query.items()}

    @cached_property
    def real_points(self) -> np.ndarray:
        return self.space.project(self.raw[self.split])

    @cached_property
    def real_similarity(self) -> pd.DataFrame:
        return self._similarity(self.real.images, self.real.slice_indices, self.real.subjects)

    def _similarity(self, images: np.ndarray, slice_indices: np.ndarray, subjects: np.ndarray) -> pd.DataFrame:
        return distances.pairwise_similarity(images, slice_indices, subjects, seed=self.config.seed, device=self.device)

    def counts(self, slice_indices: np.ndarray) -> dict[int, int]:
        """Slices of each slice index that every side of a comparison has: the set, the baseline and the real subjects."""
        sides = [pd.Series(x).value_counts() for x in (slice_indices, self.real.slice_indices, self.baseline.slice_indices)]
        known = set.intersection(*(set(side.index) for side in sides))
        if not known:
            raise ValueError("every sample needs a slice index that the cohort has; draw them with `slice_index=`, not open")
        return {int(slice_index): int(min(side[slice_index] for side in sides)) for slice_index in sorted(known)}

    def rows(self, slice_indices: np.ndarray, counts: dict[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a set and of the real subjects, equally many of each slice index."""
        rng, counts = np.random.default_rng(self.config.seed), counts or self.counts(slice_indices)
        return pick_rows(slice_indices, counts, rng), pick_rows(self.real.slice_indices, counts, rng)

    def measure(self, samples: Samples, counts: dict[int, int] | None = None) -> dict[str, Any]:
        """All measures of one set, each with the ends of its 95 % interval: one flat dict of numbers."""
        ours, theirs = self.rows(samples.slice_indices, counts)
        images, slice_indices, subjects = np.asarray(samples.images[ours]), samples.slice_indices[ours], samples.groups[ours]
        alike, real, seen = self._similarity(images, slice_indices, subjects), self.real_similarity, self.look(samples)
        alike[["first", "second"]] = ours[alike[["first", "second"]].to_numpy(int)]

        def numbers(mine: np.ndarray, others: np.ndarray) -> dict[str, float]:
            pairs = similarity_gap(_among(alike, mine), _among(real, others) if len(others) < len(theirs) else real)
            return self._numbers(seen, samples, mine, others) | pairs

        found, half = numbers(ours, theirs), self._half_widths(numbers, samples.groups, ours, theirs)
        areas = dict(zip((f"area_{name}" for name in anatomy.AREAS), seen.areas[ours].mean(0).tolist()))
        ends = {f"{name}_low": float(np.maximum(0, found[name] - reach)) for name, reach in half.items()}
        most = {name: 1.0 if name.startswith(SHARES) else np.inf for name in half}
        ends |= {f"{name}_high": float(np.minimum(most[name], found[name] + reach)) for name, reach in half.items()}
        return {"slices": len(ours)} | found | areas | self._ssim_count(images) | ends

    def distances(self, samples: Samples, counts: dict[int, int] | None = None) -> dict[str, float]:
        """The distances alone."""
        ours, theirs = self.rows(samples.slice_indices, counts)
        raw = self.extract(samples.images) if samples.raw is None else samples.raw
        return self._distances(self.space.project(raw), samples.groups, ours, theirs)

    def _distances(self, points: np.ndarray, subjects: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
        a, b = points[ours], self.real_points[theirs]
        shape = distances.manifold(b, a, self.real.subjects[theirs], subjects[ours], self.config.neighbours)
        return {"frechet": distances.frechet(a, b)} | shape

    def _numbers(self, seen: Seen, samples: Samples, ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
        found = self._distances(seen.points, samples.groups, ours, theirs)
        errors = seen.slice_index_errors[ours]
        if self.reader:
            found |= {"slice_index_within_one": float((errors < 1.5).mean()), "slice_index_error": float(errors.mean())}
        sides = seen.areas[ours], samples.slice_indices[ours], self.real_areas[theirs], self.real.slice_indices[theirs]
        apart = anatomy.area_distance(*sides)
        found |= {"tissue_distance": float(apart[:3].mean()), "ventricle_distance": float(apart[3])}
        for where, line in self.audit["lines"].items():
            found[f"memorised_{where}"] = float((seen.relative[where][ours] < line.line).mean())
            found[f"standing_out_{where}"] = float((seen.near[where].ratio[ours] < line.ratio_line).mean())
        return found

    def _half_widths(self, numbers: Any, subjects: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
        """Half of each 95 % interval: a jackknife that leaves out a tenth of the subjects at a time, on both sides together."""
        parts = min(10, len(np.unique(self.real.subjects[theirs])), len(np.unique(subjects[ours])))
        if parts < 2:
            return dict.fromkeys(numbers(ours, theirs), float("nan"))
        mine, others = parted([subjects[ours], self.real.subjects[theirs]], parts, np.random.default_rng(self.config.seed))
        rows = pd.DataFrame([numbers(ours[mine != part], theirs[others != part]) for part in range(parts)])
        errors = np.sqrt((parts - 1) / parts * ((rows - rows.mean()) ** 2).sum(skipna=False))
        return (t.ppf(0.975, parts - 1) * errors).to_dict()

    def extremes(self, samples: Samples, where: str = "pixels", count: int = 6, farthest: bool = False) -> pd.DataFrame:
        """The samples nearest to a training slice for their slice index (or farthest from all), with that slice's row."""
        seen, line = self.look(samples), self.audit["lines"][where].line
        near, relative = seen.near[where], seen.relative[where]
        rows = (-relative if farthest else relative).argsort()[:count]
        table = {"sample": rows, "train": near.index[rows], "relative": relative[rows], "ratio": near.ratio[rows]}
        return pd.DataFrame(table | {"line": line})

    def _ssim_count(self, images: np.ndarray) -> dict[str, float]:
        every = max(1, len(images) // 100)
        best, _ = memorisation.best_ssim(images[::every], self.cohort["train"].images, self.thumbnails, device=self.device)
        return {"seeds_count": float((best > memorisation.SEEDS_LINE).mean()), "seeds_best": float(best.max())}


def similarity_gap(alike: pd.DataFrame, real: pd.DataFrame) -> dict[str, float]:
    """Mean MS-SSIM of pairs of different subjects, and its distance from real pairs', over shared slice indices."""
    ours, theirs = (side.groupby("slice_index")["ms_ssim"].mean() for side in (alike, real))
    shared = ours.index.intersection(theirs.index)
    gap = float((ours[shared] - theirs[shared]).abs().mean()) if len(shared) else float("nan")
    return {"ms_ssim": float(ours[shared].mean()), "ms_ssim_gap": gap}


def _among(pairs: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    return pairs[pairs["first"].isin(rows) & pairs["second"].isin(rows)]


def parted(sides: list[np.ndarray], parts: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Which of `parts` equal parts each row's subject belongs to; on whatever side they are, subjects keep their part."""
    part: dict[Any, int] = {}
    for subjects in sides:
        fresh = rng.permutation([name for name in np.unique(subjects) if name not in part])
        part |= {name: number % parts for number, name in enumerate(fresh)}
    return [np.array([part[name] for name in subjects]) for subjects in sides]


def pick_rows(slice_indices: np.ndarray, counts: dict[int, int], rng: np.random.Generator) -> np.ndarray:
    """Rows with exactly `counts` slices of each slice index, drawn without replacement where there are enough."""
    chosen = []
    for slice_index, count in counts.items():
        pool = np.flatnonzero(slice_indices == slice_index)
        if len(pool):
            chosen.append(rng.choice(pool, count, replace=len(pool) < count))
    return np.sort(np.concatenate(chosen))
