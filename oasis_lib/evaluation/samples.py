"""Sets beside samples: reconstructions and negative controls. Sampling settings chosen by detectability."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from oasis_lib.cohort import Cohort
from oasis_lib.config import EvaluationConfig
from oasis_lib.evaluation.detectability import Recipe
from oasis_lib.evaluation.evaluator import Evaluator, pick_rows
from oasis_lib.evaluation.features import to_tensor
from oasis_lib.evaluation.instrument import Instrument
from oasis_lib.evaluation.likelihood import by_position
from oasis_lib.evaluation.prepared import Samples
from oasis_lib.sampling import Drawn, draw, even_slice_indices
from oasis_lib.training import best_device, codes_of, decode_codes
from oasis_lib.vision import blur

SETTINGS: dict[str, dict[str, float]] = {  # that are tried
    "as learned": {},
    "temperature 0.8": {"temperature": 0.8},
    "temperature 0.9": {"temperature": 0.9},
    "top-p 0.9": {"top_p": 0.9},
    "top-p 0.95": {"top_p": 0.95},
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


def references(evaluator: Evaluator, vqvae: Any | None = None) -> dict[str, Samples]:
    """Reconstructions and negative controls, from training slices whose subjects no instrument was fitted on.

    Those that need tokens are left out where there is no VQ-VAE.
    """
    rng, baseline, train = np.random.default_rng(0), evaluator.baseline, evaluator.cohort["train"]
    counts = evaluator.counts(baseline)
    rows = pick_rows(baseline.slice_indices, counts, rng)
    real = Samples.of(train, evaluator.baseline_rows[rows])
    found, device, slice_indices = {}, best_device(), real.slice_indices
    if vqvae is not None:
        every = codes_of(vqvae, evaluator.cohort, "train", device)
        codes = every[evaluator.baseline_rows[rows]]
        for name in ("faithful", "crisp")[: 1 + (vqvae.crisp is not None)]:
            images = decode_codes(vqvae, codes, device, crisp=name == "crisp")
            found[f"reconstructions, {name}"] = Samples(images, slice_indices, real.subjects)
        controls = {"positional tokens": by_position(every, train.slice_indices, slice_indices, rng)}
        controls["unigram tokens"] = rng.permutation(codes.ravel()).reshape(codes.shape)
        found |= {
            name: Samples(decode_codes(vqvae, tokens, device), slice_indices) for name, tokens in controls.items()
        }
    found["blur"] = Samples(blurred(real.images, evaluator.cohort.size / 128), slice_indices, real.subjects)
    means = {index: train.images[train.slice_indices == index].mean(0) / 255 for index in counts}
    found["mean image"] = Samples(np.stack([means[index] for index in slice_indices]).astype(np.float32), slice_indices)
    found["black image"] = Samples(np.zeros_like(real.images), slice_indices)
    return found


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    """(N, H, W) uint8 -> the same under a Gaussian of `sigma` pixels."""
    return (blur(to_tensor(images), sigma)[:, 0] * 255).round().to(torch.uint8).numpy() if sigma else images


def settings_instrument(cohort: Cohort, config: EvaluationConfig, device: str = "cpu") -> Instrument:
    """A cheap instrument to choose settings by: validation subjects, one coarse scale, short trainings."""
    recipe = Recipe(steps=min(config.detector_steps, 80), seed=config.seed, draws=200)
    return Instrument(cohort, "validate", recipe, device=device, scales=(max(1, min(4, cohort.size // 32)),))


def choose_settings(
    instrument: Instrument, prior: Any, vqvae: Any, *, samples: int = 96, progress: bool = False
) -> pd.DataFrame:
    """Sampling settings (a row each) by detectability on validation subjects, the least detectable first.

    Columns are the mean AUC over the instrument's scales, and the widest ends of its 95 % intervals.
    """
    if instrument.split != "validate":
        raise ValueError(f"settings are chosen on validation subjects: use split='validate', not {instrument.split!r}")
    wanted = even_slice_indices(samples, instrument.cohort.slice_indices)
    sets = {name: as_samples(draw(prior, vqvae, wanted, **how)) for name, how in SETTINGS.items()}
    found = instrument.compare(sets, progress).table().groupby("set", sort=False)
    table = found.agg({"auc": "mean", "low": "min", "high": "max"}).loc[list(SETTINGS)]
    return table.sort_values("auc", kind="stable").rename_axis("setting")
