"""How good are generated brains? Every measure beside the same measure of real people, at equal numbers and levels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd

from oasis_lib.checkpoint import fingerprint, kept_arrays
from oasis_lib.cohort import Cohort
from oasis_lib.config import EvaluationConfig
from oasis_lib.evaluation import anatomy, distances, features, memorisation, similarity
from oasis_lib.evaluation.features import SPACES, FilterBank, Space, cached_network, extract, train_network
from oasis_lib.training import codes_of, decode_codes
from oasis_lib.training.data import ends, evenly

DISTANCES = ("frechet", "kernel", "precision", "recall", "density", "coverage")


@dataclass(frozen=True, eq=False)
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
        self.cache = Path(cache) / "features" if cache else None
        network = cached_network(self.cache, key, self._train_network)
        self.key = key | {"network": fingerprint(network)}
        self.networks = {"trained": network, "fixed": FilterBank()}
        self._known: WeakKeyDictionary[Samples, dict[str, np.ndarray]] = WeakKeyDictionary()
        self.raw = {name: self._people(name) for name in sorted({"train", "validate", "test", split})}
        self.spaces = {s: Space.fit(self.networks[s], self.raw["train"][s][self.fit_rows], self.config.components) for s in SPACES}

    def _train_network(self) -> features.FeatureNet:
        train, rows, config = self.cohort["train"], self.fit_rows, self.config
        options = {"steps": config.feature_steps, "seed": config.seed, "device": self.device}
        return train_network(np.asarray(train.images[rows]), train.levels[rows], train.subjects[rows], **options)

    def _people(self, name: str) -> dict[str, np.ndarray]:
        return kept_arrays(self.cache, f"people-{name}", self.key, lambda: self._features(self.cohort[name].images))

    def _features(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return {space: extract(network, images, self.device) for space, network in self.networks.items()}

    def features(self, samples: Samples) -> dict[str, np.ndarray]:
        """Looked at once, however many measures ask."""
        if samples.raw is None and samples not in self._known:
            self._known[samples] = self._features(samples.images)
        return self._known[samples] if samples.raw is None else samples.raw

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
    def shelf(self) -> np.ndarray:
        return memorisation.shrink(self.cohort["train"].images, self.device)

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
    def usual_sides(self) -> dict[int, np.ndarray]:
        """level -> what differs between the halves of most people's heads there; empty where columns are not left and right."""
        train, rows = self.cohort["train"], self.fit_rows
        if self.cohort.info.get("left_right") != "columns":
            return {}
        found = similarity.sides(train.images[rows], self.ends, self.device)
        return {int(level): found[train.levels[rows] == level].mean(0) for level in np.unique(train.levels[rows])}

    @cached_property
    def ends(self) -> int:
        train = self.cohort["train"].images
        return ends(train[evenly(len(train), 256)])

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
        def look() -> dict[str, np.ndarray]:
            images, found = self.cohort[name].images, self.raw[name]["trained"]
            if self.vqvae is not None:
                images = decode_codes(self.vqvae, codes_of(self.vqvae, self.cohort, name, self.device), self.device)
                found = extract(self.networks["trained"], images, self.device)
            return {"pixels": self._thumbnails(images).astype(np.float16), "trained": found}

        key = self.key | {"vqvae": self.vqvae and fingerprint(self.vqvae)}
        kept = kept_arrays(self.cache, f"audit-{name}", key, look)
        return kept | {"trained": self.spaces["trained"].project(kept["trained"])}

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
        raw = self.features(samples)
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
        if self.usual_sides:
            found["leaning"] = similarity.leaning(similarity.sides(images, self.ends, self.device), levels, self.usual_sides)
        return found | self._memorised(samples, points) | self._seeds_count(images)

    def distances(self, samples: Samples, counts: dict[int, int] | None = None) -> dict[str, float]:
        """The distances alone: quick enough to choose settings by."""
        points = self._project(self.features(samples))
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
        points = points or self._project(self.features(samples))
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
        every = max(1, len(images) // 100)
        best, _ = memorisation.best_ssim(images[::every], self.cohort["train"].images, self.shelf, device=self.device)
        return {"seeds_count": float((best > memorisation.SEEDS_LINE).mean()), "seeds_best": float(best.max())}

    def frechet_reach(self, samples: Samples, counts: dict[int, int] | None = None) -> dict[str, float]:
        """95 % interval of Fréchet over floor, as a factor either way: a jackknife over the people of `split`.

        With each person (or 20th of them) as large a part of the samples, and of the floor's people, is left out. Drawing people
        with replacement will not do: a set that holds people twice lies farther from all others than any set of people does.
        NaN where too few slices would be left to have a spread.
        """
        from scipy.stats import t

        rng, train = np.random.default_rng(self.config.seed), self.projected["train"]
        points, real = self._project(self.features(samples)), self.projected[self.split]
        parts = min(20, len(np.unique(self.real.subjects)))
        counts = counts or self.counts(samples.levels)
        (ours, theirs), (floor, _) = (self._draws(levels, counts)[0] for levels in (samples.levels, self.floor.levels))
        sides = parted([samples.persons[ours], self.real.subjects[theirs], self.floor.people[floor]], parts, rng)

        def logs(left_out: int) -> list[float]:
            a, b, c = (rows[part != left_out] for rows, part in zip((ours, theirs, self.floor_rows[floor]), sides))
            if min(map(len, (a, b, c))) < 2:
                return [np.nan] * len(SPACES)
            pairs = [(points[s][a], real[s][b], train[s][c]) for s in SPACES]
            return [np.log(distances.frechet(x, y) / distances.frechet(z, y)) for x, y, z in pairs]

        return dict(zip(SPACES, np.exp(t.ppf(0.975, parts - 1) * distances.jackknife(logs, parts))))


def parted(sides: list[np.ndarray], parts: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Which of `parts` equal parts each row's person belongs to; on whatever side they are, people keep their part."""
    part: dict[Any, int] = {}
    for people in sides:
        fresh = rng.permutation([name for name in np.unique(people) if name not in part])
        part |= {name: number % parts for number, name in enumerate(fresh)}
    return [np.array([part[name] for name in people]) for people in sides]


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
