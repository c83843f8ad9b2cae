"""What counting says of a token map: which positions are background, and how frequent each token is at each position.

Aligned brains look much alike at one position and slice index. Counting knows that before the first step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oasis_lib.models.sampler import Sampler, uniform


class Background(nn.Module):
    """Positions that hold one and the same token in nearly all training maps. Each has a fixed distribution."""

    def __init__(self, grid: tuple[int, int], codebook_size: int):
        super().__init__()
        size = grid[0] * grid[1]
        self.grid, self.codebook_size = grid, codebook_size
        self.register_buffer("inside", torch.ones(size, dtype=torch.bool))
        self.register_buffer("usual", torch.zeros(size, dtype=torch.int64))  # the token of a background position
        self.register_buffer("chance", torch.ones(size))  # its probability; all other tokens share the rest
        self._found: tuple | None = None

    @torch.no_grad()
    def start(self, codes: Tensor, share: float = 0.998) -> None:
        """Background is where one token fills at least `share` of these (n, h, w) maps."""
        counts = [torch.bincount(at, minlength=self.codebook_size) for at in codes.flatten(1).T]
        most, usual = torch.stack(counts).max(1)  # of (h * w, K)
        self.usual.copy_(usual)
        self.chance.copy_((most + 1) / (len(codes) + 2))  # Laplace's rule: never quite certain
        self.inside.copy_(most < share * len(codes))
        if not bool(self.inside.any()):
            self.inside.fill_(True)

    @torch.compiler.disable
    def positions(self) -> Tensor:
        """(n,) the positions inside, in order. Kept until `inside` changes: a GPU would have to wait for each look."""
        stamp = (self.inside.device, self.inside._version)
        if self._found is None or self._found[0] != stamp:
            self._found = (stamp, self.inside.nonzero()[:, 0])
        return self._found[1]

    def logits(self, where: Tensor) -> Tensor:
        """(n, K) at background positions."""
        usual, chance = self.usual[where].reshape(-1, 1), self.chance[where].reshape(-1, 1)
        rest = torch.log((1 - chance).clamp(min=1e-9) / max(self.codebook_size - 1, 1))
        return rest.expand(-1, self.codebook_size).scatter(1, usual, chance.log())

    def around(self, inner: Tensor) -> Tensor:
        """Logits (B, n, K) of the positions inside -> (B, h, w, K) of all."""
        logits = inner.new_empty(len(inner), len(self.inside), self.codebook_size)
        logits[:, self.positions()] = inner
        logits[:, ~self.inside] = self.logits(~self.inside).to(inner.dtype)
        return logits.unflatten(1, self.grid)

    def draw(self, flat: Tensor, wanted: Tensor, seeds: Tensor, sampler: Sampler) -> None:
        """Fill the background of (n, h * w) maps where wanted, in one call: its tokens depend on no others."""
        where = (~self.inside).nonzero()[:, 0]
        totals = sampler.filtered(self.logits(where)).softmax(-1).cumsum(-1)
        drawn = torch.searchsorted(totals, uniform(seeds, where)[..., 0].T.contiguous()).T
        drawn = drawn.clamp(max=self.codebook_size - 1)
        flat[:, where] = torch.where(wanted[:, where], drawn, flat[:, where])


STEP = 1 / 16  # nats: surprisals are kept in bytes, as multiples of it; 255 stands for 16 nats and more


class PositionPrior(nn.Module):
    """Log-frequency of each token at each position; with `knots`, at so many slice indices, and linear between them."""

    def __init__(self, grid: tuple[int, int], codebook_size: int, slice_indices: int = 0, knots: int = 0):
        super().__init__()
        self.last, knots = max(slice_indices - 1, 1), min(knots, slice_indices)
        self.register_buffer("surprisals", torch.zeros(grid[0] * grid[1], codebook_size, dtype=torch.uint8))
        self.register_buffer("by_slice_index", torch.zeros(knots, grid[0] * grid[1], codebook_size, dtype=torch.uint8))

    @torch.no_grad()
    def start(self, codes: Tensor, slice_index: Tensor | None = None, *, weight=8.0, pull=128.0, spread=0.5) -> None:
        """(n, h, w) training maps and their slice indices.

        `weight` pseudo-counts smooth the frequencies of a position towards those of the whole map; `pull` those of a
        knot towards those of all slices. Each position also takes the share `spread` from the eight around it.
        """
        everywhere = torch.bincount(codes.flatten(), minlength=self.surprisals.shape[1]) + 0.1
        counts = self._count(codes, torch.ones(len(codes), device=codes.device), spread)
        counts = counts + weight * everywhere / everywhere.sum()
        chances = counts / counts.sum(1, keepdim=True)
        self.surprisals.copy_(in_bytes(chances))
        self.by_slice_index.copy_(self.surprisals.expand_as(self.by_slice_index))
        if slice_index is None:
            return
        known, knots = codes[slice_index >= 0], len(self.by_slice_index)
        low, _, part = knots_around(slice_index[slice_index >= 0], knots, self.last)
        for knot in range(knots):
            counts = self._count(known, (low == knot) * (1 - part) + (low + 1 == knot) * part, spread) + pull * chances
            self.by_slice_index[knot] = in_bytes(counts / counts.sum(1, keepdim=True))

    @property
    def logits(self) -> Tensor:
        """(h * w, K) log-frequencies over all slices."""
        return (self.surprisals * -STEP).log_softmax(-1)

    def forward(self, where: Tensor | slice, slice_index: Tensor | None = None) -> Tensor:
        """Logits (n, K) of the positions `where`; with slice indices (B,), -1 where unknown, and knots (B, n, K)."""
        if slice_index is None or not len(self.by_slice_index):
            return self.surprisals[where] * -STEP
        low, high, part = knots_around(slice_index.clamp(min=0), len(self.by_slice_index), self.last)
        table = self.by_slice_index[:, where] * -STEP
        between = torch.lerp(table[low], table[high], part[:, None, None])
        return torch.where((slice_index < 0)[:, None, None], self.surprisals[where] * -STEP, between)

    def _count(self, codes: Tensor, weights: Tensor, spread: float) -> Tensor:
        """(n, h, w) maps with a weight each -> (h * w, K), spatially smoothed: folds vary in position."""
        places, codebook_size = self.surprisals.shape
        index = torch.arange(places, device=codes.device) * codebook_size + codes.flatten(1)
        counts = torch.zeros(places * codebook_size, device=codes.device)
        counts.index_add_(0, index.flatten(), weights.repeat_interleave(places))
        maps = counts.view(*codes.shape[1:], codebook_size).movedim(-1, 0)[:, None]
        around = counts.new_tensor([[0.5, 1, 0.5], [1, 0, 1], [0.5, 1, 0.5]])[None, None] / 6
        return (maps + spread * F.conv2d(maps, around, padding=1))[:, 0].movedim(0, -1).flatten(0, 1)


def knots_around(slice_index: Tensor, knots: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) slice indices 0 .. last -> the two of `knots` that each lies between, and how far from the first, 0 to 1."""
    place = slice_index.float() * ((knots - 1) / last)
    low = place.long()
    return low, (low + 1).clamp(max=knots - 1), place - low


def in_bytes(chances: Tensor) -> Tensor:
    """Probabilities as surprisals in steps of `STEP`: a quarter of the memory of floats."""
    return (chances.log() * (-1 / STEP)).round().clamp(0, 255).to(torch.uint8)
