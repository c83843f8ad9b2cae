"""Likelihoods of held-out subjects, surprisal by position, influence of tokens on each other, and the cost of sampling."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from oasis_lib.cohort import Split
from oasis_lib.device import full_precision
from oasis_lib.metrics import PAIRS, apart, bootstrap_by_subject, in_regions, pairs
from oasis_lib.models.position_prior import PositionPrior
from oasis_lib.models.prior import Likelihood
from oasis_lib.models.sampler import gumbel, image_seeds
from oasis_lib.run import Run
from oasis_lib.training.data import cdr_index, even_slice_indices, linspace_rows, seeded
from oasis_lib.training.tasks import SHOWN, SNAPSHOTS

KNOWN = 0.5  # added to every count: an entry that training subjects never use must not cost infinitely many bits


def log_frequencies(codes: np.ndarray, codebook_size: int) -> torch.Tensor:
    """(K,) how often training subjects use each token."""
    counts = np.bincount(codes.ravel(), minlength=codebook_size) + KNOWN
    return torch.from_numpy(np.log(counts / counts.sum()))


def positional(codes: np.ndarray, slice_indices: np.ndarray, codebook_size: int, knots: int = 0) -> PositionPrior:
    """The same at each position of training maps (n, h, w), and with `knots` at as many slice indices."""
    prior = PositionPrior(codes.shape[1:], codebook_size, int(slice_indices.max()) + 1, knots)
    prior.start(torch.from_numpy(np.asarray(codes, np.int64)), torch.from_numpy(slice_indices.astype(np.int64)))
    return prior


def independent(
    codes: np.ndarray, slice_indices: np.ndarray, wanted: np.ndarray, codebook_size: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """{name: (n, h, w)} tokens sampled without regard to each other, a map for each slice index wanted."""
    prior = positional(codes, slice_indices, codebook_size, knots=int(slice_indices.max()) + 1)
    noise = gumbel(image_seeds(len(wanted), seeded(seed), "cpu"), torch.arange(codes[0].size), codebook_size)
    logits = {"by frequency": log_frequencies(codes, codebook_size), "by position": prior.logits}
    logits["by position and slice index"] = prior(slice(None), torch.from_numpy(np.asarray(wanted, np.int64)))
    return {name: (some + noise).argmax(-1).view(-1, *codes.shape[1:]).numpy() for name, some in logits.items()}


def likelihoods(
    run: Run, priors: dict[str, Any], codes: dict[str, np.ndarray], splits=("train", "validate", "test"), most: int = 2000
) -> pd.DataFrame:
    """Bits of images, at most so many a split: columns prior, split, row, subject, bits. Frequencies stand beside the priors."""
    codebook_size = next(iter(priors.values())).codebook_size
    everywhere, place = log_frequencies(codes["train"], codebook_size).numpy(), np.arange(codes["train"][0].size)
    placed = positional(codes["train"], run.cohort["train"].slice_indices, codebook_size).logits.double().numpy()
    tables = []
    for split in splits:
        part, maps = run.cohort[split], np.asarray(codes[split], np.int64)
        few = min(most, len(run.cohort["test"])) if split == "train" else most  # enough to see whether they are known by heart
        rows = linspace_rows(len(maps), few)
        flat = maps[rows].reshape(len(rows), -1)
        found = {
            "frequencies": -everywhere[flat].sum(1) / math.log(2),
            "frequencies by position": -placed[place, flat].sum(1) / math.log(2),
        }
        slice_index, cdr = (
            torch.from_numpy(part.slice_indices[rows].astype(np.int64)),
            torch.from_numpy(cdr_index(run.cohort, split)[rows]),
        )
        for name, prior in priors.items():
            if isinstance(prior, Likelihood):
                found[name] = prior.nll(torch.from_numpy(maps[rows]), slice_index, cdr).cpu().double().numpy() / math.log(2)
        tables += [
            pd.DataFrame({"prior": name, "split": split, "row": rows, "subject": part.subjects[rows], "bits": bits})
            for name, bits in found.items()
        ]
    return pd.concat(tables, ignore_index=True)


def bits_table(images: pd.DataFrame, codes_an_image: int, repeats: int = 2000) -> pd.DataFrame:
    """One row a prior and split: mean bits an image with its interval over subjects, and nats a code."""
    rows = []
    for (prior, split), part in images.groupby(["prior", "split"], sort=False):
        mean, low, high = bootstrap_by_subject(part["bits"].to_numpy(), part["subject"].to_numpy(), repeats)
        nats = mean * math.log(2) / codes_an_image
        rows.append({"prior": prior, "split": split, "bits": mean, "low": low, "high": high, "nats_a_code": nats})
    return pd.DataFrame(rows)


def bit_maps(prior: Any, codes: np.ndarray, slice_indices: np.ndarray) -> np.ndarray:
    """(N, h, w) bits of every code: where the prior is unsure."""
    found = prior.log_probs(torch.from_numpy(np.asarray(codes, np.int64)), torch.from_numpy(slice_indices.astype(np.int64)))
    return -found.cpu().double().numpy() / math.log(2)


@torch.no_grad()
def influence(prior: Any, codes: np.ndarray, row: int, column: int, every: int = 1) -> np.ndarray:
    """(h, w) how much the chances at one place move when each other code is changed: half the summed difference, 0 to 1.

    `every` second, third ... row and column alone is tried, and comes back: (h / every, w / every).
    The unchanged map goes through in each batch: a GPU reckons otherwise in a batch of another size.
    """
    maps = torch.from_numpy(np.asarray(codes, np.int64)).to(prior.device)
    h, w = maps.shape
    places = torch.arange(h * w, device=prior.device).view(h, w)[::every, ::every]
    changed = maps.expand(places.numel(), h, w).clone().view(-1, h * w)
    each = torch.arange(places.numel(), device=prior.device)
    changed[each, places.flatten()] = (changed[each, places.flatten()] + prior.codebook_size // 2) % prior.codebook_size
    with full_precision(prior.device):
        parts = (torch.cat([maps[None], part]) for part in changed.view(-1, h, w).split(64))
        chances = (prior(part)[:, row, column].softmax(-1) for part in parts)
        moved = [(chance[1:] - chance[0]).abs().sum(1) / 2 for chance in chances]
    return torch.cat(moved).view(places.shape).cpu().numpy()


def reach(rows: int, grid: tuple[int, int], row: int, column: int) -> np.ndarray:
    """(h, w) 1 where a PixelCNN of that reach can look, else 0."""
    y, x = np.mgrid[: grid[0], : grid[1]]
    before = (y < row) | ((y == row) & (x < column))
    return (before & (row - y <= rows) & (abs(x - column) <= rows)).astype(float)


def costs(priors: dict[str, Any], codes: np.ndarray, slice_indices: np.ndarray, count: int = 32, seed: int = 0) -> pd.DataFrame:
    """What a map costs and how well its codes are placed: one row a prior, beside other subjects and draws by frequency.

    `misplaced` is half the summed difference, from validation subjects, of which codes stand in which region and which follow each
    other: 0 is alike, 1 nothing in common. It has a floor, as no two groups of subjects are alike.
    """
    codes = np.asarray(codes, np.int64)
    rows = linspace_rows(len(codes), count)
    others = np.unique(np.clip(rows + 1, 0, len(codes) - 1))
    real = torch.from_numpy(codes)
    found = [{"prior": "other subjects", "seconds": np.nan, "passes": np.nan} | misplaced(real, real[others], 0)]
    for name, prior in priors.items():
        generator = torch.Generator().manual_seed(seed)
        prior.sample(
            1, slice_index=0 if prior.slice_indices else None, generator=generator, batch=len(rows)
        )  # what is built only once
        started = time.perf_counter()
        slice_index = torch.from_numpy(slice_indices[rows].astype(np.int64)) if prior.slice_indices else None
        drawn = prior.sample(len(rows), slice_index=slice_index, generator=generator, batch=len(rows)).cpu()
        seconds = (time.perf_counter() - started) / len(rows)
        found.append({"prior": name, "seconds": seconds, "passes": prior.passes} | misplaced(real, drawn, prior.codebook_size))
    return pd.DataFrame(found)


def misplaced(real: torch.Tensor, drawn: torch.Tensor, codebook_size: int) -> dict[str, float]:
    codebook_size = codebook_size or int(max(real.max(), drawn.max())) + 1
    regions = apart(in_regions(real, codebook_size), in_regions(drawn, codebook_size), 16 * codebook_size)
    distinct = len(drawn.flatten(1).unique(dim=0)) / len(drawn)
    placed = {"misplaced": (regions + apart(pairs(real), pairs(drawn), PAIRS)) / 2}
    return placed | {"histogram": apart(real, drawn, codebook_size), "distinct": distinct}


def snapshots(folder: str | Path, most: int = 4) -> dict[int, np.ndarray]:
    """{step: (n, h, w) codes} of the same noise, at the last few of the moments that training kept."""
    with np.load(Path(folder) / SNAPSHOTS) as stored:
        return {int(step): codes for step, codes in list(zip(stored["steps"], stored["codes"]))[-most:]}


def differing(codes: np.ndarray) -> float:
    """(n, h, w) -> the share of places at which two of these maps hold other codes, over all pairs."""
    pairs = [(codes[a] != codes[b]).mean() for a in range(len(codes)) for b in range(a)]
    return float(np.mean(pairs)) if pairs else float("nan")


def differing_subjects(codes: np.ndarray, split: Split, slice_indices: int, count: int = SHOWN) -> float:
    """The same of subjects: as many maps at the slice indices of `snapshots`, each of somebody else."""
    subjects, found = np.unique(split.subjects), []
    wanted = even_slice_indices(count, max(slice_indices, 1))
    for first in range(len(subjects)):
        mine = [np.flatnonzero(split.subjects == subjects[(first + step) % len(subjects)]) for step in range(count)]
        rows = [own[np.abs(split.slice_indices[own] - slice_index).argmin()] for own, slice_index in zip(mine, wanted)]
        found.append(differing(np.asarray(codes)[rows]))
    return float(np.mean(found))


def variety(folder: str | Path) -> pd.DataFrame:
    """One row a moment that training kept: its step, the bits of validation subjects then, and how far its samples differ."""
    history = pd.read_csv(Path(folder) / "history.csv")[["step", "validate_bits"]]
    shots = snapshots(folder, most=1000)
    drawn = pd.DataFrame({"step": list(shots), "differing": [differing(codes) for codes in shots.values()]})
    return drawn.merge(history, on="step")


def of_one_subject(split: Split, count: int = 3) -> np.ndarray:
    """A few rows of the split's first subject, spread over the middle of the head."""
    rows = np.flatnonzero(split.subjects == split.subjects[0])
    return rows[(np.arange(1, count + 1) * len(rows)) // (count + 1)]
