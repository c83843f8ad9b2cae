"""Codebook statistics: how often, where and next to what each token is used, and what it looks like decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from oasis_lib.cohort import Cohort, Split
from oasis_lib.device import full_precision
from oasis_lib.models import load, perplexity

if TYPE_CHECKING:
    from oasis_lib.run import Run


@dataclass(frozen=True)
class CodebookStatistics:
    """A trained model, the token maps of its cohort, and the statistics of both. Made by `read`."""

    model: torch.nn.Module
    cohort: Cohort
    codes: dict[str, np.ndarray]  # split -> (N, h, w)

    @cached_property
    def codebook(self) -> np.ndarray:  # (K, D)
        return self.model.quantizer.codebook.detach().float().cpu().numpy()

    @cached_property
    def counts(self) -> np.ndarray:  # (K,) uses by training subjects
        return usage(self.codes["train"], len(self.codebook))

    @cached_property
    def patches(self) -> np.ndarray:  # (K, 2 factor, 2 factor) in [0, 1]
        rows = np.linspace(0, len(self.codes["train"]) - 1, min(96, len(self.codes["train"]))).astype(int)
        return decoded_patches(self, np.asarray(self.codes["train"][rows]))

    @cached_property
    def shades(self) -> np.ndarray:
        """(K,) in [0, 1]: mean brightness of each token's own decoded pixels, for colouring; indices have no order."""
        margin = self.factor // 2
        own = slice(margin, margin + self.factor)
        return self.patches[:, own, own].mean((1, 2)).clip(0, 1)

    @property
    def factor(self) -> int:  # pixels a token covers, each way
        return self.cohort.size // self.codes["train"].shape[-1]

    @property
    def shown(self) -> Split:
        """Test subjects: what the figures show was never trained on."""
        return self.cohort["test"]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(h, w) or (B, h, w) tokens to (H, W) or (B, H, W) in [0, 1]."""
        codes = np.asarray(codes)
        images = self._apply(self.model.decode, codes.reshape(-1, *codes.shape[-2:]), np.int64).mean(1)
        return images.reshape(*codes.shape[:-2], *images.shape[-2:])

    def decode_latents(self, latents: np.ndarray) -> np.ndarray:
        """(B, D, h, w), quantised or not, to (B, H, W)."""
        return self._apply(self.model.decode_latents, latents).mean(1)

    def snap(self, latents: np.ndarray) -> np.ndarray:
        """(B, D, h, w) to the tokens (B, h, w) of the nearest codebook vectors."""
        return self._apply(lambda z: self.model.quantizer(z)[1], latents).astype(np.int64)

    def latents(self, images: np.ndarray) -> np.ndarray:
        """(B, H, W) uint8 to (B, D, h, w), as they are compared with the codebook."""
        pixels = np.repeat(np.asarray(images)[:, None] / np.float32(255), self.model.config.channels, 1)
        return self._apply(self.model.latents, pixels)

    def _apply(self, function: Callable, array: np.ndarray, kind: type = np.float32) -> np.ndarray:
        with torch.inference_mode(), full_precision(next(self.model.parameters()).device):
            given = torch.from_numpy(np.ascontiguousarray(array, dtype=kind)).to(next(self.model.parameters()).device)
            return function(given).float().cpu().numpy()

    def slice_of(self, subject: str, slice_index: int) -> int:
        """The row of `shown` that is this subject's slice at this slice index, or nearest to it."""
        rows = np.flatnonzero(self.shown.subjects == subject)
        if not len(rows):
            raise ValueError(f"no subject {subject!r} among the test subjects, e.g. {self.shown.subjects[0]!r}")
        return int(rows[np.abs(self.slice_indices[rows] - slice_index).argmin()])

    @cached_property
    def slice_indices(self) -> np.ndarray:
        """Slice indices of the slices shown; where they are not known, the slices of each subject count."""
        known = self.shown.slice_indices
        return known if (known >= 0).all() else self.shown.table.groupby("subject").cumcount().to_numpy()

    @cached_property
    def subjects(self) -> list[str]:
        return sorted(set(self.shown.subjects))

    @cached_property
    def middle(self) -> int:
        """The median slice index."""
        return int(np.median(self.slice_indices))


