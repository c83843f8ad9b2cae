"""The evaluation of generators: detectability, one table with baseline and controls, and a verdict that real data passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom

from oasis_lib.cohort import Cohort
from oasis_lib.config import EvaluationConfig
from oasis_lib.evaluation.detectability import Recipe
from oasis_lib.evaluation.evaluator import SHARES, Evaluator, Samples
from oasis_lib.evaluation.instrument import BASELINE, Instrument, Report

CONTROLS = ("positional tokens", "unigram tokens", "blur", "mean image", "black image")  # negative controls
TARGETS = {  # measure -> relation to the end of real-vs-real's interval
    "frechet": "<=",
    "precision": ">=",
    "recall": ">=",
    "slice_index_within_one": ">=",
    "tissue_distance": "<=",
    "ventricle_distance": "<=",
    "ms_ssim_gap": "<=",
    "memorised_pixels": "<=",
    "memorised_features": "<=",
}
COPIES = ("memorised_pixels", "memorised_features")  # 1 % by construction; no control copies, so none can fail
UNKNOWN = "not measurable at this size"


def compare(evaluator: Evaluator, sets: Mapping[str, Samples]) -> pd.DataFrame:
    """One row a set, real-vs-real first, all at the same number of slices of each slice index."""
    shared = [evaluator.counts(samples.slice_indices) for samples in sets.values()]
    slice_indices = set.intersection(*(set(c) for c in shared))
    counts = {slice_index: min(c[slice_index] for c in shared) for slice_index in sorted(slice_indices)}
    rows = {BASELINE: evaluator.measure(evaluator.baseline, counts)}
    rows |= {name: evaluator.measure(samples, counts) for name, samples in sets.items()}
    table = pd.DataFrame(rows).T.astype(float)
    return table.assign(frechet_ratio=table["frechet"] / table["frechet"].iloc[0])


def plain(table: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """For JSON, which knows no NaN."""
    return {name: {k: float(v) if np.isfinite(v) else None for k, v in row.items()} for name, row in table.iterrows()}


def instrument(evaluator: Evaluator, mm: float | None = None) -> Instrument:
    """Detectors for the evaluator's cohort and split; they learn on the same half of the training subjects."""
    config = evaluator.config
    recipe = Recipe(steps=config.detector_steps, seed=config.seed)
    return Instrument(evaluator.cohort, split=evaluator.split, recipe=recipe, device=evaluator.device, mm=mm)


def detected(sets: Mapping[str, Samples]) -> dict[str, tuple[np.ndarray, ...]]:
    """Sets for `Instrument.compare`, without those that need no detector: one image for all subjects."""
    return {name: samples.given for name, samples in sets.items() if name not in ("mean image", "black image")}


def bounds(table: pd.DataFrame) -> pd.DataFrame:
    """A row a target: relation, bound, and whether real subjects meet it and a negative control misses it."""
    real, rows = table.iloc[0], {}
    controls = table.loc[[name for name in CONTROLS if name in table.index]]
    for name, relation in TARGETS.items():
        bound = real.get(f"{name}_{'high' if relation == '<=' else 'low'}", np.nan)
        if name in COPIES:  # of held-out slices, 1 % lie below the line; so many by chance
            bound = binom.ppf(0.975, int(real["slices"]), 0.01) / real["slices"]
        values = table.get(name, pd.Series(np.nan, table.index))
        met = values <= bound if relation == "<=" else values >= bound
        tells = name in COPIES or controls.empty or not met[controls.index].all()
        rows[name] = {"relation": relation, "bound": bound, "measurable": bool(np.isfinite(bound) and met.iloc[0] and tells)}
    return pd.DataFrame(rows).T


def state(value: float, relation: str, bound: float, measurable: bool, step: float = 0.0) -> str:
    """Met, missed, or neither: where real subjects miss the target as well, or one slice (`step`) decides."""

    def meets(number: float) -> bool:
        return bool(number <= bound + 1e-9 if relation == "<=" else number >= bound - 1e-9)

    decided = len({meets(value + change) for change in (-step, 0, step)}) == 1
    return ("missed", "met")[meets(value)] if measurable and np.isfinite(value) and decided else UNKNOWN


def verdict(table: pd.DataFrame, report: Report | None, name: str) -> dict[str, dict[str, Any]]:
    """Every target for one set: detectability at each scale, then the measures. All bounds come from real-vs-real."""
    found, count = {}, table.iloc[0]["slices"]
    for scale in report.results[BASELINE] if report else ():
        real, ours = report.results[BASELINE][scale], report.results[name][scale]
        label = f"detectability at {scale * (report.mm or 1):g} {report.unit}"
        bound = max(0.5, real.high)
        controls = [report.results[control][scale].auc > bound for control in CONTROLS if control in report.results]
        judged = state(ours.auc, "<=", bound, real.low <= 0.5 and (any(controls) or not controls))
        found[label] = {"target": f"<= {bound:.2f}", "real": real.auc, "value": ours.auc, "verdict": judged}
    for measure, row in bounds(table).iterrows():
        if measure not in table:
            continue
        value, step = table.loc[name, measure], 1 / count if measure.startswith(SHARES) else 0.0
        judged = state(value, row["relation"], row["bound"], row["measurable"], step)
        target = f"{row['relation']} {row['bound']:.3g}"
        found[measure] = {"target": target, "real": table.iloc[0][measure], "value": value, "verdict": judged}
    return found


def verdict_table(table: pd.DataFrame, report: Report | None, names: list[str]) -> pd.DataFrame:
    """A row a target: bound, real subjects' own value and verdict first, then each set's."""
    judged = {name: verdict(table, report, name) for name in (BASELINE, *names)}
    found = pd.DataFrame({"target": {target: entry["target"] for target, entry in judged[BASELINE].items()}})
    for name, targets in judged.items():
        found[name] = pd.Series({target: f"{entry['value']:.3g} ({entry['verdict']})" for target, entry in targets.items()})
    return found


def evaluate_generation(
    images: np.ndarray,
    slice_indices: np.ndarray,
    cohort: Cohort,
    *,
    config: EvaluationConfig | None = None,
    references: Mapping[str, Samples] | None = None,
    progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """The whole evaluation of one set of samples, ready for JSON. `options` are Evaluator's: device, cache, split, vqvae.

    `references` are rows of one's own; with None they are made here, those of tokens only if a VQ-VAE is given.
    """
    from oasis_lib.evaluation.samples import references as usual_references

    evaluator = Evaluator(cohort, config, **options)
    references = usual_references(evaluator, evaluator.vqvae) if references is None else references
    sets = {"samples": Samples(np.asarray(images), np.asarray(slice_indices, np.int64))} | dict(references)
    report, table = instrument(evaluator).compare(detected(sets), progress=progress), compare(evaluator, sets)
    return {
        "split": evaluator.split,
        "detectability": report.records(),
        "summary": plain(report.summary()),
        "table": plain(table),
        "targets": verdict(table, report, "samples"),
        "instruments": evaluator.real_errors(),
    }
