"""How good are generated brains? Every measure beside the same measure of real people, at equal numbers and levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oasis_lib.cohort import Cohort
from oasis_lib.config import EvaluationConfig
from oasis_lib.evaluation import anatomy, distances, features, memorisation, similarity
from oasis_lib.evaluation.features import SPACES, FilterBank, Space, cached_network, extract, train_network
from oasis_lib.training.vqvae import decode_codes, encode_images

DISTANCES = ("frechet", "kernel", "precision", "recall", "density", "coverage")
TARGETS = {  # what a good generator reaches: column of the verdict, relation, bound
    "frechet_trained_ratio": ("<=", 2.0),
    "frechet_fixed_ratio": ("<=", 2.0),
    "coverage_trained_ratio": (">=", 0.8),
    "coverage_fixed_ratio": (">=", 0.8),
    "level_within_one": (">=", 0.9),
    "two_sample": ("<=", 0.75),
    "memorised_pixels": ("<=", 0.01),
    "memorised_trained": ("<=", 0.01),
}


@dataclass(frozen=True)
class Samples:
    """A set of slices to be judged. `people` is who they show; generated slices are one person each."""

    images: np.ndarray  # (N, H, W) uint8, or floats in [0, 1]
    levels: np.ndarray  # (N,) asked for, or drawn; -1 where open
    people: np.ndarray | None = None
    raw: dict[str, np.ndarray] | None = None  # their features, where these are known already

    @property
    def persons(self) -> np.ndarray:
        return np.arange(len(self.images)) if self.people is None else np.asarray(self.people)


class Evaluator:
    """Prepared once a cohort, then `measure` for each generator.

    Features are fitted on one half of the training people. The floor is the other half of them against the test people,
    so that no feature has seen either side of it. `split` is "test", or "validate" while settings are still being chosen.
    With the `vqvae` that samples come from, the audit for copies sees real people through its codes, as samples are seen.
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
        train, real = cohort["train"], cohort[split]
        people = np.unique(train.subjects)
        if len(people) < 4 or len(np.unique(real.subjects)) < 1:
            raise ValueError(f"{cohort.folder}: an evaluation needs at least 4 training people and 1 in {split}")
        half = np.random.default_rng(self.config.seed).permutation(people)[: len(people) // 2]
        self.fit_rows = np.flatnonzero(np.isin(train.subjects, half))
        self.floor_rows = np.flatnonzero(~np.isin(train.subjects, half))
        self.split, self.real = split, real
        key = {"cohort": cohort.hash, "features": features.VERSION, "steps": self.config.feature_steps, "seed": self.config.seed}
        network = cached_network(Path(cache) if cache else None, key, self._train_network)
        self.networks = {"trained": network, "fixed": FilterBank()}
        self.raw = {name: self._features(cohort[name].images) for name in {"train", "validate", "test", split}}
        self.spaces = {s: Space.fit(self.networks[s], self.raw["train"][s][self.fit_rows], self.config.components) for s in SPACES}

    def _train_network(self) -> features.FeatureNet:
        train, rows, config = self.cohort["train"], self.fit_rows, self.config
        options = {"steps": config.feature_steps, "seed": config.seed, "device": self.device}
        return train_network(np.asarray(train.images[rows]), train.levels[rows], train.subjects[rows], **options)

    def _features(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return {space: extract(network, images, self.device) for space, network in self.networks.items()}

    def _project(self, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {space: self.spaces[space].project(raw[space]) for space in SPACES}

    # What is fitted on, or known of, real people ------------------------------------------------------------------------

    @cached_property
    def floor(self) -> Samples:
        train = self.cohort["train"]
        rows = self.floor_rows
        raw = {space: values[rows] for space, values in self.raw["train"].items()}
        return Samples(train.images[rows], train.levels[rows], train.subjects[rows], raw)

    @cached_property
    def projected(self) -> dict[str, dict[str, np.ndarray]]:
        return {name: self._project(raw) for name, raw in self.raw.items()}

    @cached_property
    def mixture(self) -> anatomy.Mixture:
        return anatomy.Mixture.fit(self.cohort["train"].images, self.config.seed)

    @cached_property
    def real_areas(self) -> np.ndarray:
        return self.mixture.areas(np.asarray(self.real.images))

    @cached_property
    def reader(self) -> anatomy.LevelReader | None:
        train = self.cohort["train"]
        if self.cohort.levels < 2 or train.levels.min() < 0:
            return None
        return anatomy.LevelReader(_joined(self.raw["train"]), train.levels, train.subjects)

    @cached_property
    def real_similarity(self) -> dict[int, float]:
        return self._similarity(self.real.images, self.real.levels, self.real.subjects)

    @cached_property
    def real_spectrum(self) -> np.ndarray:
        return similarity.radial_spectrum(self.real.images, self.device)

    @cached_property
    def audit(self) -> dict[str, Any]:
        """Training slices in pixels and in features, and the distances of people held out from them.

        Through the codes on both sides: a copy is as blurred as all that codes give, and would lie far from what it copies.
        """
        bank, held = self._audited("train"), ("validate", "test")
        found, levels = [self._audited(name) for name in held], np.concatenate([self.cohort[name].levels for name in held])
        out = {where: np.concatenate([one[where] for one in found]) for where in bank}
        lines = {where: memorisation.Calibration(self._nearest(out[where], bank, where), levels) for where in bank}
        return {"bank": bank, "lines": lines}

    def _audited(self, name: str) -> dict[str, np.ndarray]:
        images, found = self.cohort[name].images, self.raw[name]["trained"]
        if self.vqvae is not None:
            images = decode_codes(self.vqvae, encode_images(self.vqvae, images, self.device), self.device)
            found = extract(self.networks["trained"], images, self.device)
        return {"pixels": self._thumbnails(images), "trained": self.spaces["trained"].project(found)}

    def _thumbnails(self, images: np.ndarray) -> np.ndarray:
        return memorisation.thumbnails(images, device=self.device)

    def _nearest(self, points: np.ndarray, bank: dict, where: str, own: np.ndarray | None = None) -> memorisation.Nearest:
        flip = where == "pixels" and self.cohort.info.get("left_right")
        mirror = memorisation.mirrored(points) if flip else None
        return memorisation.nearest(points, bank[where], self.cohort["train"].subjects, mirror, own)

    def _similarity(self, images: np.ndarray, levels: np.ndarray, people: np.ndarray) -> dict[int, float]:
        return similarity.pairwise_similarity(images, levels, people, seed=self.config.seed, device=self.device)

    def real_errors(self) -> dict[str, float]:
        """How far the instruments themselves can be trusted: the level reader on real people, the mixture against truth."""
        raw = self.raw[self.split]
        found = self.reader.agreement(_joined(raw), self.real.levels) if self.reader else {}
        truth = anatomy.segmentation_error(self.mixture, self.real) if self.real.tissue is not None else {}
        return found | truth

    # Measures of a set of samples ---------------------------------------------------------------------------------------

    def counts(self, levels: np.ndarray) -> dict[int, int]:
        """Slices a level that a comparison can use on both sides: as many as the scarcer side (and the floor) has."""
        sides = [pd.Series(x).value_counts() for x in (levels, self.real.levels, self.floor.levels)]
        known = set.intersection(*(set(side.index) for side in sides))
        if not known:
            raise ValueError("every sample needs a level that people of the cohort have; draw them with `level=`, not open")
        return {int(level): int(min(side[level] for side in sides)) for level in sorted(known)}

    def measure(self, samples: Samples, counts: dict[int, int] | None = None) -> dict[str, Any]:
        """All measures of one set against the real people of `split`: one flat dict of numbers."""
        counts = counts or self.counts(samples.levels)
        raw = samples.raw or self._features(samples.images)
        points, real = self._project(raw), self.projected[self.split]
        draws = self._draws(samples.levels, counts)
        found = {"slices": sum(counts.values())} | self._distances(points, real, samples.persons, draws)
        ours, theirs = draws[0]
        images, levels, people = np.asarray(samples.images[ours]), samples.levels[ours], samples.persons[ours]
        joined = [np.concatenate([p[s][r] for s in SPACES], 1) for p, r in ((points, ours), (real, theirs))]
        test = distances.two_sample(joined[1], joined[0], self.real.subjects[theirs], people, seed=self.config.seed)
        found |= dict(zip(("two_sample", "two_sample_low", "two_sample_high"), test))
        found |= self.reader.agreement(_joined(raw), samples.levels, samples.people) if self.reader else {}
        found |= self._anatomy(images, levels)
        alike = self._similarity(images, levels, people)
        shared = [level for level in alike if level in self.real_similarity]
        gap = np.mean([abs(alike[level] - self.real_similarity[level]) for level in shared]) if shared else np.nan
        found |= {"ms_ssim": float(np.mean([alike[x] for x in shared])) if shared else np.nan, "ms_ssim_gap": float(gap)}
        spectrum = similarity.radial_spectrum(images, self.device)
        found["spectrum_db"] = similarity.spectrum_distance(spectrum, self.real_spectrum)
        return found | self._memorised(samples, points) | self._seeds_count(images)

    def distances(self, samples: Samples, counts: dict[int, int] | None = None) -> dict[str, float]:
        """The distances alone: quick enough to choose settings by."""
        points = self._project(samples.raw or self._features(samples.images))
        draws = self._draws(samples.levels, counts or self.counts(samples.levels))
        return self._distances(points, self.projected[self.split], samples.persons, draws)

    def _draws(self, levels: np.ndarray, counts: dict[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows of the samples and rows of the real people, equally many a level, several times over."""
        rng = np.random.default_rng(self.config.seed)
        return [(pick_rows(levels, counts, rng), pick_rows(self.real.levels, counts, rng)) for _ in range(self.config.draws)]

    def _distances(self, points: dict, real: dict, people: np.ndarray, draws: list) -> dict[str, float]:
        found = {}
        for space in SPACES:
            rows = []
            for ours, theirs in draws:
                a, b = points[space][ours], real[space][theirs]
                shape = distances.manifold(b, a, self.real.subjects[theirs], people[ours], self.config.neighbours)
                rows.append(shape | {"frechet": distances.frechet(a, b), "kernel": distances.kernel_distance(a, b)})
            found |= {f"{name}_{space}": float(np.mean([row[name] for row in rows])) for name in DISTANCES}
        return found

    def _anatomy(self, images: np.ndarray, levels: np.ndarray) -> dict[str, float]:
        areas = self.mixture.areas(images)
        distance = anatomy.area_distance(areas, levels, self.real_areas, self.real.levels)
        found = {f"area_{name}": float(value) for name, value in zip(anatomy.AREAS, areas.mean(0))}
        return found | {"tissue_distance": float(distance[:3].mean()), "ventricle_distance": float(distance[3])}

    def _memorised(self, samples: Samples, points: dict[str, np.ndarray]) -> dict[str, float]:
        found = {}
        for where, near in self.nearest(samples, points).items():
            shares = self.audit["lines"][where].shares(near, samples.levels)
            found |= {f"{name}_{where}": value for name, value in shares.items()}
        return found

    def nearest(self, samples: Samples, points: dict[str, np.ndarray] | None = None) -> dict[str, memorisation.Nearest]:
        """The nearest training slice of every sample, in pixels and in the trained features."""
        points = points or self._project(samples.raw or self._features(samples.images))
        query = {"pixels": self._thumbnails(samples.images), "trained": points["trained"]}
        return {where: self._nearest(query[where], self.audit["bank"], where, samples.people) for where in query}

    def extremes(self, samples: Samples, where: str = "pixels", count: int = 6, farthest: bool = False) -> pd.DataFrame:
        """The samples nearest to a training slice for their level (or farthest from all), with that slice's row."""
        near = self.nearest(samples)[where]
        relative = self.audit["lines"][where].relative(near, samples.levels)
        rows = (-relative if farthest else relative).argsort()[:count]
        table = {"sample": rows, "train": near.index[rows], "relative": relative[rows], "ratio": near.ratio[rows]}
        return pd.DataFrame(table | {"line": self.audit["lines"][where].line})

    def _seeds_count(self, images: np.ndarray) -> dict[str, float]:
        every = max(1, len(images) // 200)
        best, _ = memorisation.best_ssim(images[::every], self.cohort["train"].images, device=self.device)
        return {"seeds_count": float((best > memorisation.SEEDS_LINE).mean()), "seeds_best": float(best.max())}

    def frechet_ratio(self, samples: Samples, counts: dict[int, int] | None = None, repeats: int = 40) -> dict[str, float]:
        """95 % interval of Fréchet over floor, from resampling test people, the samples' draw and the floor's draw together."""
        counts = counts or self.counts(samples.levels)
        points, real = self._project(samples.raw or self._features(samples.images)), self.projected[self.split]
        train = self.projected["train"]
        rng, names, found = np.random.default_rng(self.config.seed), np.unique(self.real.subjects), []
        for _ in range(repeats):
            people = rng.choice(names, len(names))
            pool = np.concatenate([np.flatnonzero(self.real.subjects == person) for person in people])
            theirs = pool[pick_rows(self.real.levels[pool], counts, rng)]
            ours, floor = pick_rows(samples.levels, counts, rng), self.floor_rows[pick_rows(self.floor.levels, counts, rng)]
            found.append([
                distances.frechet(points[s][ours], real[s][theirs]) / distances.frechet(train[s][floor], real[s][theirs])
                for s in SPACES
            ])  # fmt: skip
        low, high = np.quantile(found, [0.025, 0.975], axis=0)
        return {f"frechet_{s}_ratio_{n}": float(v[i]) for i, s in enumerate(SPACES) for n, v in (("low", low), ("high", high))}


def compare(evaluator: Evaluator, sets: Mapping[str, Samples]) -> pd.DataFrame:
    """One row a set, the floor first, all at the same number of slices a level."""
    shared = [evaluator.counts(samples.levels) for samples in sets.values()]
    levels = set.intersection(*(set(c) for c in shared))
    counts = {level: min(c[level] for c in shared) for level in sorted(levels)}
    rows = {evaluator.cohort.who("train"): evaluator.measure(evaluator.floor, counts)}
    rows |= {name: evaluator.measure(samples, counts) for name, samples in sets.items()}
    return with_ratios(pd.DataFrame(rows).T)


def with_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Adds the columns that targets are set on: Fréchet and coverage over the floor's, the first row's."""
    table = table.copy()
    for name in ("frechet", "coverage"):
        for space in SPACES:
            table[f"{name}_{space}_ratio"] = table[f"{name}_{space}"] / table[f"{name}_{space}"].iloc[0]
    return table


def plain(table: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """For JSON, which knows no NaN."""
    return {name: {k: float(v) if np.isfinite(v) else None for k, v in row.items()} for name, row in table.iterrows()}


def verdict(row: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Each target with the value reached and whether that is good enough. A measure that is missing has not been reached."""
    found = {}
    for name, (relation, bound) in TARGETS.items():
        value = float(row.get(name, np.nan))
        found[name] = {
            "value": value,
            "target": f"{relation} {bound}",
            "met": value <= bound if relation == "<=" else value >= bound,
        }
    return found


def evaluate_generation(
    images: np.ndarray,
    levels: np.ndarray,
    cohort: Cohort,
    *,
    device: str = "cpu",
    config: EvaluationConfig | None = None,
    references: Mapping[str, Samples] | None = None,
    vqvae: Any | None = None,
    cache: str | Path | None = None,
    split: str = "test",
) -> dict[str, Any]:
    """The whole account of one set of samples, ready for JSON: a table with floor and references, targets, instruments.

    `references` are rows of one's own; with None they are made here, those of the codes only if `vqvae` is given.
    """
    from oasis_lib.evaluation.samples import references as usual_references

    evaluator = Evaluator(cohort, config, device=device, cache=cache, split=split, vqvae=vqvae)
    references = usual_references(evaluator, vqvae) if references is None else references
    samples = Samples(np.asarray(images), np.asarray(levels, np.int64))
    table = compare(evaluator, {"samples": samples} | dict(references))
    interval = evaluator.frechet_ratio(samples, None)
    return {
        "split": split,
        "table": plain(table),
        "interval": interval,
        "targets": verdict(table.loc["samples"]),
        "instruments": evaluator.real_errors(),
    }


def _joined(raw: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([raw[space] for space in SPACES], axis=1)


def pick_rows(levels: np.ndarray, counts: dict[int, int], rng: np.random.Generator) -> np.ndarray:
    """Rows with exactly `counts` slices a level, drawn without replacement where there are enough."""
    chosen = []
    for level, count in counts.items():
        pool = np.flatnonzero(levels == level)
        if len(pool):
            chosen.append(rng.choice(pool, count, replace=len(pool) < count))
    return np.sort(np.concatenate(chosen))