def read(run: Run) -> CodebookStatistics:
    """The codebook of a finished run."""
    run.needs("vqvae", "codes/train.npy", "codes/test.npy")
    codes = {path.stem: np.load(path, mmap_mode="r") for path in sorted(run.path("codes").glob("*.npy"))}
    return CodebookStatistics(load(run.path("vqvae")), run.cohort, codes)


def usage(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """(K,) how often each token occurs."""
    return np.bincount(np.asarray(codes).ravel(), minlength=codebook_size)


def entropy(counts: np.ndarray) -> float:
    """Bits a token, were tokens drawn independently with these frequencies."""
    share = counts[counts > 0] / max(1, counts.sum())
    return float(-(share * np.log2(share)).sum())


def usage_by_slice_index(codes: np.ndarray, slice_indices: np.ndarray, codebook_size: int) -> pd.DataFrame:
    """One row a slice index: its slices, the tokens in use, and their perplexity."""
    rows = []
    for slice_index in np.unique(slice_indices):
        chosen = np.flatnonzero(slice_indices == slice_index)
        counts = usage(codes[chosen], codebook_size)
        rows.append((int(slice_index), len(chosen), int((counts > 0).sum()), perplexity(torch.from_numpy(counts))))
    return pd.DataFrame(rows, columns=["slice_index", "slices", "used", "perplexity"])


def summary(counts: np.ndarray, by_slice_index: pd.DataFrame) -> dict:
    """The numbers of a codebook's use, for metrics.json."""
    slice_indices = {
        str(slice_index): value for slice_index, value in zip(by_slice_index["slice_index"], by_slice_index["perplexity"])
    }
    used, worth = int((counts > 0).sum()), perplexity(torch.from_numpy(counts))
    return {"codebook_size": len(counts), "used": used, "perplexity": worth, "perplexity_by_slice_index": slice_indices}


def firing(codes: np.ndarray, codebook_size: Sequence[int]) -> np.ndarray:
    """(len(entries), h, w): the share of slices that have a token at each position."""
    return np.stack([(np.asarray(codes) == entry).mean(0) for entry in codebook_size])


def adjacency(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """(K, K) bigrams: how often one token is left of or above another."""
    codes = np.asarray(codes).astype(np.int64)
    pairs = np.zeros(codebook_size * codebook_size, dtype=np.int64)
    for first, second in ((codes[:, :, :-1], codes[:, :, 1:]), (codes[:, :-1], codes[:, 1:])):
        pairs += np.bincount((first * codebook_size + second).ravel(), minlength=codebook_size * codebook_size)
    return pairs.reshape(codebook_size, codebook_size)


def neighbour_bits(pairs: np.ndarray) -> float:
    """Mutual information of neighbouring tokens, in bits."""
    return entropy(pairs.sum(0)) + entropy(pairs.sum(1)) - entropy(pairs.ravel())


def guess_bits(counts: np.ndarray, pairs: np.ndarray) -> dict[str, float]:
    """Bits a token: uniform over the codebook, by frequency, and given one neighbour."""
    alone = entropy(counts)
    return {"uniform": float(np.log2(len(counts))), "by frequency": alone, "given one neighbour": alone - neighbour_bits(pairs)}


def steps(pairs: np.ndarray, shades: np.ndarray) -> tuple[float, float]:
    """Mean difference in brightness between neighbouring tokens, and between tokens drawn independently."""
    apart, alone = np.abs(shades[:, None] - shades[None]), pairs.sum(1) / pairs.sum()
    return float((apart * pairs).sum() / pairs.sum()), float(alone @ apart @ alone)


def windows(images: np.ndarray, factor: int, margin: int = 0) -> np.ndarray:
    """(B, H, W) to a view (B, h, w, s, s): the pixels that each token covers and `margin` more on every side."""
    framed = np.pad(images, ((0, 0), (margin, margin), (margin, margin)), mode="edge")
    side = factor + 2 * margin
    return np.lib.stride_tricks.sliding_window_view(framed, (side, side), axis=(1, 2))[:, ::factor, ::factor]


def decoded_patches(reading: CodebookStatistics, codes: np.ndarray) -> np.ndarray:
    """(K, 2 factor, 2 factor): each token decoded with half a cell of surroundings, on average over maps (n, h, w).

    A token that these maps lack is decoded in a map of nothing else, which the decoder never saw: second best.
    """
    codebook_size, factor = len(reading.codebook), reading.factor
    alone = reading.decode(np.broadcast_to(np.arange(codebook_size)[:, None, None], (codebook_size, 5, 5)))
    patches = windows(alone, factor, factor // 2)[:, 2, 2].copy()
    images = np.concatenate([reading.decode(some) for some in np.array_split(codes, -(-len(codes) // 16))])
    cells = windows(images, factor, factor // 2).reshape(-1, *patches.shape[1:])
    flat = torch.from_numpy(codes.astype(np.int64).ravel())
    sums = torch.zeros(patches.shape).index_add_(0, flat, torch.from_numpy(cells)).numpy()
    counts = usage(codes, codebook_size)
    patches[counts > 0] = sums[counts > 0] / counts[counts > 0, None, None]
    return patches


def page_order(points: np.ndarray) -> tuple[np.ndarray, int]:
    """Points (K, 2) on a full grid, neighbours kept: the token of each cell, row by row (-1 is empty), and its columns."""
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import rankdata

    columns = int(np.ceil(np.sqrt(len(points) * 2)))
    rows = -(-len(points) // columns)
    flat = rankdata(points, axis=0) / len(points)  # ranks fill the page evenly
    cells = np.stack(np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows)), -1).reshape(-1, 2)
    entry, cell = linear_sum_assignment(((flat[:, None] - cells[None]) ** 2).sum(-1))
    order = np.full(rows * columns, -1)
    order[cell] = entry
    return order, columns


def commonest(reading: CodebookStatistics, count: int = 18) -> np.ndarray:
    """The most used tokens that are not background."""
    ranked = np.argsort(-reading.counts, kind="stable")
    bright = ranked[(reading.shades[ranked] > 0.08) & (reading.counts[ranked] > 0)]
    return (bright if len(bright) >= 2 else ranked)[:count]


def through(reading: CodebookStatistics, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Test slices at each stage of the model; latents in the channel that varies most."""
    images, codes = np.asarray(reading.shown.images[rows]), np.asarray(reading.codes["test"][rows])
    before = reading.latents(images)
    after = reading.codebook[codes].transpose(0, 3, 1, 2)  # (B, h, w, D) -> (B, D, h, w)
    channel = int(before.var((0, 2, 3)).argmax())
    parts = {"input": images, "latent": before[:, channel], "quantised": after[:, channel]}
    return parts | {"tokens": reading.shades[codes], "reconstruction": reading.decode(codes)}


def tissues(reading: CodebookStatistics, most: int = 400) -> np.ndarray:
    """(K,) the tissue (0 background, 1 CSF, 2 grey, 3 white matter) that a token covers most; -1 where that is not known."""
    split, codes = reading.cohort["train"], reading.codes["train"]
    found = np.full(len(reading.codebook), -1)
    if split.tissue is not None:
        rows = np.unique(np.linspace(0, len(codes) - 1, min(most, len(codes))).astype(int))
        flat = np.asarray(codes[rows]).ravel().astype(np.int64).repeat(reading.factor**2)
        table = np.bincount(flat * 4 + windows(split.tissue[rows], reading.factor).ravel(), minlength=4 * len(found)).reshape(-1, 4)
        found = np.where(table.sum(1) > 0, table.argmax(1), -1)
    return found


def farthest(codebook: np.ndarray, entry: int, counts: np.ndarray) -> int:
    """The used token whose vector is farthest from this one's: the swap that should show most."""
    return int(np.where(counts > 0, ((codebook - codebook[entry]) ** 2).sum(1), -1).argmax())


def nearest(codebook: np.ndarray, entry: int, count: int = 5) -> np.ndarray:
    """A token's neighbours in the codebook, the nearest first."""
    order = np.argsort(((codebook - codebook[entry]) ** 2).sum(1), kind="stable")
    return order[order != entry][:count]


def examples(
    reading: CodebookStatistics, codebook_size: Sequence[int], count: int = 6, margin: int = 0, seed: int = 0
) -> list[np.ndarray]:
    """For each token up to `count` windows of test slices where it was assigned, with `margin` pixels around it."""
    codes, dice, found = np.asarray(reading.codes["test"]), np.random.default_rng(seed), []
    cells = windows(reading.shown.images, reading.factor, margin)
    for entry in codebook_size:
        places = np.argwhere(codes == entry)
        places = places[np.sort(dice.permutation(len(places))[:count])]
        found.append(cells[tuple(places.T)] / 255)
    return found
