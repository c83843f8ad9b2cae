"""What a codebook has learned to say: how often, where and next to what each entry is used, and what it looks like decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from oasis_lib.cohort import Cohort, Split
from oasis_lib.models import load, perplexity

if TYPE_CHECKING:
    from oasis_lib.run import Run


@dataclass(frozen=True)
class Reading:
    """A trained model, the code maps of its cohort, and what both say of the codebook. Made by `read`."""

    model: torch.nn.Module
    cohort: Cohort
    codes: dict[str, np.ndarray]  # split -> (N, h, w)

    @cached_property
    def codebook(self) -> np.ndarray:  # (K, D)
        return self.model.quantizer.codebook.detach().float().numpy()

    @cached_property
    def counts(self) -> np.ndarray:  # (K,) how often training people use each entry
        return usage(self.codes["train"], len(self.codebook))

    @cached_property
    def patches(self) -> np.ndarray:  # (K, p, p) in [0, 1]
        rows = np.linspace(0, len(self.codes["train"]) - 1, min(96, len(self.codes["train"]))).astype(int)
        return decoded_patches(self, np.asarray(self.codes["train"][rows]))

    @cached_property
    def brightness(self) -> np.ndarray:  # (K,) of the pixels that are the entry's own
        margin = self.factor // 2
        return self.patches[:, margin : margin + self.factor, margin : margin + self.factor].mean((1, 2))

    @cached_property
    def shades(self) -> np.ndarray:
        """(K,) in [0, 1]: entries ranked by brightness, for colouring code maps; indices themselves have no order."""
        return np.argsort(np.argsort(self.brightness, kind="stable")) / max(1, len(self.codebook) - 1)

    @property
    def factor(self) -> int:  # pixels a code covers, each way
        return self.cohort.size // self.codes["train"].shape[-1]

    @property
    def shown(self) -> Split:
        """People the model never saw are the ones to look at."""
        return self.cohort["test"]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(h, w) or (B, h, w) codes to (H, W) or (B, H, W) in [0, 1]."""
        codes = np.asarray(codes)
        with torch.inference_mode():
            images = self.model.decode(torch.from_numpy(codes.reshape(-1, *codes.shape[-2:]).astype(np.int64))).mean(1)
        return images.float().numpy().reshape(*codes.shape[:-2], *images.shape[-2:])

    def decode_latents(self, latents: np.ndarray) -> np.ndarray:
        """(B, D, h, w), quantised or not, to (B, H, W)."""
        with torch.inference_mode():
            return self.model.decode_latents(torch.from_numpy(np.asarray(latents, dtype=np.float32))).mean(1).float().numpy()

    def snap(self, latents: np.ndarray) -> np.ndarray:
        """(B, D, h, w) to the nearest entries' codes (B, h, w)."""
        with torch.inference_mode():
            return self.model.quantizer(torch.from_numpy(np.asarray(latents, dtype=np.float32)))[1].numpy()

    def latents(self, images: np.ndarray) -> np.ndarray:
        """(B, H, W) uint8 to (B, D, h, w), as they are compared with the codebook."""
        pixels = torch.from_numpy(np.asarray(images)[:, None]).float() / 255
        with torch.inference_mode():
            return self.model.latents(pixels.expand(-1, self.model.config.channels, -1, -1)).float().numpy()

    def slice_of(self, person: str, level: int) -> int:
        """The row of `shown` that is this person's slice at this level, or nearest to it."""
        rows = np.flatnonzero(self.shown.subjects == person)
        if not len(rows):
            raise ValueError(f"no person {person!r} among the test people, e.g. {self.shown.subjects[0]!r}")
        return int(rows[np.abs(self.levels[rows] - level).argmin()])

    @cached_property
    def levels(self) -> np.ndarray:
        """Of the slices shown; where levels are not known, the slices of each person count."""
        known = self.shown.levels
        return known if (known >= 0).all() else self.shown.table.groupby("subject").cumcount().to_numpy()

    @cached_property
    def people(self) -> list[str]:
        return sorted(set(self.shown.subjects))

    @cached_property
    def middle(self) -> int:
        """A level in the middle of the head."""
        return int(np.median(self.levels))


def read(run: Run) -> Reading:
    """The codebook of a finished run."""
    run.needs("vqvae", "codes/train.npy", "codes/test.npy")
    codes = {path.stem: np.load(path, mmap_mode="r") for path in sorted(run.path("codes").glob("*.npy"))}
    return Reading(load(run.path("vqvae")), run.cohort, codes)


def usage(codes: np.ndarray, entries: int) -> np.ndarray:
    """(K,) how often each entry occurs."""
    return np.bincount(np.asarray(codes).ravel(), minlength=entries)


def entropy(counts: np.ndarray) -> float:
    """Bits a code, were codes drawn independently with these frequencies."""
    share = counts[counts > 0] / max(1, counts.sum())
    return float(-(share * np.log2(share)).sum())


