"""Perturbed tokens: one replaced, all but the most used removed, all shuffled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from oasis_lib.evaluation.codebook import CodebookStatistics, farthest
from oasis_lib.metrics import bootstrap_by_subject, brain_mask, ssim


def perturbed(reading: CodebookStatistics, codes: np.ndarray) -> dict[str, np.ndarray]:
    """Maps (n, h, w) as they are and perturbed three ways: the middle token swapped for the least similar, few kept, shuffled."""
    keep = max(1, min(64, len(reading.codebook) // 4))
    swapped, middle = np.array(codes), tuple(side // 2 for side in codes.shape[1:])
    for one in swapped:
        one[middle] = farthest(reading.codebook, int(one[middle]), reading.counts)
    mixed = np.stack([np.random.default_rng(seed).permutation(one.ravel()) for seed, one in enumerate(codes)])
    return {
        "all tokens": codes,
        "one token replaced": swapped,
        f"{keep} most used": keep_commonest(reading, codes, keep),
        "shuffled": mixed.reshape(codes.shape),
    }


def keep_commonest(reading: CodebookStatistics, codes: np.ndarray, keep: int) -> np.ndarray:
    """The same maps with only the `keep` most used tokens: any other becomes the nearest of these."""
    kept = np.argsort(-reading.counts, kind="stable")[:keep]
    apart = ((reading.codebook[:, None] - reading.codebook[kept][None]) ** 2).sum(-1)  # (K, keep)
    instead = kept[apart.argmin(1)]
    instead[kept] = kept
    return instead[np.asarray(codes)]


def tamper(reading: CodebookStatistics, rows: Sequence[int]) -> pd.DataFrame:
    """SSIM inside the brain of test slices, mean over subjects with its interval: a row a perturbation."""
    images, codes = np.asarray(reading.shown.images[rows]), np.asarray(reading.codes["test"][rows])
    mask, real = torch.from_numpy(brain_mask(images))[:, None], torch.from_numpy(images)[:, None].float() / 255
    scores = {}
    for name, maps in perturbed(reading, codes).items():
        each = ssim(torch.from_numpy(reading.decode(maps))[:, None], real, mask=mask).numpy()
        scores[name] = bootstrap_by_subject(each, reading.shown.subjects[rows])
    return pd.DataFrame(scores, index=["ssim", "low", "high"]).T
