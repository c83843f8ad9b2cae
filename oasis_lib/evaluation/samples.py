"""What is put before the evaluator: samples of priors, and the references that say how good and how bad it can get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from oasis_lib.cohort import Cohort
from oasis_lib.config import EvaluationConfig
from oasis_lib.evaluation.detectability import Recipe
from oasis_lib.evaluation.evaluator import Evaluator, Samples, pick_rows
from oasis_lib.evaluation.features import to_tensor
from oasis_lib.evaluation.instrument import Instrument
from oasis_lib.sampling import draw, draw_all, even_slice_indices, read_all, trained_priors
from oasis_lib.training import best_device, codes_of, decode_codes
from oasis_lib.vision import blur

# Sampling lives in oasis_lib.sampling; these names are kept for callers of before.
__all__ = ["draw", "draw_all", "even_slice_indices", "read_all", "trained_priors"]

SETTINGS: dict[str, dict[str, float]] = {  # that are tried
    "as learned": {},
    "temperature 0.8": {"temperature": 0.8},
    "temperature 0.9": {"temperature": 0.9},
    "top-p 0.9": {"top_p": 0.9},
    "top-p 0.95": {"top_p": 0.95},
}


def as_samples(drawn: dict[str, np.ndarray]) -> Samples:
    return Samples(drawn["images"], drawn["slice_index"].astype(np.int64))


def beside_real(cohort: Cohort, drawn: dict[str, dict[str, np.ndarray]], count: int = 6) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rows for a figure, test subjects first, all at the same few slice indices; and the columns' titles."""
    test = cohort["test"]
    slice_indices = np.unique(test.slice_indices)
    slice_indices = slice_indices[np.linspace(0, len(slice_indices) - 1, min(count, len(slice_indices))).round().astype(int)]
    sides = {cohort.who("test"): (np.asarray(test.images), test.slice_indices)}
    sides |= {name: (one["images"], one["slice_index"]) for name, one in drawn.items()}
    shown = {
        name: np.stack([images[np.flatnonzero(have == slice_index)[-1]] for slice_index in slice_indices])
        for name, (images, have) in sides.items()
    }
    return shown, [f"slice {slice_index}" if slice_index >= 0 else "" for slice_index in slice_indices]


def references(evaluator: Evaluator, vqvae: Any | None = None, most: int = 100_000, seed: int = 0) -> dict[str, Samples]:
    """Reconstructions and negative controls, all from the same training slices, whose subjects no instrument was fitted on.

    Those that need tokens are left out where there is no VQ-VAE.
    """
    rng, baseline, train = np.random.default_rng(seed), evaluator.baseline, evaluator.cohort["train"]
    counts = evaluator.counts(baseline.slice_indices)
    share = max(1, most // max(1, len(counts)))
    rows = pick_rows(baseline.slice_indices, {slice_index: min(n, share) for slice_index, n in counts.items()}, rng)
    real = Samples(np.asarray(baseline.images[rows]), baseline.slice_indices[rows], baseline.subjects[rows])
    found, device = {}, best_device()
    if vqvae is not None:
        every = codes_of(vqvae, evaluator.cohort, "train", device)
        codes = every[evaluator.baseline_rows[rows]]
        for name in ("faithful", *(["crisp"] if vqvae.crisp is not None else [])):
            images = decode_codes(vqvae, codes, device, crisp=name == "crisp")
            found[f"reconstructions, {name}"] = Samples(images, real.slice_indices, real.subjects)
        controls = {"positional tokens": positional(every, train.slice_indices, real.slice_indices, rng)}
        controls["unigram tokens"] = rng.permutation(codes.ravel()).reshape(codes.shape)
        found |= {name: Samples(decode_codes(vqvae, tokens, device), real.slice_indices) for name, tokens in controls.items()}
    found["blur"] = Samples(blurred(real.images, evaluator.cohort.size / 128), real.slice_indices, real.subjects)
    means = {slice_index: train.images[np.flatnonzero(train.slice_indices == slice_index)].mean(0) / 255 for slice_index in counts}
    found["mean image"] = Samples(
        np.stack([means[slice_index] for slice_index in real.slice_indices]).astype(np.float32), real.slice_indices
    )
    found["black image"] = Samples(np.zeros_like(real.images), real.slice_indices)
    return found


def positional(codes: np.ndarray, slice_indices: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(len(wanted), h, w): each position's token drawn from those at that position and slice index, independently."""
    flat, drawn = codes.reshape(len(codes), -1), np.empty((len(wanted), codes[0].size), codes.dtype)
    for slice_index in np.unique(wanted):
        pool, rows = np.flatnonzero(slice_indices == slice_index), np.flatnonzero(wanted == slice_index)
        picks = rng.choice(pool, (len(rows), flat.shape[1]))
        drawn[rows] = np.take_along_axis(flat, picks, 0)
    return drawn.reshape(len(wanted), *codes.shape[1:])


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    """(N, H, W) uint8 -> the same under a Gaussian of `sigma` pixels."""
    return (blur(to_tensor(images), sigma)[:, 0] * 255).round().to(torch.uint8).numpy() if sigma else np.asarray(images)


def choose_settings(
    instrument: Instrument,
    prior: Any,
    vqvae: Any,
    *,
    samples: int = 96,
    settings: Mapping[str, dict[str, float]] = SETTINGS,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Sampling settings (a row each) by detectability on validation subjects, the least detectable first.

    Columns are the mean AUC over the instrument's scales, and the widest ends of its 95 % intervals.
    """
    if instrument.split != "validate":
        raise ValueError(f"settings are chosen on validation subjects, not on {instrument.split!r}: use split='validate'")
    slice_indices = even_slice_indices(samples, instrument.cohort.slice_indices)
    sets = {name: as_samples(draw(prior, vqvae, slice_indices, seed=seed, **how)).given for name, how in settings.items()}
    found = instrument.compare(sets, progress=progress).table().groupby("set", sort=False)
    table = found.agg({"auc": "mean", "low": "min", "high": "max"}).loc[list(settings)]
    return table.sort_values("auc", kind="stable").rename_axis("setting")


def settings_instrument(cohort: Cohort, config: EvaluationConfig, device: str = "cpu") -> Instrument:
    """The cheap instrument that settings are chosen by: validation subjects, a quarter of the resolution, short trainings."""
    recipe = Recipe(steps=min(config.detector_steps, 80), seed=config.seed, draws=200)
    scale = max(1, min(4, cohort.size // 32))
    return Instrument(cohort, split="validate", recipe=recipe, device=device, scales=(scale,))
