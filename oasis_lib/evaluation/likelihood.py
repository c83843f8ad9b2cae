"""Likelihoods of held-out subjects, surprisal by position, influence between tokens, and the cost of sampling."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from oasis_lib.cohort import SPLITS, Split
from oasis_lib.device import full_precision
from oasis_lib.metrics import PAIRS, apart, bootstrap_by_subject, in_regions, pairs
from oasis_lib.models.position_prior import PositionPrior
from oasis_lib.models.prior import Likelihood
from oasis_lib.run import Run
from oasis_lib.training.data import cdr_index, even_slice_indices, linspace_rows
from oasis_lib.training.progress import SHOWN, SNAPSHOTS


def tensor(codes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(codes, np.int64))


def independent(codes: np.ndarray, slice_indices: np.ndarray, wanted: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """{name: (len(wanted), h, w)} tokens drawn from training maps (n, h, w) independently of each other."""
    rng, one, size = np.random.default_rng(seed), np.zeros(len(codes), int), (len(wanted), *codes.shape[1:])
    return {
        "by frequency": rng.choice(codes.ravel(), size),
        "by position": by_position(codes, one, np.zeros(len(wanted), int), rng),
        "by position and slice index": by_position(codes, slice_indices, wanted, rng),
    }


def by_position(codes: np.ndarray, indices: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(len(wanted), h, w): each position's token drawn from those at that position and slice index, independently."""
    flat, drawn = codes.reshape(len(codes), -1), np.empty((len(wanted), codes[0].size), codes.dtype)
    for index in np.unique(wanted):
        pool, rows = np.flatnonzero(indices == index), np.flatnonzero(wanted == index)
        drawn[rows] = np.take_along_axis(flat, rng.choice(pool, (len(rows), flat.shape[1])), 0)
    return drawn.reshape(len(wanted), *codes.shape[1:])


def likelihoods(run: Run, priors: dict, codes: dict[str, np.ndarray], most: int = 2000) -> pd.DataFrame:
    """Bits of images, at most so many a split: columns prior, split, row, subject, bits; beside token frequencies."""
    size, place = next(iter(priors.values())).codebook_size, np.arange(codes["train"][0].size)
    counts = np.bincount(codes["train"].ravel(), minlength=size) + 0.5  # an unused token costs finitely many bits
    everywhere, counted = np.log(counts / counts.sum()), PositionPrior(codes["train"].shape[1:], size)
    counted.start(tensor(codes["train"]))
    placed = counted.logits.double().numpy()
    tables = []
    for split in SPLITS:
        part, maps = run.cohort[split], np.asarray(codes[split], np.int64)
        rows = linspace_rows(len(maps), min(most, len(run.cohort["test"])) if split == "train" else most)
        flat = maps[rows].reshape(len(rows), -1)
        nats = {"frequencies": -everywhere[flat].sum(1), "frequencies by position": -placed[place, flat].sum(1)}
        labels = tensor(part.slice_indices[rows]), tensor(cdr_index(run.cohort, split)[rows])
        for name, prior in priors.items():
            if isinstance(prior, Likelihood):
                nats[name] = prior.nll(tensor(maps[rows]), *labels).cpu().double().numpy()
        about = {"split": split, "row": rows, "subject": part.subjects[rows]}
        tables += [pd.DataFrame({"prior": name} | about | {"bits": n / math.log(2)}) for name, n in nats.items()]
    return pd.concat(tables, ignore_index=True)


def bits_table(images: pd.DataFrame, codes_an_image: int, repeats: int = 2000) -> pd.DataFrame:
    """One row a prior and split: mean bits an image with its 95 % interval over subjects, and nats a token."""
    rows = []
    for (prior, split), part in images.groupby(["prior", "split"], sort=False):
        mean, low, high = bootstrap_by_subject(part["bits"], part["subject"], repeats)
        rows.append((prior, split, mean, low, high, mean * math.log(2) / codes_an_image))
    return pd.DataFrame(rows, columns=["prior", "split", "bits", "low", "high", "nats_a_code"])


def bit_maps(prior: Any, codes: np.ndarray, slice_indices: np.ndarray) -> np.ndarray:
    """(N, h, w) bits of every token."""
    return -prior.log_probs(tensor(codes), tensor(slice_indices)).cpu().double().numpy() / math.log(2)


