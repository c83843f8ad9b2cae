"""Whole heads, level upon level, and other things that a prior can be asked for: a box filled in, a walk, a rating."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from oasis_lib.cohort import Cohort
from oasis_lib.evaluation.anatomy import AREAS, Mixture
from oasis_lib.evaluation.features import to_tensor
from oasis_lib.evaluation.samples import draw
from oasis_lib.metrics import ms_ssim
from oasis_lib.run import Run
from oasis_lib.training import best_device, decode_codes


def kept_between_levels(codes: np.ndarray, subjects: np.ndarray, levels: np.ndarray, count: int) -> np.ndarray:
    """(count - 1, h, w): how often people's code at a place is the same one level further up."""
    found = np.zeros((count - 1, *codes.shape[1:]))
    people = np.unique(subjects)
    place = {(s, l): row for row, (s, l) in enumerate(zip(subjects, levels))}
    for level in range(count - 1):
        pairs = [(place[p, level], place[p, level + 1]) for p in people if (p, level) in place and (p, level + 1) in place]
        if pairs:
            low, high = np.array(pairs).T
            found[level] = (codes[low] == codes[high]).mean(0)
    return found


def whole_head(prior: Any, kept: np.ndarray, *, heads: int = 1, seed: int = 0, strength: float = 1.0, **options: Any) -> np.ndarray:
    """(heads, levels, h, w): level 0 from the prior, then each level given the one below.

    Of the map below, each code stays as often as it does between the same two
    levels of people at that place; the prior draws the others anew for the new level, given those that stayed.
    """
    device = best_device()
    prior, generator = prior.to(device), torch.Generator().manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    codes = [prior.sample(heads, level=0, generator=generator, **options)]
    for level, share in enumerate(kept, start=1):
        stay = torch.rand(heads, *share.shape, generator=chance) < strength * torch.as_tensor(share)
        codes.append(prior.fill(codes[-1], ~stay.to(device), level=level, generator=generator, **options))
    return torch.stack(codes, dim=1).cpu().numpy().astype(np.int16)


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

    Heads of test people; heads drawn level upon level; and levels drawn apart, which know nothing of each other.
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
    sets = {cohort.who("test"): real, "level upon level": grown, "levels drawn apart": apart}
    return {name: images[0] for name, images in sets.items()}, {name: neighbours_alike(images) for name, images in sets.items()}


def box_mask(grid: tuple[int, int], share: float = 0.35) -> torch.Tensor:
    """(1, h, w): true in a box around the middle of the head."""
    mask = torch.zeros(1, *grid, dtype=torch.bool)
    height, width = (max(1, round(side * share)) for side in grid)
    top, left = (grid[0] - height) // 2, (grid[1] - width) // 2
    mask[:, top : top + height, left : left + width] = True
    return mask


def fill_box(
    prior: Any, codes: np.ndarray, level: int, count: int = 5, seed: int = 0, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """One map (h, w), its middle drawn anew `count` times: (count, h, w) codes, and the mask (h, w)."""
    mask = box_mask(codes.shape)
    repeated = torch.as_tensor(codes.astype(np.int64))[None].repeat(count, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    level = level if prior.levels else None
    filled = prior.to(best_device()).fill(repeated, mask, level=level, generator=generator, **options)
    return filled.cpu().numpy().astype(np.int16), mask[0].numpy()


def walk(vqvae: Any, first: np.ndarray, last: np.ndarray, steps: int = 7) -> dict[str, np.ndarray]:
    """(steps, H, W) uint8 each: from one code map to another through the embedding, and by swapping codes in random order."""
    device = best_device()
    vqvae = vqvae.to(device)
    ends = torch.as_tensor(np.stack([first, last]).astype(np.int64), device=device)
    with torch.no_grad():
        start, end = vqvae.embed(ends)
        shares = torch.linspace(0, 1, steps, device=device)
        between = torch.stack([start + share * (end - start) for share in shares])
        mixed = (vqvae.decode_latents(between).clamp(0, 1).mean(1) * 255).round().to(torch.uint8).cpu().numpy()
    order = np.random.default_rng(0).permutation(first.size).reshape(first.shape) / first.size
    swapped = np.stack([np.where(order < share, last, first) for share in np.linspace(0, 1, steps)])
    return {"through the embedding": mixed, "code by code": decode_codes(vqvae, swapped, device)}


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
