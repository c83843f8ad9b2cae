"""Whole brains beside test subjects, and what a CDR changes: measures of what a prior was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from oasis_lib.cohort import Cohort
from oasis_lib.evaluation.anatomy import AREAS, Mixture
from oasis_lib.evaluation.features import to_tensor
from oasis_lib.metrics import ms_ssim
from oasis_lib.run import Run
from oasis_lib.sampling import draw, kept_between_slice_indices, whole_brain
from oasis_lib.training import best_device, decode_codes


def neighbours_alike(brains: np.ndarray) -> np.ndarray:
    """(subjects, slice indices, H, W) uint8 -> (subjects, slice indices - 1) MS-SSIM of each slice index with the next."""
    pairs = [ms_ssim(to_tensor(head[:-1]), to_tensor(head[1:])).numpy() for head in brains]
    return np.stack(pairs)


def real_brains(cohort: Cohort, split: str = "test", most: int = 8) -> np.ndarray:
    """(subjects, slice indices, H, W) of those who have every slice index."""
    part = cohort[split]
    found = []
    for subject in np.unique(part.subjects):
        rows = np.flatnonzero(part.subjects == subject)
        if len(rows) == cohort.slice_indices and len(found) < most:
            found.append(part.images[rows[np.argsort(part.slice_indices[rows])]])
    return np.stack(found) if found and cohort.slice_indices > 1 else np.empty((0, 0, cohort.size, cohort.size), np.uint8)


def brains_beside(
    run: Run, prior: Any, vqvae: Any, *, brains: int = 1, seed: int = 0, **options: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One head of each kind (slice indices, H, W), and how alike neighbours are in each kind (subjects, slice indices - 1).

    Brains of test subjects; brains sampled slice after slice; and slices sampled independently.
    Both are empty where a cohort knows no slice indices, or nobody has them all.
    """
    cohort, device = run.cohort, best_device()
    real = real_brains(cohort)
    if not len(real):
        return {}, {}
    train = cohort["train"]
    codes = np.load(run.path("codes", "train.npy"))
    kept = kept_between_slice_indices(codes, train.subjects, train.slice_indices, cohort.slice_indices)
    grown = np.stack([decode_codes(vqvae, head, device) for head in whole_brain(prior, kept, brains=brains, seed=seed, **options)])
    apart = draw(prior, vqvae, np.arange(cohort.slice_indices), seed=seed, **options)["images"][None]
    sets = {cohort.who("test"): real, "sequential slices": grown, "independent slices": apart}
    return {name: images[0] for name, images in sets.items()}, {name: neighbours_alike(images) for name, images in sets.items()}


def by_cdr(
    prior: Any, vqvae: Any, cohort: Cohort, slice_indices: np.ndarray, seed: int = 0, **options: Any
) -> tuple[pd.DataFrame, dict]:
    """Ventricle area (percent of the frame) by clinical CDR, of samples and of training subjects at the same slice indices."""
    train, mixture, rows, shown = cohort["train"], Mixture.fit(cohort["train"].images), [], {}
    for index, cdr in enumerate(cohort.cdrs):
        drawn = draw(prior, vqvae, slice_indices, seed=seed, cdr=index if prior.cdrs else None, **options)
        real = np.flatnonzero((train.table["cdr"] == cdr) & np.isin(train.slice_indices, slice_indices))[:200]
        sides = {"drawn": drawn["images"], "subjects": np.asarray(train.images[real])}
        area = {name: float(mixture.areas(images)[:, AREAS.index("ventricles")].mean()) for name, images in sides.items()}
        rows.append({"cdr": cdr, "slices": len(real)} | area)
        shown[cdr] = drawn["images"]
    return pd.DataFrame(rows), shown
