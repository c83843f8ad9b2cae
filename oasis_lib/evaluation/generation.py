"""The evaluation of generators: sets beside samples, detectability, a table with baseline and controls, a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binom

from oasis_lib.cohort import Cohort
from oasis_lib.config import EvaluationConfig
from oasis_lib.evaluation.detectability import Recipe
from oasis_lib.evaluation.evaluator import SHARES, Evaluator, pick_rows
from oasis_lib.evaluation.features import Samples, to_tensor
from oasis_lib.evaluation.instrument import BASELINE, Instrument, Report
from oasis_lib.evaluation.likelihood import by_position
from oasis_lib.sampling import Drawn, draw, even_slice_indices
from oasis_lib.training import best_device, codes_of, decode_codes
from oasis_lib.vision import blur

CONTROLS = ("positional tokens", "unigram tokens", "blur", "mean image", "black image")  # negative controls
UNDETECTED = ("mean image", "black image")  # one image for all subjects: no detector is needed
COPIES = ("memorised_pixels", "memorised_features")  # 1 % by construction; no control copies, so none can fail
TARGETS = {  # measure -> relation to the far end of real-vs-real's interval
    "frechet": "<=",
    "precision": ">=",
    "recall": ">=",
    "slice_index_within_one": ">=",
    "tissue_distance": "<=",
    "ventricle_distance": "<=",
    "ms_ssim_gap": "<=",
} | dict.fromkeys(COPIES, "<=")
UNKNOWN = "not measurable at this size"
SETTINGS: dict[str, dict[str, float]] = {  # that are tried
    "as learned": {},
    "temperature 0.9": {"temperature": 0.9},
    "top-p 0.95": {"top_p": 0.95},
    "guidance 0.5": {"guidance": 0.5},
}


def as_samples(drawn: Drawn) -> Samples:
    return Samples(drawn["images"], drawn["slice_index"].astype(np.int64))


def beside_real(cohort: Cohort, drawn: dict[str, Drawn], count: int = 6) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rows for a figure, test subjects first, all at the same few slice indices; and the columns' titles."""
    test = cohort["test"]
    known = np.unique(test.slice_indices)
    known = known[np.linspace(0, len(known) - 1, min(count, len(known))).round().astype(int)]
    sides = {cohort.who("test"): Samples.of(test)} | {name: as_samples(one) for name, one in drawn.items()}
    rows = {}
    for name, one in sides.items():
        rows[name] = np.stack([one.images[np.flatnonzero(one.slice_indices == index)[-1]] for index in known])
    return rows, [f"slice {index}" if index >= 0 else "" for index in known]


def references(evaluator: Evaluator) -> dict[str, Samples]:
    """Reconstructions and negative controls, from training slices whose subjects no instrument was fitted on.

    Those that need tokens are left out where the evaluator has no VQ-VAE.
    """
    rng, baseline, train = np.random.default_rng(0), evaluator.baseline, evaluator.cohort["train"]
    counts = evaluator.counts(baseline)
    rows = evaluator.baseline_rows[pick_rows(baseline.slice_indices, counts, rng)]
    real = Samples.of(train, rows)
    found, device, vqvae, slice_indices = {}, best_device(), evaluator.vqvae, real.slice_indices
    if vqvae is not None:
        every = codes_of(vqvae, evaluator.cohort, "train", device)
        codes = every[rows]
        for name in ("faithful", "crisp")[: 1 + (vqvae.crisp is not None)]:
            images = decode_codes(vqvae, codes, device, crisp=name == "crisp")
            found[f"reconstructions, {name}"] = Samples(images, slice_indices, real.subjects)
        controls = {"positional tokens": by_position(every, train.slice_indices, slice_indices, rng)}
        controls["unigram tokens"] = rng.permutation(codes.ravel()).reshape(codes.shape)
        found |= {name: Samples(decode_codes(vqvae, maps, device), slice_indices) for name, maps in controls.items()}
    found["blur"] = Samples(blurred(real.images, evaluator.cohort.size / 128), slice_indices, real.subjects)
    means = {index: train.images[train.slice_indices == index].mean(0) / 255 for index in counts}
    found["mean image"] = Samples(np.stack([means[index] for index in slice_indices]).astype(np.float32), slice_indices)
    found["black image"] = Samples(np.zeros_like(real.images), slice_indices)
    return found


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    """(N, H, W) uint8 -> the same under a Gaussian of `sigma` pixels."""
    return (blur(to_tensor(images), sigma)[:, 0] * 255).round().to(torch.uint8).numpy() if sigma else images


