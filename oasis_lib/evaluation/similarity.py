"""How different samples are from each other, how their detail is spread over frequencies, and to which side they lean."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from oasis_lib.evaluation.features import to_tensor
from oasis_lib.evaluation.memorisation import shrink
from oasis_lib.metrics import at_once, ms_ssim
from oasis_lib.training.data import swapped


@torch.no_grad()
def pairwise_similarity(
    images: np.ndarray, levels: np.ndarray, people: np.ndarray, *, pairs: int = 8, seed: int = 0, device: str = "cpu"
) -> dict[int, float]:
    """level -> mean MS-SSIM of pairs of different people at that level. To be matched with the real value, not minimised."""
    rng, chosen = np.random.default_rng(seed), []
    for level in np.unique(levels):
        rows = np.flatnonzero(levels == level)
        for _ in range(pairs):
            a = rng.choice(rows)
            others = rows[people[rows] != people[a]]
            if len(others):
                chosen.append((level, a, rng.choice(others)))
    if not chosen:
        return {}
    level, first, second = np.array(chosen).T
    values, few = [], at_once(images[0].size, device)
    for start in range(0, len(level), few):
        part = slice(start, start + few)
        values.append(ms_ssim(to_tensor(images[first[part]], device), to_tensor(images[second[part]], device)).cpu())
    values = torch.cat(values).numpy()
    return {int(one): float(values[level == one].mean()) for one in np.unique(level)}


@torch.no_grad()
def radial_spectrum(images: np.ndarray, device: str = "cpu", bins: int = 32) -> np.ndarray:
    """(bins,) mean power in decibels at each distance from the middle of the frequency plane, without the flat part."""
    size, sums = images.shape[-1], 0
    frequency = torch.fft.fftfreq(size, device=device)
    radius = torch.sqrt(frequency[:, None] ** 2 + torch.fft.rfftfreq(size, device=device)[None] ** 2)
    bin_of = (radius * 2 * bins).long().clamp(max=bins).flatten()  # the corners beyond half a cycle a pixel go last
    count = torch.bincount(bin_of, minlength=bins + 1)
    few = at_once(images[0].size, device)
    for start in range(0, len(images), few):
        power = torch.fft.rfft2(to_tensor(images[start : start + few], device)[:, 0]).abs() ** 2
        ring = torch.zeros(len(power), bins + 1, device=device).index_add_(1, bin_of, power.flatten(1)) / count
        sums = sums + 10 * torch.log10(ring + 1e-6).sum(0)
    return (sums / len(images)).cpu().numpy()[1:bins]


def spectrum_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference in decibels, every octave counting alike: else the finest detail outweighs all anatomy."""
    weight = 1 / np.arange(1, len(a) + 1)
    return float(np.sqrt((weight * (a - b) ** 2).sum() / weight.sum()))


def sides(images: np.ndarray, ends: int, device: str = "cpu") -> np.ndarray:
    """(N, 1024): what differs between each head and its mirror image, shrunk. Twice the heads' middle column is `ends`."""
    return shrink(images, device) - shrink(swapped(images, ends), device)


def leaning(found: np.ndarray, levels: np.ndarray, usual: Mapping[int, np.ndarray]) -> float:
    """How far the `sides` of heads are those that are `usual` at their levels: 1 as people's, 0 not at all, -1 mirrored."""
    wanted = np.stack([usual.get(int(level), np.zeros(found.shape[1])) for level in levels])
    return float((found * wanted).sum() / np.maximum((wanted**2).sum(), 1e-12))
