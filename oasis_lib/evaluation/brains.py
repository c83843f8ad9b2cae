"""Whole brains beside test subjects, and ventricle areas of samples by CDR."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from oasis_lib.cohort import Cohort
from oasis_lib.evaluation.anatomy import AREAS, Mixture
from oasis_lib.evaluation.features import to_tensor
from oasis_lib.metrics import ms_ssim
from oasis_lib.run import Run
from oasis_lib.sampling import draw, kept_between_slices, whole_brain
from oasis_lib.training import best_device, decode_codes


def brains_beside(
    run: Run, prior: Any, vqvae: Any, *, brains: int = 1, seed: int = 0, **options: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One brain (slices, H, W) of each kind; and MS-SSIM of neighbouring slices in each kind (subjects, slices - 1).

    Kinds: test subjects; brains sampled slice after slice; slices sampled independently. Both are empty where no test
    subject has every slice index.
    """
    cohort, train, test, device = run.cohort, run.cohort["train"], run.cohort["test"], best_device()
    own = [np.flatnonzero(test.subjects == subject) for subject in np.unique(test.subjects)]
    own = [rows[np.argsort(test.slice_indices[rows])] for rows in own if len(rows) == cohort.slice_indices > 1]
    if not own:
        return {}, {}
    codes = np.load(run.path("codes", "train.npy"))
    kept = kept_between_slices(codes, train.subjects, train.slice_indices, cohort.slice_indices)
    tokens = whole_brain(prior, kept, brains=brains, seed=seed, **options)
    sets = {cohort.who("test"): [test.images[rows] for rows in own[:8]]}
    sets["sequential slices"] = [decode_codes(vqvae, one, device) for one in tokens]
    apart = draw(prior, vqvae, np.arange(cohort.slice_indices), seed=seed, **options)["images"]
    sets["independent slices"] = [apart]
    alike = {
        name: np.stack([ms_ssim(to_tensor(brain[:-1]), to_tensor(brain[1:])).numpy() for brain in found])
        for name, found in sets.items()
    }
    return {name: found[0] for name, found in sets.items()}, alike


def by_cdr(
    prior: Any, vqvae: Any, cohort: Cohort, slice_indices: np.ndarray, **options: Any
) -> tuple[pd.DataFrame, dict[float, np.ndarray]]:
    """Ventricle area (percent of the frame) of samples and of training subjects by CDR, at the same slice indices."""
    train, mixture, rows, shown = cohort["train"], Mixture.fit(cohort["train"].images), [], {}
    for index, cdr in enumerate(cohort.cdrs):
        shown[cdr] = draw(prior, vqvae, slice_indices, cdr=index if prior.cdrs else None, **options)["images"]
        real = np.flatnonzero((train.table["cdr"] == cdr) & np.isin(train.slice_indices, slice_indices))[:200]
        drawn, subjects = (
            float(mixture.areas(images)[:, AREAS.index("ventricles")].mean())
            for images in (shown[cdr], np.asarray(train.images[real]))
        )
        rows.append({"cdr": cdr, "slices": len(real), "drawn": drawn, "subjects": subjects})
    return pd.DataFrame(rows), shown
