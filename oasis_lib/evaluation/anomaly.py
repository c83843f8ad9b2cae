"""Anomaly maps: the surprisal of tokens under a prior, and reconstruction error, held against planted lesions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from oasis_lib.cohort import Split
from oasis_lib.evaluation.features import to_tensor
from oasis_lib.metrics import brain_mask
from oasis_lib.models.prior import Likelihood
from oasis_lib.run import Run
from oasis_lib.training import best_device, decode_codes
from oasis_lib.training.data import linspace_rows
from oasis_lib.vision import blur


def maps(split: Split, codes: np.ndarray, prior: Any, vqvae: Any, rows: np.ndarray) -> dict[str, np.ndarray]:
    """(N, H, W) each: surprisal (nats) of the token at each pixel, and absolute reconstruction error, both smoothed."""
    device, images = best_device(), np.asarray(split.images[rows])
    indices = torch.as_tensor(split.slice_indices[rows].copy()) if prior.slice_indices else None
    surprisal = -prior.to(device).log_probs(torch.as_tensor(codes[rows].astype(np.int64)), slice_index=indices).cpu()
    size = images.shape[-1]
    raised = F.interpolate(surprisal[:, None], size=(size, size), mode="bilinear", align_corners=False)
    error = (to_tensor(images) - to_tensor(decode_codes(vqvae, codes[rows], device, crisp=False))).abs()
    smooth = blur(error, size / codes.shape[-1] / 2)
    return {"surprisal": raised[:, 0].numpy(), "reconstruction error": smooth[:, 0].numpy()}


def against_lesions(run: Run, prior: Any, vqvae: Any, most: int = 96) -> tuple[pd.DataFrame, dict]:
    """ROC area and Dice of each map inside the brain of slices with a planted lesion; and what a figure shows of them.

    Each map also relative to its mean and spread at that place in healthy validation subjects. A pixel is called lesion
    above their 99th percentile. Empty where the cohort has no planted lesions or the prior no likelihood.
    """
    if "lesion" not in run.cohort or not isinstance(prior, Likelihood):
        return pd.DataFrame(columns=["roc_area", "dice", "line"], dtype=float), {}
    lesion, healthy = run.cohort["lesion"], run.cohort["validate"]
    codes = {name: np.load(run.path("codes", f"{name}.npy"), mmap_mode="r") for name in ("validate", "lesion")}
    rows, well = np.flatnonzero(np.asarray(lesion.lesion).any((1, 2))), linspace_rows(len(healthy), 2 * most)
    rows = rows[linspace_rows(len(rows), most)]
    images, truth = np.asarray(lesion.images[rows]), np.asarray(lesion.lesion[rows]) > 0
    inside, well_inside = brain_mask(images), brain_mask(np.asarray(healthy.images[well]))
    usual = maps(healthy, codes["validate"], prior, vqvae, well)
    found, table = maps(lesion, codes["lesion"], prior, vqvae, rows), {}
    for name in list(found):
        mean, spread = usual[name].mean(0), usual[name].std(0)
        spread = spread + 0.1 * spread.mean()
        for side in (usual, found):
            side[f"{name}, relative"] = (side[name] - mean) / spread
    for name, scores in found.items():
        line = np.quantile(usual[name][well_inside], 0.99)
        called = (scores > line) & inside
        dice = float(2 * (called & truth).sum() / max(1, called.sum() + truth.sum()))
        area = float(roc_auc_score(truth[inside], scores[inside]))
        table[name] = {"roc_area": area, "dice": dice, "line": float(line)}
    shown = {"images": images, "truth": truth, "inside": inside, "maps": found, "subjects": lesion.subjects[rows]}
    return pd.DataFrame(table).T, shown