def usage_by_level(codes: np.ndarray, levels: np.ndarray, entries: int) -> pd.DataFrame:
    """One row a level: its slices, the entries that it uses, and their perplexity."""
    rows = []
    for level in np.unique(levels):
        chosen = np.flatnonzero(levels == level)
        counts = usage(codes[chosen], entries)
        rows.append((int(level), len(chosen), int((counts > 0).sum()), perplexity(torch.from_numpy(counts))))
    return pd.DataFrame(rows, columns=["level", "slices", "used", "perplexity"])


def summary(counts: np.ndarray, by_level: pd.DataFrame) -> dict:
    """The numbers of a codebook's use, for metrics.json."""
    levels = {str(level): value for level, value in zip(by_level["level"], by_level["perplexity"])}
    used, worth = int((counts > 0).sum()), perplexity(torch.from_numpy(counts))
    return {"entries": len(counts), "used": used, "perplexity": worth, "perplexity_by_level": levels}


def firing(codes: np.ndarray, entries: Sequence[int]) -> np.ndarray:
    """(len(entries), h, w): in what share of the slices an entry stands at each position."""
    return np.stack([(np.asarray(codes) == entry).mean(0) for entry in entries])


def adjacency(codes: np.ndarray, entries: int) -> np.ndarray:
    """(K, K) how often one entry stands left of or above another: what a prior has to learn first."""
    codes = np.asarray(codes).astype(np.int64)
    pairs = np.zeros(entries * entries, dtype=np.int64)
    for first, second in ((codes[:, :, :-1], codes[:, :, 1:]), (codes[:, :-1], codes[:, 1:])):
        pairs += np.bincount((first * entries + second).ravel(), minlength=entries * entries)
    return pairs.reshape(entries, entries)


def neighbour_bits(pairs: np.ndarray) -> float:
    """Mutual information: how many bits of a code its neighbour tells already."""
    return entropy(pairs.sum(0)) + entropy(pairs.sum(1)) - entropy(pairs.ravel())


def guess_bits(counts: np.ndarray, pairs: np.ndarray) -> dict[str, float]:
    """What guessing a code costs: blindly, by its frequency, and beside one known neighbour."""
    alone = entropy(counts)
    return {
        "all alike": float(np.log2(len(counts))),
        "by frequency": alone,
        "knowing one neighbour": alone - neighbour_bits(pairs),
    }


