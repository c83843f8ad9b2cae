"""Whole brains beside test subjects, and what a rating changes: measures of what a prior was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from oasis_lib.cohort import Cohort
from oasis_lib.evaluation.anatomy import AREAS, Mixture
from oasis_lib.evaluation.features import to_tensor
from oasis_lib.metrics import ms_ssim
from oasis_lib.run import Run
from oasis_lib.sampling import draw, kept_between_levels, whole_head
from oasis_lib.training import best_device, decode_codes


def neighbours_alike(heads: np.ndarray) -> np.ndarray:
    """(people, levels, H, W) uint8 -> (people, levels - 1) MS-SSIM of each level with the next."""
    pairs = [ms_ssim(to_tensor(head[:-1]), to_tensor(head[1:])).numpy() for head in heads]
    return np.stack(pairs)


def real_heads(cohort: Cohort, split: str = "test", most: int = 8) -> np.ndarray:
    """(people, levels, H, W) of those who have every level."""
    part = cohort[split]
    found = []
    for person in np.unique(part.subjects):
        rows = np.flatnonzero(part.subjects == person)
        if len(rows) == cohort.levels and len(found) < most:
            found.append(part.images[rows[np.argsort(part.levels[rows])]])
    return np.stack(found) if found and cohort.levels > 1 else np.empty((0, 0, cohort.size, cohort.size), np.uint8)


def heads_beside(
    run: Run, prior: Any, vqvae: Any, *, heads: int = 1, seed: int = 0, **options: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One head of each kind (levels, H, W), and how alike neighbouring levels are in each kind (people, levels - 1).

    Heads of test people; brains sampled slice after slice; and slices sampled independently.
    Both are empty where a cohort knows no levels, or nobody has them all.
    """
    cohort, device = run.cohort, best_device()
    real = real_heads(cohort)
    if not len(real):
        return {}, {}
    train = cohort["train"]
    codes = np.load(run.path("codes", "train.npy"))
    kept = kept_between_levels(codes, train.subjects, train.levels, cohort.levels)
    grown = np.stack([decode_codes(vqvae, head, device) for head in whole_head(prior, kept, heads=heads, seed=seed, **options)])
    apart = draw(prior, vqvae, np.arange(cohort.levels), seed=seed, **options)["images"][None]
    sets = {cohort.who("test"): real, "sequential slices": grown, "independent slices": apart}
    return {name: images[0] for name, images in sets.items()}, {name: neighbours_alike(images) for name, images in sets.items()}


def by_rating(
    prior: Any, vqvae: Any, cohort: Cohort, levels: np.ndarray, seed: int = 0, **options: Any
) -> tuple[pd.DataFrame, dict]:
    """Ventricle area (percent of the frame) by clinical rating, of samples and of training people at the same levels."""
    train, mixture, rows, shown = cohort["train"], Mixture.fit(cohort["train"].images), [], {}
    for index, rating in enumerate(cohort.ratings):
        drawn = draw(prior, vqvae, levels, seed=seed, rating=index if prior.ratings else None, **options)
        real = np.flatnonzero((train.table["cdr"] == rating) & np.isin(train.levels, levels))[:200]
        sides = {"drawn": drawn["images"], "people": np.asarray(train.images[real])}
        area = {name: float(mixture.areas(images)[:, AREAS.index("ventricles")].mean()) for name, images in sides.items()}
        rows.append({"rating": rating, "slices": len(real)} | area)
        shown[rating] = drawn["images"]
    return pd.DataFrame(rows), shown
