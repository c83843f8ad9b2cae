"""Detectability of many sets beside real-vs-real: what is prepared once a cohort, and the table of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from oasis_lib.cohort import Cohort
from oasis_lib.evaluation.detectability import Detector, Recipe, Result, crop_scores, detectability, folds_of, seeded_net, train
from oasis_lib.evaluation.prepared import SCALES, Prepared, brain_box, crops_of, prepare

BASELINE = "real-vs-real"


def balanced_rows(slice_indices: np.ndarray, counts: dict[int, int], seed: int = 0) -> np.ndarray:
    """Rows with at most `counts` slices of each slice index, drawn without replacement."""
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(slice_indices == slice_index))[:count] for slice_index, count in counts.items()]
    return np.sort(np.concatenate(chosen))


class Instrument:
    """Real slices of a cohort, prepared once; then `compare` puts sets beside real-vs-real at the same numbers.

    Detectors learn on half of the training subjects and are tested on those of `split`. The other half of the training
    subjects stands in for a generator: real-vs-real. Reconstructions and spoiled slices are made of that half as well.
    """

    def __init__(
        self,
        cohort: Cohort,
        *,
        split: str = "validate",
        recipe: Recipe | None = None,
        device: str = "cpu",
        mm: float | None = None,
        scales: Sequence[int] | None = None,
    ):
        self.cohort, self.split, self.recipe, self.device = cohort, split, recipe or Recipe(), str(device)
        self.mm = mm or pixel_mm(cohort)
        train, real = cohort["train"], cohort[split]
        subjects = np.random.default_rng(self.recipe.seed).permutation(np.unique(train.subjects))
        learned = np.isin(train.subjects, subjects[: len(subjects) // 2])
        self.other_rows = np.flatnonzero(~learned)
        self.scales = list(scales or (scale for scale in SCALES if scale == 1 or cohort.size // scale >= 32))
        self.box = brain_box(train.images[:: max(1, len(train) // 256)])
        rows = np.random.default_rng(self.recipe.seed).permutation(np.flatnonzero(learned))[: self.recipe.most]
        self.fit = self.prepare(train.images[np.sort(rows)], train.slice_indices[np.sort(rows)], train.subjects[np.sort(rows)])
        self.real = self.prepare(real.images, real.slice_indices, real.subjects)

    def prepare(self, images: np.ndarray, slice_indices: np.ndarray, subjects: np.ndarray | None = None) -> Prepared:
        """A set; without `subjects` each slice is a subject of its own."""
        subjects = np.array([f"generated {row}" for row in range(len(images))]) if subjects is None else subjects
        return prepare(images, slice_indices, subjects, self.box, self.scales, device=self.device)

    def counts(self, sets: Sequence[np.ndarray]) -> dict[int, int]:
        """Slices of each slice index that every set (of slice indices) and the other real subjects can give."""
        sides = [
            pd.Series(slice_indices).value_counts()
            for slice_indices in (self.cohort["train"].slice_indices[self.other_rows], *sets)
        ]
        shared = set.intersection(*(set(side.index) for side in sides))
        if not shared:
            raise ValueError("the sets have no slice index in common with the cohort")
        most = max(1, self.recipe.most // len(shared))
        return {int(slice_index): int(min(most, *(side[slice_index] for side in sides))) for slice_index in sorted(shared)}

    def others(self, counts: Mapping[int, int]) -> np.ndarray:
        """Rows of the other training subjects, so many of each slice index."""
        return self.other_rows[balanced_rows(self.cohort["train"].slice_indices[self.other_rows], counts, self.recipe.seed)]

    def surest(self, images: np.ndarray, slice_indices: np.ndarray, scale: int = 1, count: int = 8) -> dict[str, np.ndarray]:
        """Patches (count, SIDE, SIDE) uint8 that one detector is surest about, of held-out slices: real, and generated."""
        side, recipe = self.prepare(images, slice_indices), self.recipe
        fold = folds_of(side.slice_indices, side.subjects, recipe.folds, np.random.default_rng(recipe.seed))
        learn, test = (torch.from_numpy(np.flatnonzero(rows)) for rows in (fold != 0, fold == 0))
        sides, inside = [self.fit.scales[scale], side.scales[scale][learn]], [self.fit.inside[scale], side.inside[scale][learn]]
        net, found = train(seeded_net(Detector, recipe.seed), sides, inside, recipe.seed, recipe), {}
        tested = {"real": (self.real.scales[scale], self.real.inside[scale], -1)}
        tested["generated"] = side.scales[scale][test], side.inside[scale][test], 1
        for name, (pictures, weights, sign) in tested.items():
            logits, places = crop_scores(net, pictures, weights, recipe.crops)
            rows = np.argsort(-(sign * logits).max(1))[:count]
            best = places[rows, (sign * logits[rows]).argmax(1)]
            crops = crops_of(pictures, torch.from_numpy(rows).to(self.device), torch.from_numpy(best).to(self.device))
            found[name] = (crops[:, 0] * 255).round().to(torch.uint8).cpu().numpy()
        return found

    def compare(self, sets: Mapping[str, tuple], progress: bool = False) -> Report:
        """Every set (images, slice indices, and subjects where known) at every scale, real-vs-real first."""
        counts = self.counts([given[1] for given in sets.values()])
        rows, train = self.others(counts), self.cohort["train"]
        sets = {BASELINE: (train.images[rows], train.slice_indices[rows], train.subjects[rows])} | dict(sets)
        networks = self.recipe.folds * self.recipe.repeats * len(self.scales)
        found = {}
        with tqdm(total=len(sets) * networks, disable=not progress, desc="detectors", mininterval=1) as bar:
            for name, (images, slice_indices, *subjects) in sets.items():
                rows = balanced_rows(np.asarray(slice_indices), counts, self.recipe.seed)
                chosen = [np.asarray(part)[rows] for part in (images, slice_indices, *subjects)]
                bar.set_postfix_str(name)
                results = detectability(self.fit, self.real, self.prepare(*chosen), self.recipe, progress=bar.update)
                found[name] = results
        return Report(found, self.mm)


@dataclass(frozen=True)
class Report:
    """Results of all sets, the first of them real-vs-real. Lengths are in mm, or in pixels where those are not known."""

    results: dict[str, dict[int, Result]]
    mm: float | None

    @property
    def unit(self) -> str:
        return "mm" if self.mm else "px"

    def table(self) -> pd.DataFrame:
        """One row a set and scale: size of a pixel, AUC with its interval, balanced accuracy, and whether it passes."""
        rows, bounds = [], {scale: max(0.5, found.high) for scale, found in next(iter(self.results.values())).items()}
        for name, scales in self.results.items():
            for scale, found in scales.items():
                row = {"set": name, "scale": scale * (self.mm or 1), "auc": found.auc, "low": found.low, "high": found.high}
                rows.append(row | {"accuracy": found.accuracy, "passes": found.auc <= bounds[scale]})
        return pd.DataFrame(rows)

    def records(self) -> list[dict]:
        """The table for JSON."""
        return self.table().to_dict("records")

    def summary(self) -> pd.DataFrame:
        """One row a set: AUC at each scale, their mean, and the finest scale passed such that all coarser ones pass too."""
        table = self.table()
        wide = table.pivot(index="set", columns="scale", values="auc").loc[list(self.results)]
        passes = table.pivot(index="set", columns="scale", values="passes").loc[list(self.results)]
        wide.columns = [f"{scale:g} {self.unit}" for scale in passes.columns]
        finest = [passes.columns[row[::-1].cumprod()[::-1].astype(bool)].min() for row in passes.to_numpy(bool)]
        return wide.assign(mean=wide.mean(axis=1), finest_passed=finest)


def pixel_mm(cohort: Cohort) -> float | None:
    """mm across a pixel, where the cohort tells; the synthetic cohort's images are 256 mm across."""
    return cohort.info.get("mm") or (256 / cohort.size if cohort.synthetic else None)