def decoded_patches(reading: Reading, codes: np.ndarray) -> np.ndarray:
    """(K, 2 factor, 2 factor): what the decoder draws around each entry, on average over real maps (n, h, w).

    An entry that these maps lack is decoded in a map of nothing else: the decoder never saw such a map, so that is the second best.
    """
    entries, factor = len(reading.codebook), reading.factor
    alone = reading.decode(np.broadcast_to(np.arange(entries)[:, None, None], (entries, 5, 5)))
    start = 2 * factor - factor // 2
    patches = alone[:, start : start + 2 * factor, start : start + 2 * factor].copy()
    images = np.concatenate([reading.decode(some) for some in np.array_split(codes, -(-len(codes) // 16))])
    framed = np.pad(images, ((0, 0), (factor // 2, factor), (factor // 2, factor)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(framed, (2 * factor, 2 * factor), axis=(1, 2))[:, ::factor, ::factor]
    windows = windows[:, : codes.shape[1], : codes.shape[2]].reshape(-1, 2 * factor, 2 * factor)  # (n * h * w, 2f, 2f)
    flat = torch.from_numpy(codes.astype(np.int64).ravel())
    sums = torch.zeros(entries, *windows.shape[1:]).index_add_(0, flat, torch.from_numpy(windows)).numpy()
    counts = usage(codes, entries)
    patches[counts > 0] = sums[counts > 0] / counts[counts > 0, None, None]
    return patches


def page_order(points: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Lay points (K, 2) out on a full grid so that neighbours stay neighbours: the entry of each cell, row by row (-1 is empty)."""
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import rankdata

    count = len(points)
    columns = int(np.ceil(np.sqrt(count * 2)))
    rows = -(-count // columns)
    flat = np.stack([rankdata(points[:, axis]) / count for axis in (0, 1)], 1)  # ranks fill the page evenly
    cells = np.stack(np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows)), -1).reshape(-1, 2)
    cost = ((flat[:, None] - cells[None]) ** 2).sum(-1)
    entry, cell = linear_sum_assignment(cost)
    order = np.full(rows * columns, -1)
    order[cell] = entry
    return order, (rows, columns)


def alike_order(codebook: np.ndarray) -> np.ndarray:
    """Entries in one line, neighbours alike as far as a line allows: the leaves of a tree of their vectors."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    return (
        leaves_list(linkage(codebook, "average", optimal_ordering=len(codebook) <= 512))
        if len(codebook) > 2
        else np.arange(len(codebook))
    )


def commonest(reading: Reading, count: int = 18) -> np.ndarray:
    """The most used entries that draw something: the commonest of all draw air."""
    ranked = np.argsort(-reading.counts, kind="stable")
    bright = ranked[(reading.brightness[ranked] > 0.08) & (reading.counts[ranked] > 0)]
    return (bright if len(bright) >= 2 else ranked)[:count]


def through(reading: Reading, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Test slices on their way through the model, as `figures.codebook.slices` draws them, in the channel that varies most."""
    images, codes = np.asarray(reading.shown.images[rows]), np.asarray(reading.codes["test"][rows])
    before = reading.latents(images)
    after = reading.codebook[codes].transpose(0, 3, 1, 2)  # (B, h, w, D) -> (B, D, h, w)
    channel = int(before.var((0, 2, 3)).argmax())
    parts = {"images": images / 255, "before": before[:, channel], "after": after[:, channel]}
    return parts | {"shades": reading.shades[codes], "decoded": reading.decode(codes)}


def outputs(reading: Reading, count: int = 0, seed: int = 0) -> pd.DataFrame:
    """Encoder outputs of training people, rare codes favoured (air would drown the rest): z0.., code, brightness and tissue of the
    pixels that each covers (-1 where tissue is not known). `count` 0 is twenty an entry, 20,000 at most."""
    count = count or min(20_000, 20 * len(reading.codebook))
    split, codes, factor = reading.cohort["train"], reading.codes["train"], reading.factor
    dice = np.random.default_rng(seed)
    per_slice = codes.shape[1] * codes.shape[2]
    rows = np.sort(dice.permutation(len(codes))[: max(8, -(-4 * count // per_slice))])
    latents = np.concatenate([reading.latents(split.images[some]) for some in np.array_split(rows, -(-len(rows) // 16))])
    flat = latents.transpose(0, 2, 3, 1).reshape(-1, latents.shape[1])  # (slices * h * w, D)
    chosen_codes = np.asarray(codes[rows]).ravel().astype(np.int64)
    weight = 1 / np.sqrt(reading.counts[chosen_codes] + 1.0)
    chosen = dice.choice(len(flat), min(count, len(flat)), replace=False, p=weight / weight.sum())
    table = pd.DataFrame(flat[chosen], columns=[f"z{i}" for i in range(flat.shape[1])])
    cells = _cells(split.images[rows], factor)[chosen]  # (n, factor * factor)
    table["code"], table["brightness"] = chosen_codes[chosen], cells.mean(1) / 255
    table["tissue"] = -1
    if split.tissue is not None:
        kinds = _cells(split.tissue[rows], factor)[chosen]
        table["tissue"] = np.stack([(kinds == kind).sum(1) for kind in range(4)]).argmax(0)
    return table


def farthest(codebook: np.ndarray, entry: int, counts: np.ndarray) -> int:
    """The used entry that is least like this one: the swap that should show most."""
    apart = ((codebook - codebook[entry]) ** 2).sum(1)
    return int(np.where(counts > 0, apart, -1).argmax())


def nearest(codebook: np.ndarray, entry: int, count: int = 5) -> np.ndarray:
    """An entry's neighbours in the codebook, the nearest first."""
    apart = ((codebook - codebook[entry]) ** 2).sum(1)
    apart[entry] = np.inf
    return np.argsort(apart, kind="stable")[: min(count, len(codebook) - 1)]


def first(parts: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The same for the first few slices only."""
    return {name: part[:count] for name, part in parts.items()}


def all_points(reading: Reading, table: pd.DataFrame) -> np.ndarray:
    """(K + n, D): the codebook's entries, then the encoder outputs of a table from `outputs`."""
    return np.concatenate([reading.codebook, table.filter(regex=r"^z\d+$").to_numpy(dtype=np.float32)])


def examples(reading: Reading, entries: Sequence[int], count: int = 8, seed: int = 0) -> list[np.ndarray]:
    """For each entry up to `count` windows (2 factor x 2 factor) of test people whose middle was given this code."""
    codes, images, factor = np.asarray(reading.codes["test"]), reading.shown.images, reading.factor
    framed = np.pad(images, ((0, 0), (factor // 2, factor), (factor // 2, factor)), mode="edge")
    dice, found = np.random.default_rng(seed), []
    for entry in entries:
        places = np.argwhere(codes == entry)
        places = places[np.sort(dice.permutation(len(places))[:count])]
        cut = [framed[n, r * factor : (r + 2) * factor, c * factor : (c + 2) * factor] for n, r, c in places]
        found.append(np.stack(cut) / 255 if cut else np.zeros((0, 2 * factor, 2 * factor)))
    return found


def _cells(images: np.ndarray, factor: int) -> np.ndarray:
    """(B, H, W) to one row a code position: the pixels that it covers."""
    batch, height, width = images.shape
    cut = images.reshape(batch, height // factor, factor, width // factor, factor).transpose(0, 1, 3, 2, 4)
    return cut.reshape(-1, factor * factor)
