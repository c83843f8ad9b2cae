"""How frequent each code is at each place of training maps, as logits; what a network says is added to that.

Heads that were aligned to an atlas look much the same at one place and one level: counting knows that from the first step on,
and a network has only the rest to learn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LENT = 0.1


class Counts(nn.Module):
    """Places' own counts; with `knots`, also at so many levels evenly apart, and in a straight line between them."""

    def __init__(self, grid: tuple[int, int], entries: int, levels: int = 0, knots: int = 0):
        super().__init__()
        self.last, knots = max(levels - 1, 1), min(knots, levels)
        places = grid[0] * grid[1]
        self.register_buffer("logits", torch.zeros(places, entries))
        self.register_buffer("by_level", torch.zeros(knots, places, entries))

    @torch.no_grad()
    def start(
        self, codes: Tensor, level: Tensor | None = None, weight: float = 8.0, pull: float = 32.0, lent: float = LENT
    ) -> None:
        """(n, h, w) training maps and their levels. Nothing is impossible: each place is drawn a little towards the whole map,
        each level, with the weight of `pull` maps, towards all of them. Each place borrows the share `lent` from those around it.
        """
        entries, flat = self.logits.shape[1], codes.flatten(1)
        everywhere = torch.bincount(flat.flatten(), minlength=entries) + 0.1
        own = _lent(self._count(codes, torch.ones(len(flat), device=flat.device)), lent)
        counts = own.flatten(0, 1) + weight * everywhere / everywhere.sum()
        chances = counts / counts.sum(1, keepdim=True)
        self.logits.copy_(chances.log())
        self.by_level.copy_(self.logits.expand_as(self.by_level))
        if level is None:
            return
        known, (low, high, part) = codes[level >= 0], self._between(level[level >= 0])
        for knot in range(len(self.by_level)):
            here = _lent(self._count(known, (low == knot) * (1 - part) + (high == knot) * part), lent)
            counts = here.flatten(0, 1) + pull * chances
            self.by_level[knot] = (counts / counts.sum(1, keepdim=True)).log()

    def forward(self, where: Tensor | slice, level: Tensor | None = None) -> Tensor:
        """Logits (n, K) of the places `where`; with levels (B,), -1 where open, and knots (B, n, K)."""
        if level is None or not len(self.by_level):
            return self.logits[where]
        low, high, part = self._between(level.clamp(min=0))
        table = self.by_level[:, where]
        between = torch.lerp(table[low], table[high], part[:, None, None])
        return torch.where((level < 0)[:, None, None], self.logits[where], between)

    def _between(self, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) levels -> the two knots that each lies between, and how far from the first."""
        last = len(self.by_level) - 1
        place = level.to(self.by_level.dtype) * (last / self.last)
        low = place.long()
        return low, (low + 1).clamp(max=last), place - low

    def _count(self, codes: Tensor, weights: Tensor) -> Tensor:
        """(n, h, w) codes, each map with its weight -> (h, w, K)."""
        places, entries = self.logits.shape
        index = torch.arange(places, device=codes.device) * entries + codes.flatten(1)
        counts = torch.zeros(places * entries, device=codes.device)
        return counts.index_add_(0, index.flatten(), weights.repeat_interleave(places)).view(*codes.shape[1:], entries)


def _lent(counts: Tensor, share: float) -> Tensor:
    """(h, w, K), to each place so much of the mean of the eight around it (corners count half): folds lie a little to the side."""
    around = counts.new_tensor([[0.5, 1, 0.5], [1, 0, 1], [0.5, 1, 0.5]])[None, None] / 6
    return counts + share * F.conv2d(counts.movedim(-1, 0)[:, None], around, padding=1)[:, 0].movedim(0, -1)
