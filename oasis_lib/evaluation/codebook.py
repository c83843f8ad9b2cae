"""Codebook statistics: use, places, neighbours and looks of each token; scores of perturbed token maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.stats import entropy

from oasis_lib.cohort import Cohort, Split
from oasis_lib.device import full_precision
from oasis_lib.metrics import bootstrap_by_subject, brain_mask, ssim
from oasis_lib.models import load, perplexity
from oasis_lib.training.data import linspace_rows

if TYPE_CHECKING:
    from oasis_lib.run import Run


@dataclass(frozen=True)
class CodebookStatistics:
    """A trained model with the token maps of its cohort, as made by `read`. Images are in [0, 1]."""

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
    def patches(self) -> np.ndarray:  # (K, 2 factor, 2 factor)
        return decoded_patches(self, np.asarray(self.codes["train"][linspace_rows(len(self.codes["train"]), 96)]))

    @cached_property
    def shades(self) -> np.ndarray:
        """(K,) mean brightness of each token's own decoded pixels: a colour for indices, which have no order."""
        own = slice(self.factor // 2, self.factor // 2 + self.factor)
        return self.patches[:, own, own].mean((1, 2)).clip(0, 1)

    @property
    def factor(self) -> int:  # pixels a token covers, each way
        return self.cohort.size // self.codes["train"].shape[-1]

    @property
    def shown(self) -> Split:
        """Test subjects: figures show what was never trained on."""
        return self.cohort["test"]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(..., h, w) tokens -> (..., H, W)."""
        images = self._apply(self.model.decode, codes.reshape(-1, *codes.shape[-2:]), np.int64).mean(1)
        return images.reshape(*codes.shape[:-2], *images.shape[-2:])

    def latents(self, images: np.ndarray) -> np.ndarray:
        """(B, H, W) uint8 -> (B, D, h, w), as they are compared with the codebook."""
        pixels = np.repeat(np.asarray(images)[:, None] / np.float32(255), self.model.config.channels, 1)
        return self._apply(self.model.latents, pixels)

    def _apply(self, function: Callable, array: np.ndarray, kind: type = np.float32) -> np.ndarray:
        device = next(self.model.parameters()).device
        with torch.inference_mode(), full_precision(device):
            given = torch.from_numpy(np.ascontiguousarray(array, dtype=kind)).to(device)
            return function(given).float().cpu().numpy()

    def slice_of(self, subject: str, slice_index: int) -> int:
        """The row of `shown` with this subject's slice at this slice index, or nearest to it."""
        rows = np.flatnonzero(self.shown.subjects == subject)
        if not len(rows):
            raise ValueError(f"no subject {subject!r} among the test subjects, e.g. {self.shown.subjects[0]!r}")
        return int(rows[np.abs(self.slice_indices[rows] - slice_index).argmin()])

    @cached_property
    def slice_indices(self) -> np.ndarray:
        """Of `shown`; where they are not known, each subject's slices are counted."""
        known, table = self.shown.slice_indices, self.shown.table
        return known if (known >= 0).all() else table.groupby("subject").cumcount().to_numpy()

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


def code_bytes(codes: np.ndarray, known: np.ndarray, codebook_size: int) -> np.ndarray:
    """(N,) bytes of token maps (N, h, w) under one fixed table: how often training maps (`known`) use each token.

    An arithmetic coder reaches this to within a byte or two. A prior, which knows the neighbours too, needs less.
    """
    counts = usage(known, codebook_size) + 1.0  # none has probability 0
    return -np.log2(counts / counts.sum())[np.asarray(codes)].sum(axis=(1, 2)) / 8


def usage_by_slice_index(codes: np.ndarray, slice_indices: np.ndarray, codebook_size: int) -> pd.DataFrame:
    """One row a slice index: its slices, the tokens in use, and their perplexity."""
    rows = []
    for index, slices in zip(*np.unique(slice_indices, return_counts=True)):
        counts = usage(codes[slice_indices == index], codebook_size)
        rows.append((int(index), slices, int((counts > 0).sum()), perplexity(torch.from_numpy(counts))))
    return pd.DataFrame(rows, columns=["slice_index", "slices", "used", "perplexity"])


def summary(counts: np.ndarray, by_slice_index: pd.DataFrame) -> dict:
    """The numbers of a codebook's use, for metrics.json."""
    by_index = dict(zip(by_slice_index["slice_index"].astype(str), by_slice_index["perplexity"]))
    found = {"codebook_size": len(counts), "used": int((counts > 0).sum()), "perplexity_by_slice_index": by_index}
    return found | {"perplexity": perplexity(torch.from_numpy(counts))}


def firing(codes: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """(len(tokens), h, w): the share of slices that have a token at each position."""
    return np.stack([(np.asarray(codes) == token).mean(0) for token in tokens])


def adjacency(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """(K, K) bigrams: how often one token is left of or above another."""
    codes, pairs = np.asarray(codes).astype(np.int64), np.zeros(codebook_size**2, dtype=np.int64)
    for first, second in ((codes[:, :, :-1], codes[:, :, 1:]), (codes[:, :-1], codes[:, 1:])):
        pairs += usage(first * codebook_size + second, codebook_size**2)
    return pairs.reshape(codebook_size, codebook_size)


def guess_bits(counts: np.ndarray, pairs: np.ndarray) -> dict[str, float]:
    """Bits a token: uniform over the codebook, by frequency, and given one neighbour (less mutual information)."""
    alone, left, right, both = (float(entropy(x.ravel(), base=2)) for x in (counts, pairs.sum(1), pairs.sum(0), pairs))
    uniform = float(np.log2(len(counts)))
    return {"uniform": uniform, "by frequency": alone, "given one neighbour": alone - (left + right - both)}


def steps(pairs: np.ndarray, shades: np.ndarray) -> tuple[float, float]:
    """Mean difference in brightness between neighbouring tokens, and between tokens drawn independently."""
    apart, alone = np.abs(shades[:, None] - shades[None]), pairs.sum(1) / pairs.sum()
    return float((apart * pairs).sum() / pairs.sum()), float(alone @ apart @ alone)


def windows(images: np.ndarray, factor: int, margin: int = 0) -> np.ndarray:
    """(B, H, W) -> a view (B, h, w, s, s): the pixels that each token covers and `margin` more on every side."""
    framed = np.pad(images, ((0, 0), (margin, margin), (margin, margin)), mode="edge")
    side = factor + 2 * margin
    return np.lib.stride_tricks.sliding_window_view(framed, (side, side), axis=(1, 2))[:, ::factor, ::factor]


def decoded_patches(book: CodebookStatistics, codes: np.ndarray) -> np.ndarray:
    """(K, 2 factor, 2 factor): each token decoded with half a cell around it, mean over token maps (n, h, w).

    A token that these maps lack is decoded in a map of that token alone, which is outside the training distribution.
    """
    codebook_size, factor = len(book.codebook), book.factor
    alone = book.decode(np.broadcast_to(np.arange(codebook_size)[:, None, None], (codebook_size, 5, 5)))
    patches = windows(alone, factor, factor // 2)[:, 2, 2].copy()
    images = np.concatenate([book.decode(some) for some in np.array_split(codes, -(-len(codes) // 16))])
    cells = windows(images, factor, factor // 2).reshape(-1, *patches.shape[1:])
    flat = torch.from_numpy(codes.astype(np.int64).ravel())
    sums = torch.zeros(patches.shape).index_add_(0, flat, torch.from_numpy(cells)).numpy()
    counts = usage(codes, codebook_size)
    patches[counts > 0] = sums[counts > 0] / counts[counts > 0, None, None]
    return patches


def page_order(points: np.ndarray) -> tuple[np.ndarray, int]:
    """Points (K, 2) on a full grid, neighbours kept: the token of each cell (-1: none), row by row, and the columns."""
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import rankdata

    columns = int(np.ceil(np.sqrt(len(points) * 2)))
    rows = -(-len(points) // columns)
    flat = rankdata(points, axis=0) / len(points)  # ranks fill the page evenly
    cells = np.stack(np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows)), -1).reshape(-1, 2)
    token, cell = linear_sum_assignment(((flat[:, None] - cells[None]) ** 2).sum(-1))
    order = np.full(rows * columns, -1)
    order[cell] = token
    return order, columns


def commonest(book: CodebookStatistics, count: int = 18) -> np.ndarray:
    """The most used tokens that are not background."""
    ranked = np.argsort(-book.counts, kind="stable")
    bright = ranked[(book.shades[ranked] > 0.08) & (book.counts[ranked] > 0)]
    return (bright if len(bright) >= 2 else ranked)[:count]


def through(book: CodebookStatistics, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Test slices at each stage of the model; latents in the channel that varies most."""
    images, codes = np.asarray(book.shown.images[rows]), np.asarray(book.codes["test"][rows])
    before, after = book.latents(images), book.codebook[codes].transpose(0, 3, 1, 2)  # (B, D, h, w)
    channel = int(before.var((0, 2, 3)).argmax())
    parts = {"input": images, "latent": before[:, channel], "quantised": after[:, channel]}
    return parts | {"tokens": book.shades[codes], "reconstruction": book.decode(codes)}


def tissues(book: CodebookStatistics, most: int = 400) -> np.ndarray:
    """(K,) the tissue (0 background, 1 CSF, 2 grey, 3 white matter) that a token covers most; -1 where not known."""
    split, codes, found = book.cohort["train"], book.codes["train"], np.full(len(book.codebook), -1)
    if split.tissue is not None:
        rows = linspace_rows(len(codes), most)
        flat = np.asarray(codes[rows]).ravel().astype(np.int64).repeat(book.factor**2)
        table = usage(flat * 4 + windows(split.tissue[rows], book.factor).ravel(), 4 * len(found)).reshape(-1, 4)
        found = np.where(table.sum(1) > 0, table.argmax(1), -1)
    return found


def farthest(codebook: np.ndarray, token: int, counts: np.ndarray) -> int:
    """The used token whose vector is farthest from this one's."""
    return int(np.where(counts > 0, ((codebook - codebook[token]) ** 2).sum(1), -1).argmax())


def nearest(codebook: np.ndarray, token: int, count: int = 5) -> np.ndarray:
    """A token's neighbours in the codebook, the nearest first."""
    order = np.argsort(((codebook - codebook[token]) ** 2).sum(1), kind="stable")
    return order[order != token][:count]


def examples(book: CodebookStatistics, tokens: Sequence[int], count: int = 6, margin: int = 0) -> list[np.ndarray]:
    """For each token up to `count` windows of test slices where it occurs, with `margin` pixels around it."""
    codes, rng, found = np.asarray(book.codes["test"]), np.random.default_rng(0), []
    cells = windows(book.shown.images, book.factor, margin)
    for token in tokens:
        places = np.argwhere(codes == token)
        places = places[np.sort(rng.permutation(len(places))[:count])]
        found.append(cells[tuple(places.T)] / 255)
    return found


def perturbed(book: CodebookStatistics, codes: np.ndarray) -> dict[str, np.ndarray]:
    """Token maps (n, h, w) unchanged; with the middle token replaced by the least similar; with few kept; shuffled."""
    codes, middle = np.array(codes), tuple(side // 2 for side in codes.shape[1:])
    swapped = codes.copy()
    for one in swapped:
        one[middle] = farthest(book.codebook, int(one[middle]), book.counts)
    kept = np.argsort(-book.counts, kind="stable")[: max(1, min(64, len(book.codebook) // 4))]
    instead = kept[((book.codebook[:, None] - book.codebook[kept][None]) ** 2).sum(-1).argmin(1)]  # any other token's
    instead[kept] = kept
    mixed = np.stack([np.random.default_rng(seed).permutation(one.ravel()) for seed, one in enumerate(codes)])
    maps = {"all tokens": codes, "one token replaced": swapped, f"{len(kept)} most used": instead[codes]}
    return maps | {"shuffled": mixed.reshape(codes.shape)}


def perturbation_scores(book: CodebookStatistics, rows: Sequence[int]) -> pd.DataFrame:
    """SSIM inside the brain of test slices, mean over subjects with its interval: a row a perturbation."""
    images, codes, scores = np.asarray(book.shown.images[rows]), np.asarray(book.codes["test"][rows]), {}
    mask, real = torch.from_numpy(brain_mask(images))[:, None], torch.from_numpy(images)[:, None].float() / 255
    for name, maps in perturbed(book, codes).items():
        each = ssim(torch.from_numpy(book.decode(maps))[:, None], real, mask=mask).numpy()
        scores[name] = bootstrap_by_subject(each, book.shown.subjects[rows])
    return pd.DataFrame(scores, index=["ssim", "low", "high"]).T
