"""Perturbed tokens: one replaced, all but the most used removed, all shuffled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from oasis_lib.evaluation.codebook import Reading, farthest
from oasis_lib.metrics import bootstrap_by_person, brain_mask, ssim


def swapped(reading: Reading, codes: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A map (h, w) with the least similar token in the middle, and the pixels (row, column, height, width) it covers."""
    edited, factor = np.array(codes), reading.factor
    row, column = (side // 2 for side in edited.shape)
    edited[row, column] = farthest(reading.codebook, int(edited[row, column]), reading.counts)
    return edited, (row * factor, column * factor, factor, factor)


def variants(reading: Reading, codes: np.ndarray, keep: int = 0) -> tuple[dict[str, np.ndarray], tuple[int, int, int, int]]:
    """A map (h, w) decoded as it is and perturbed three ways, and the pixels of the replaced token."""
    edited, box = swapped(reading, codes)
    keep = keep or few(reading)
    maps = {"decoded": codes, "one token replaced": edited, f"{keep} most used": keep_commonest(reading, codes, keep)}
    maps["shuffled"] = shuffled(codes)
    return dict(zip(maps, reading.decode(np.stack(list(maps.values()))))), box


def few(reading: Reading) -> int:
    """How many tokens are kept when only the commonest are: 64, or a quarter of a small codebook."""
    return max(1, min(64, len(reading.codebook) // 4))


def keep_commonest(reading: Reading, codes: np.ndarray, keep: int) -> np.ndarray:
    """The same maps with only the `keep` most used tokens: any other becomes the nearest of these."""
    kept = np.argsort(-reading.counts, kind="stable")[:keep]
    apart = ((reading.codebook[:, None] - reading.codebook[kept][None]) ** 2).sum(-1)  # (K, keep)
    instead = kept[apart.argmin(1)]
    instead[kept] = kept
    return instead[np.asarray(codes)]


def shuffled(codes: np.ndarray, seed: int = 0) -> np.ndarray:
    """One map's own tokens, permuted."""
    return np.random.default_rng(seed).permutation(np.asarray(codes).ravel()).reshape(np.shape(codes))


def tamper(reading: Reading, rows: Sequence[int], keep: int = 0) -> pd.DataFrame:
    """SSIM inside the brain (by subject, with its interval): all tokens, the `keep` most used, shuffled."""
    rows, keep = np.sort(np.asarray(rows)), keep or few(reading)
    images, codes = np.asarray(reading.shown.images[rows]), np.asarray(reading.codes["test"][rows])
    mask = torch.from_numpy(brain_mask(images))[:, None]
    real = torch.from_numpy(images)[:, None].float() / 255
    variants = {
        "all tokens": codes,
        f"{keep} most used": keep_commonest(reading, codes, keep),
        "shuffled": np.stack([shuffled(one, seed) for seed, one in enumerate(codes)]),
    }
    people, scores = reading.shown.subjects[rows], {}
    for name, maps in variants.items():
        each = ssim(torch.from_numpy(reading.decode(maps))[:, None], real, mask=mask).numpy()
        scores[name] = bootstrap_by_person(each, people)
    return pd.DataFrame(scores, index=["ssim", "low", "high"]).T
