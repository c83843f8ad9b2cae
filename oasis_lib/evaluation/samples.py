"""What is put before the evaluator: samples of priors, and the references that say how good and how bad it can get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from oasis_lib.cohort import Cohort
from oasis_lib.evaluation.evaluator import Evaluator, Samples, pick_rows
from oasis_lib.evaluation.features import to_tensor
from oasis_lib.sampling import draw, draw_all, even_levels, read_all, trained_priors
from oasis_lib.training import best_device, codes_of, decode_codes
from oasis_lib.vision import blur

# Sampling lives in oasis_lib.sampling; these names are kept for callers of before.
__all__ = ["draw", "draw_all", "even_levels", "read_all", "trained_priors"]

SETTINGS: dict[str, dict[str, float]] = {  # that are tried
    "as learned": {},
    "temperature 0.8": {"temperature": 0.8},
    "temperature 0.9": {"temperature": 0.9},
    "top-p 0.9": {"top_p": 0.9},
    "top-p 0.95": {"top_p": 0.95},
}


def as_samples(drawn: dict[str, np.ndarray]) -> Samples:
    return Samples(drawn["images"], drawn["level"].astype(np.int64))


def beside_real(cohort: Cohort, drawn: dict[str, dict[str, np.ndarray]], count: int = 6) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rows for a figure, test people first, all at the same few levels; and the columns' titles."""
    test = cohort["test"]
    levels = np.unique(test.levels)
    levels = levels[np.linspace(0, len(levels) - 1, min(count, len(levels))).round().astype(int)]
    sides = {cohort.who("test"): (np.asarray(test.images), test.levels)}
    sides |= {name: (one["images"], one["level"]) for name, one in drawn.items()}
    shown = {
        name: np.stack([images[np.flatnonzero(have == level)[-1]] for level in levels]) for name, (images, have) in sides.items()
    }
    return shown, [f"slice {level}" if level >= 0 else "" for level in levels]


def references(evaluator: Evaluator, vqvae: Any | None = None, most: int = 100_000, seed: int = 0) -> dict[str, Samples]:
    """The ladder between real people and nonsense. Those that need codes are left out where there is no VQ-VAE.

    All but the reconstructions of test people start from the same training slices, which no feature was fitted on.
    """
    rng, floor, train = np.random.default_rng(seed), evaluator.floor, evaluator.cohort["train"]
    counts = evaluator.counts(floor.levels)
    share = max(1, most // max(1, len(counts)))
    rows = pick_rows(floor.levels, {level: min(n, share) for level, n in counts.items()}, rng)
    real = Samples(np.asarray(floor.images[rows]), floor.levels[rows], floor.people[rows])
    found, device = {}, best_device()
    if vqvae is not None:
        codes = codes_of(vqvae, evaluator.cohort, "train", device)[evaluator.floor_rows[rows]]
        test = pick_rows(evaluator.real.levels, {level: min(n, share) for level, n in counts.items()}, rng)
        back = decode_codes(vqvae, codes_of(vqvae, evaluator.cohort, evaluator.split, device)[test], device)
        found["reconstructed training people"] = Samples(decode_codes(vqvae, codes, device), real.levels, real.people)
        found[f"reconstructed {evaluator.split} people"] = Samples(back, evaluator.real.levels[test], evaluator.real.subjects[test])
        unigram = rng.permutation(codes.ravel()).reshape(codes.shape)
        found["unigram codes"] = Samples(decode_codes(vqvae, unigram, device), real.levels)
        shuffled = np.stack([rng.permutation(one.ravel()).reshape(one.shape) for one in codes])
        found["shuffled codes"] = Samples(decode_codes(vqvae, shuffled, device), real.levels)
    size = evaluator.cohort.size
    found["blurred people"] = Samples(blurred(real.images, size / 128), real.levels, real.people)
    means = {level: train.images[np.flatnonzero(train.levels == level)].mean(0) / 255 for level in counts}
    found["mean image"] = Samples(np.stack([means[level] for level in real.levels]).astype(np.float32), real.levels)
    found["black image"] = Samples(np.zeros_like(real.images), real.levels)
    return found


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    """(N, H, W) uint8 -> the same under a Gaussian of `sigma` pixels."""
    return (blur(to_tensor(images), sigma)[:, 0] * 255).round().to(torch.uint8).numpy() if sigma else np.asarray(images)


def choose_settings(
    cohort: Cohort,
    prior: Any,
    vqvae: Any,
    evaluator: Evaluator,
    *,
    samples: int = 128,
    settings: Mapping[str, dict[str, float]] = SETTINGS,
    seed: int = 0,
) -> pd.DataFrame:
    """Ways to choose codes (a row each), measured against validate people; the best first.

    The score is the mean over both spaces of log Fréchet: neither space outweighs the other. Test people play no part.
    """
    if evaluator.split != "validate":
        raise ValueError(
            f"settings are chosen on validate people, not on {evaluator.split!r}: make Evaluator(..., split='validate')"
        )
    rows, levels = {}, even_levels(samples, cohort.levels)
    for name, how in settings.items():
        drawn = draw(prior, vqvae, levels, seed=seed, **how)
        found = evaluator.distances(as_samples(drawn))
        score = np.mean([np.log(found[f"frechet_{space}"]) for space in ("trained", "fixed")])
        rows[name] = {"score": float(score)} | found
    return pd.DataFrame(rows).T.sort_values("score").rename_axis("setting")
