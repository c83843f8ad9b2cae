"""How frequent each code is at each place of training maps, as logits; what a network says is added to that.

Heads that were aligned to an atlas look much the same at one place and one level: counting knows that from the first step on,
and a network has only the rest to learn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Counts(nn.Module):
    """Places' own counts; with `knots`, also at so many levels evenly apart, and in a straight line between them."""

    def __init__(self, grid: tuple[int, int], entries: int, levels: int = 0, knots: int = 0):
        super().__init__()
        self.last, knots = max(levels - 1, 1), min(knots, levels)
        places = grid[0] * grid[1]
        self.register_buffer("logits", torch.zeros(places, entries))
        self.register_buffer("by_level", torch.zeros(knots, places, entries))

    @torch.no_grad()
    def start(self, codes: Tensor, level: Tensor | None = None, weight: float = 8.0, pull: float = 32.0) -> None:
        """(n, h, w) training maps and their levels. Nothing is impossible: each place is drawn a little towards the whole map,
        each level, with the weight of `pull` maps, towards all of them.
        """
        entries, flat = self.logits.shape[1], codes.flatten(1)
        everywhere = torch.bincount(flat.flatten(), minlength=entries) + 0.1
        counts = self._count(flat, torch.ones(len(flat), device=flat.device)) + weight * everywhere / everywhere.sum()
        chances = counts / counts.sum(1, keepdim=True)
        self.logits.copy_(chances.log())
        self.by_level.copy_(self.logits.expand_as(self.by_level))
        if level is None:
            return
        flat, (low, high, part) = flat[level >= 0], self._between(level[level >= 0])
        for knot in range(len(self.by_level)):
            counts = self._count(flat, (low == knot) * (1 - part) + (high == knot) * part) + pull * chances
            self.by_level[knot] = (counts / counts.sum(1, keepdim=True)).log()

    def forward(self, where: Tensor | slice, level: Tensor | None = None) -> Tensor:
        """Logits (n, K) of the places `where`; with levels (B,), -1 where open, and knots (B, n, K)."""
        plain = self.logits[where]
        if level is None or not len(self.by_level):
            return plain
        low, high, part = self._between(level.clamp(min=0))
        table = self.by_level[:, where]
        return torch.where((level < 0)[:, None, None], plain, torch.lerp(table[low], table[high], part[:, None, None]))

    def _between(self, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) levels -> the two knots that each lies between, and how far from the first."""
        last = len(self.by_level) - 1
        place = level.to(self.by_level.dtype) * (last / self.last)
        low = place.long()
        return low, (low + 1).clamp(max=last), place - low

    def _count(self, flat: Tensor, weights: Tensor) -> Tensor:
        """(n, places) codes, each map with its weight -> (places, K)."""
        places, entries = self.logits.shape
        index = torch.arange(places, device=flat.device) * entries + flat
        return (
            torch.zeros(places * entries, device=flat.device)
            .index_add_(0, index.flatten(), weights.repeat_interleave(places))
            .view(places, entries)
        )