@torch.no_grad()
def influence(prior: Any, codes: np.ndarray, row: int, column: int, every: int = 1) -> np.ndarray:
    """(h, w) total variation, 0 to 1, of the prediction at one position when each other token is changed.

    With `every`, of each so many rows and columns: (h / every, w / every). The unchanged map is part of each batch: a
    GPU rounds by its size.
    """
    maps = tensor(codes).to(prior.device)
    h, w = maps.shape
    places = torch.arange(h * w, device=prior.device).view(h, w)[::every, ::every]
    changed = maps.flatten().repeat(places.numel(), 1)
    each = torch.arange(places.numel(), device=prior.device)
    changed[each, places.flatten()] = (changed[each, places.flatten()] + prior.codebook_size // 2) % prior.codebook_size
    with full_precision(prior.device):
        parts = (torch.cat([maps[None], part]) for part in changed.view(-1, h, w).split(64))
        chances = (prior(part)[:, row, column].softmax(-1) for part in parts)
        moved = [(chance[1:] - chance[0]).abs().sum(1) / 2 for chance in chances]
    return torch.cat(moved).view(places.shape).cpu().numpy()


def reach(rows: int, grid: tuple[int, int], row: int, column: int) -> np.ndarray:
    """(h, w) 1 at the positions that a PixelCNN of that reach can see, else 0."""
    y, x = np.mgrid[: grid[0], : grid[1]]
    before = (y < row) | ((y == row) & (x < column))
    return (before & (row - y <= rows) & (abs(x - column) <= rows)).astype(float)


def costs(priors: dict, codes: np.ndarray, slice_indices: np.ndarray, count: int = 32, seed: int = 0) -> pd.DataFrame:
    """Seconds and passes a map, and the spatial histogram distance of samples: one row a prior, after other subjects.

    `misplaced` is the total variation (0 alike, 1 disjoint), from validation subjects, of tokens by region and of
    neighbouring pairs, averaged.
    """
    rows, real = linspace_rows(len(codes), count), tensor(codes)
    others = np.unique(np.clip(rows + 1, 0, len(codes) - 1))
    found = [{"prior": "other subjects", "seconds": np.nan, "passes": np.nan} | misplaced(real, real[others])]
    for name, prior in priors.items():
        options = {"generator": torch.Generator().manual_seed(seed), "batch": len(rows)}
        prior.sample(1, slice_index=0 if prior.slice_indices else None, **options)  # caches are built once
        started = time.perf_counter()
        wanted = tensor(slice_indices[rows]) if prior.slice_indices else None
        drawn = prior.sample(len(rows), slice_index=wanted, **options).cpu()
        about = {"prior": name, "seconds": (time.perf_counter() - started) / len(rows), "passes": prior.passes}
        found.append(about | misplaced(real, drawn))
    return pd.DataFrame(found)


def misplaced(real: torch.Tensor, drawn: torch.Tensor) -> dict[str, float]:
    size = int(max(real.max(), drawn.max())) + 1
    regions = apart(in_regions(real, size), in_regions(drawn, size), 16 * size)
    placed = (regions + apart(pairs(real), pairs(drawn), PAIRS)) / 2
    distinct = len(drawn.flatten(1).unique(dim=0)) / len(drawn)
    return {"misplaced": placed, "histogram": apart(real, drawn, size), "distinct": distinct}


def snapshots(folder: str | Path, most: int = 4) -> dict[int, np.ndarray]:
    """{step: (n, h, w) tokens} of the same noise, at the last few of the moments that training kept."""
    with np.load(Path(folder) / SNAPSHOTS) as stored:
        return {int(step): codes for step, codes in list(zip(stored["steps"], stored["codes"]))[-most:]}


def differing(codes: np.ndarray) -> float:
    """(n, h, w) -> the share of positions at which two of these maps differ, mean over all pairs."""
    found = [(codes[a] != codes[b]).mean() for a in range(len(codes)) for b in range(a)]
    return float(np.mean(found)) if found else float("nan")


def differing_subjects(codes: np.ndarray, split: Split, slice_indices: int, count: int = SHOWN) -> float:
    """The same of subjects: as many maps at the slice indices of `snapshots`, each of another subject."""
    subjects, found = np.unique(split.subjects), []
    wanted = even_slice_indices(count, max(slice_indices, 1))
    for first in range(len(subjects)):
        mine = [np.flatnonzero(split.subjects == subjects[(first + step) % len(subjects)]) for step in range(count)]
        rows = [own[np.abs(split.slice_indices[own] - index).argmin()] for own, index in zip(mine, wanted)]
        found.append(differing(np.asarray(codes)[rows]))
    return float(np.mean(found))


def variety(folder: str | Path) -> pd.DataFrame:
    """One row a kept moment of training: its step, bits of validation subjects then, and how far its samples differ."""
    history = pd.read_csv(Path(folder) / "history.csv")[["step", "validate_bits"]]
    found = {step: differing(codes) for step, codes in snapshots(folder, most=1000).items()}
    return pd.DataFrame({"step": list(found), "differing": list(found.values())}).merge(history, on="step")


def of_one_subject(split: Split, count: int = 3) -> np.ndarray:
    """A few rows of the split's first subject, spread over the middle of the brain."""
    rows = np.flatnonzero(split.subjects == split.subjects[0])
    return rows[(np.arange(1, count + 1) * len(rows)) // (count + 1)]
