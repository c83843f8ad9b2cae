"""The account of a generator: one table with floor and bad references, what was wanted and what was reached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oasis_lib.cohort import Cohort
from oasis_lib.config import EvaluationConfig
from oasis_lib.evaluation.evaluator import Evaluator, Samples
from oasis_lib.evaluation.features import SPACES

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


def compare(evaluator: Evaluator, sets: Mapping[str, Samples]) -> pd.DataFrame:
    """One row a set, the floor first, all at the same number of slices a level; Fréchet over floor with its 95 % interval."""
    shared = [evaluator.counts(samples.levels) for samples in sets.values()]
    levels = set.intersection(*(set(c) for c in shared))
    counts = {level: min(c[level] for c in shared) for level in sorted(levels)}
    floor = evaluator.cohort.who("train")
    rows = {floor: evaluator.measure(evaluator.floor, counts)}
    rows |= {name: evaluator.measure(samples, counts) for name, samples in sets.items()}
    table = with_ratios(pd.DataFrame(rows).T)
    reach = {name: evaluator.frechet_reach(samples, counts) for name, samples in sets.items()}
    reach = pd.DataFrame({floor: dict.fromkeys(SPACES, 1.0)} | reach).T
    for space in SPACES:
        ratio = table[f"frechet_{space}_ratio"]
        table[f"frechet_{space}_ratio_low"], table[f"frechet_{space}_ratio_high"] = ratio / reach[space], ratio * reach[space]
    return table


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
    return {
        "split": split,
        "table": plain(table),
        "targets": verdict(table.loc["samples"]),
        "instruments": evaluator.real_errors(),
    }