def choose_settings(
    cohort: Cohort, config: EvaluationConfig, prior: Any, vqvae: Any, *, samples: int = 96, device: str = "cpu"
) -> pd.DataFrame:
    """Sampling settings (a row each) by detectability on validation subjects, the least detectable first.

    A cheap instrument: one coarse scale, short trainings. Columns are the AUC and its 95 % interval.
    """
    recipe = Recipe(steps=min(config.detector_steps, 80), seed=config.seed, draws=200)
    instrument = Instrument(cohort, "validate", recipe, device=device, scales=(max(1, min(4, cohort.size // 32)),))
    wanted = even_slice_indices(samples, cohort.slice_indices)
    sets = {name: as_samples(draw(prior, vqvae, wanted, **how)) for name, how in SETTINGS.items()}
    table = instrument.compare(sets, progress=True).table().set_index("set").loc[list(SETTINGS), ["auc", "low", "high"]]
    return table.sort_values("auc", kind="stable").rename_axis("setting")


def compare(evaluator: Evaluator, sets: Mapping[str, Samples]) -> pd.DataFrame:
    """One row a set, real-vs-real first, all at the same number of slices of each slice index."""
    counts = evaluator.counts(*sets.values())
    sets = {BASELINE: evaluator.baseline} | dict(sets)
    table = pd.DataFrame({name: evaluator.measure(samples, counts) for name, samples in sets.items()}).T.astype(float)
    return table.assign(frechet_ratio=table["frechet"] / table["frechet"].iloc[0])


def plain(table: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """For JSON, which has no NaN."""
    return {name: {k: float(v) if np.isfinite(v) else None for k, v in row.items()} for name, row in table.iterrows()}


def detect(evaluator: Evaluator, sets: Mapping[str, Samples], progress: bool = False) -> tuple[Instrument, Report]:
    """Detectability of sets, by an instrument for the evaluator's cohort, split and settings."""
    recipe = Recipe(steps=evaluator.config.detector_steps, seed=evaluator.config.seed)
    instrument = Instrument(evaluator.cohort, evaluator.split, recipe, device=evaluator.device)
    return instrument, instrument.compare({n: one for n, one in sets.items() if n not in UNDETECTED}, progress)


def bounds(table: pd.DataFrame) -> pd.DataFrame:
    """A row a target: relation, bound, and whether real subjects meet it and a negative control misses it."""
    real, rows = table.iloc[0], {}
    controls = table.index.intersection(CONTROLS)
    for name, relation in TARGETS.items():
        bound = real.get(f"{name}_{'high' if relation == '<=' else 'low'}", np.nan)
        if name in COPIES:  # of held-out slices, 1 % lie below the line; so many by chance
            bound = binom.ppf(0.975, int(real["slices"]), 0.01) / real["slices"]
        values = table.get(name, pd.Series(np.nan, table.index))
        met = values <= bound if relation == "<=" else values >= bound
        tells = name in COPIES or controls.empty or not met[controls].all()
        measurable = bool(np.isfinite(bound) and met.iloc[0] and tells)
        rows[name] = {"relation": relation, "bound": bound, "measurable": measurable}
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
        bound = max(0.5, real.high)
        controls = [report.results[control][scale].auc > bound for control in CONTROLS if control in report.results]
        judged = state(ours.auc, "<=", bound, real.low <= 0.5 and (any(controls) or not controls))
        label = f"detectability at {scale:g} {report.unit}"
        found[label] = {"target": f"<= {bound:.2f}", "real": real.auc, "value": ours.auc, "verdict": judged}
    for measure, row in bounds(table).iterrows():
        if measure not in table:
            continue
        value, step = table.loc[name, measure], 1 / count if measure.startswith(SHARES) else 0.0
        judged = state(value, row["relation"], row["bound"], row["measurable"], step)
        target = f"{row['relation']} {row['bound']:.3g}"
        found[measure] = {"target": target, "real": table.iloc[0][measure], "value": value, "verdict": judged}
    return found


def verdict_table(table: pd.DataFrame, report: Report | None, names: Sequence[str]) -> pd.DataFrame:
    """A row a target: bound, real subjects' own value and verdict first, then each set's."""
    judged = {name: verdict(table, report, name) for name in (BASELINE, *names)}
    found = pd.DataFrame({"target": {target: entry["target"] for target, entry in judged[BASELINE].items()}})
    cells = {name: {t: f"{e['value']:.3g} ({e['verdict']})" for t, e in one.items()} for name, one in judged.items()}
    return found.join(pd.DataFrame(cells))


def evaluate_generation(
    images: np.ndarray,
    slice_indices: np.ndarray,
    cohort: Cohort,
    *,
    config: EvaluationConfig | None = None,
    progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """The whole evaluation of one set of samples, for JSON. `options` are Evaluator's: device, cache, split, vqvae.

    Reconstructions and controls made of tokens are among the rows only if a VQ-VAE is given.
    """
    evaluator = Evaluator(cohort, config, **options)
    sets = {"samples": Samples(np.asarray(images), np.asarray(slice_indices, np.int64))}
    sets |= references(evaluator)
    table = compare(evaluator, sets)  # first: it refuses sets that are too small, and takes less time
    report = detect(evaluator, sets, progress)[1]
    return {
        "split": evaluator.split,
        "detectability": report.table().to_dict("records"),
        "summary": plain(report.summary()),
        "table": plain(table),
        "targets": verdict(table, report, "samples"),
        "instruments": evaluator.real_errors(),
    }
