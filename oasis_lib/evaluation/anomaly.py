"""Where would this brain surprise a prior? Maps of surprise, held against planted lesions and against a plain baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from oasis_lib.cohort import Cohort, Split
from oasis_lib.evaluation.features import to_tensor
from oasis_lib.metrics import brain_mask
from oasis_lib.models.prior import Likelihood
from oasis_lib.run import Run
from oasis_lib.training import best_device, decode_codes
from oasis_lib.training.data import linspace_rows
from oasis_lib.vision import blur


def maps(split: Split, codes: np.ndarray, prior: Any, vqvae: Any, rows: np.ndarray) -> dict[str, np.ndarray]:
    """(N, H, W) each: the prior's surprise at every code, and the reconstruction error, both smoothed over a code's reach."""
    device, images = best_device(), np.asarray(split.images[rows])
    slice_indices = torch.as_tensor(split.slice_indices[rows].copy()) if prior.slice_indices else None
    surprisal = -prior.to(device).log_probs(torch.as_tensor(codes[rows].astype(np.int64)), slice_index=slice_indices).cpu()
    size, reach = images.shape[-1], images.shape[-1] / codes.shape[-1] / 2
    raised = F.interpolate(surprisal[:, None], size=(size, size), mode="bilinear", align_corners=False)
    error = (to_tensor(images) - to_tensor(decode_codes(vqvae, codes[rows], device, crisp=False))).abs()
    return {"surprisal": raised[:, 0].numpy(), "reconstruction error": blur(error, reach)[:, 0].numpy()}


def account(run: Run, prior: Any, vqvae: Any) -> tuple[pd.DataFrame, dict]:
    """`against_lesions` of a run; empty where its cohort has no planted lesions or its prior no likelihood."""
    if "lesion" not in run.cohort or not isinstance(prior, Likelihood):
        return pd.DataFrame(columns=["roc_area", "dice", "line"], dtype=float), {}
    codes = {name: np.load(run.path("codes", f"{name}.npy"), mmap_mode="r") for name in ("validate", "lesion")}
    return against_lesions(run.cohort, codes, prior, vqvae)


def against_lesions(
    cohort: Cohort, codes: dict[str, np.ndarray], prior: Any, vqvae: Any, most: int = 96
) -> tuple[pd.DataFrame, dict]:
    """ROC area and Dice of each map on slices with a planted lesion, inside the brain; and what a figure shows of them.

    Each map is tried as it is, and relative to its mean and spread at that place in healthy validate subjects. The line above
    which a pixel counts as lesion is the 99th percentile of healthy validate subjects: no lesion is looked at to set it.
    """
    lesion, healthy = cohort["lesion"], cohort["validate"]
    rows = np.flatnonzero(np.asarray(lesion.lesion).any((1, 2)))
    rows = rows[linspace_rows(len(rows), most)]
    well = linspace_rows(len(healthy), 2 * most)
    truth, inside = np.asarray(lesion.lesion[rows]) > 0, brain_mask(np.asarray(lesion.images[rows]))
    usual, found = maps(healthy, codes["validate"], prior, vqvae, well), maps(lesion, codes["lesion"], prior, vqvae, rows)
    well_inside = brain_mask(np.asarray(healthy.images[well]))
    for name in list(found):
        mean, spread = usual[name].mean(0), usual[name].std(0)
        spread = spread + 0.1 * spread.mean()
        found[f"{name}, relative"], usual[f"{name}, relative"] = (found[name] - mean) / spread, (usual[name] - mean) / spread
    table = {}
    for name, scores in found.items():
        line = np.quantile(usual[name][well_inside], 0.99)
        called = (scores > line) & inside
        table[name] = {
            "roc_area": roc_area(scores[inside], truth[inside]),
            "dice": float(2 * (called & truth).sum() / max(1, called.sum() + truth.sum())),
            "line": float(line),
        }
    shown = {
        "images": np.asarray(lesion.images[rows]),
        "truth": truth,
        "inside": inside,
        "maps": found,
        "subjects": lesion.subjects[rows],
    }
    return pd.DataFrame(table).T, shown


def roc_area(scores: np.ndarray, truth: np.ndarray) -> float:
    """The chance that a pixel inside a lesion scores above one outside; ties count half."""
    from scipy.stats import rankdata

    positive = int(truth.sum())
    if positive in (0, len(truth)):
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))
