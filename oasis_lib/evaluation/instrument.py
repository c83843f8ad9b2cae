"""Detectability of many sets beside real-vs-real: what is prepared once a cohort, and the table of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from oasis_lib.cohort import Cohort
from oasis_lib.evaluation import detectability as detectors
from oasis_lib.evaluation.detectability import SCALES, Prepared, Recipe, Result
from oasis_lib.evaluation.features import Samples, shared_counts
from oasis_lib.training.data import content_box

BASELINE = "real-vs-real"


class Instrument:
    """Real slices of a cohort, prepared once; then `compare` puts sets beside real-vs-real at the same numbers.

    Detectors learn on half of the training subjects and are tested on those of `split`. The other half of the training
    subjects stands in for a generator: real-vs-real. Reconstructions and spoiled slices are made of it as well.
    """

    def __init__(
        self,
        cohort: Cohort,
        split: str = "validate",
        recipe: Recipe | None = None,
        *,
        scales: Sequence[int] = (),
        mm: float | None = None,
        device: str = "cpu",
    ):
        self.cohort, self.split, self.recipe, self.device = cohort, split, recipe or Recipe(), str(device)
        self.mm = mm or cohort.info.get("mm") or (256 / cohort.size if cohort.synthetic else None)  # across a pixel
        train, real = cohort["train"], cohort[split]
        subjects = np.random.default_rng(self.recipe.seed).permutation(np.unique(train.subjects))
        learned = np.isin(train.subjects, subjects[: len(subjects) // 2])
        self.other_rows = np.flatnonzero(~learned)
        self.scales = list(scales) or [scale for scale in SCALES if scale == 1 or cohort.size // scale >= 32]
        self.box = content_box(train.images[:: max(1, len(train) // 256)], 2, 8)  # sides the coarsest scale divides
        rows = np.random.default_rng(self.recipe.seed).permutation(np.flatnonzero(learned))[: self.recipe.most]
        self.fit = self.prepare(Samples.of(train, np.sort(rows)))
        self.real = self.prepare(Samples.of(real))

    def prepare(self, samples: Samples) -> Prepared:
        return detectors.prepare(samples, self.box, self.scales, self.device)

    def counts(self, sets: Sequence[np.ndarray]) -> dict[int, int]:
        """Slices of each slice index that every set (of slice indices) and the other real subjects can give."""
        shared = shared_counts(self.cohort["train"].slice_indices[self.other_rows], *sets)
        return {index: min(max(1, self.recipe.most // len(shared)), count) for index, count in shared.items()}

    def others(self, counts: Mapping[int, int]) -> np.ndarray:
        """Rows of the other training subjects, so many of each slice index."""
        slice_indices = self.cohort["train"].slice_indices[self.other_rows]
        return self.other_rows[balanced_rows(slice_indices, counts, self.recipe.seed)]

    def surest(self, samples: Samples, scale: int = 1, count: int = 8) -> dict[str, np.ndarray]:
        """Patches (count, SIDE, SIDE) uint8 of held-out slices that a detector is surest about: real and generated."""
        side, recipe, found = self.prepare(samples), self.recipe, {}
        fold = detectors.folds_of(side.slice_indices, side.subjects, recipe.folds, np.random.default_rng(recipe.seed))
        sides = self.fit.at(scale), side.at(scale, fold != 0)
        net = detectors.train(detectors.new_detector(recipe.seed), sides, recipe.seed, recipe)
        tested = {"real": self.real.at(scale), "generated": side.at(scale, fold == 0)}
        for name, (pictures, weights) in tested.items():
            logits, places = detectors.crop_scores(net, pictures, weights, recipe.crops)
            logits = -logits if name == "real" else logits
            rows = np.argsort(-logits.max(1))[:count]
            best = places[rows, logits[rows].argmax(1)]
            crops = detectors.crops_of(pictures, *(torch.from_numpy(part).to(self.device) for part in (rows, best)))
            found[name] = (crops[:, 0] * 255).round().to(torch.uint8).cpu().numpy()
        return found

    def compare(self, sets: Mapping[str, Samples], progress: bool = False) -> Report:
        """Every set at every scale, real-vs-real first."""
        counts, ready = self.counts([samples.slice_indices for samples in sets.values()]), {}
        sets = {BASELINE: Samples.of(self.cohort["train"], self.others(counts))} | dict(sets)
        networks = self.recipe.folds * len(self.scales)
        with tqdm(total=len(sets) * networks, disable=not progress, desc="detectors", mininterval=1) as bar:
            for name, samples in sets.items():
                rows = balanced_rows(samples.slice_indices, counts, self.recipe.seed)
                ready[name] = self.prepare(samples.some(rows))
            results = detectors.detectability(self.fit, self.real, ready, self.recipe, bar.update)
        found = {name: {scale * (self.mm or 1): one[scale] for scale in one} for name, one in results.items()}
        return Report(found, "mm" if self.mm else "px")


def balanced_rows(slice_indices: np.ndarray, counts: Mapping[int, int], seed: int) -> np.ndarray:
    """Rows with at most `counts` slices of each slice index, drawn without replacement."""
    rng = np.random.default_rng(seed)
    pools = ((np.flatnonzero(slice_indices == index), count) for index, count in counts.items())
    return np.sort(np.concatenate([rng.permutation(pool)[:count] for pool, count in pools]))


@dataclass(frozen=True)
class Report:
    """Results of all sets by size of a pixel, the first set real-vs-real."""

    results: dict[str, dict[float, Result]]
    unit: str  # mm, or px where those are not known

    def table(self) -> pd.DataFrame:
        """One row a set and scale: size of a pixel, AUC with its interval, balanced accuracy, and whether it passes."""
        rows, first = [], next(iter(self.results.values()))
        for name, scales in self.results.items():
            for scale, found in scales.items():
                passes = found.auc <= max(0.5, first[scale].high)
                rows.append({"set": name, "scale": scale} | asdict(found) | {"passes": passes})
        return pd.DataFrame(rows)

    def summary(self) -> pd.DataFrame:
        """One row a set: AUC at each scale, their mean, and the finest size passed such that coarser ones pass too."""
        table = self.table().pivot(index="set", columns="scale", values=["auc", "passes"]).loc[list(self.results)]
        wide, passes = table["auc"].astype(float), table["passes"]
        finest = [passes.columns[row[::-1].cumprod()[::-1].astype(bool)].min() for row in passes.to_numpy(bool)]
        wide.columns = [f"{size:g} {self.unit}" for size in wide.columns]
        return wide.assign(mean=wide.mean(axis=1), finest_passed=finest)
