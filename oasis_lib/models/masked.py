"""Parallel decoding (MaskGIT, Chang 2022, arXiv:2202.04200): a whole map in a few passes, the surest codes first."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from oasis_lib.config import MaskedConfig
from oasis_lib.models.air import Air
from oasis_lib.models.choice import Choice, gumbel, image_seeds, place_seeds, uniform
from oasis_lib.models.sampling import Label, Prior, drawing, full_precision
from oasis_lib.models.transformer import Trunk


class MaskedTransformer(Prior):
    """The transformer's blocks, each position seeing all others; hidden codes are told from those around them. Air is left out."""

    kind = "masked"

    def __init__(self, config: MaskedConfig, grid: tuple[int, int], entries: int, levels: int = 0, ratings: int = 0):
        super().__init__(config, grid, entries, levels, ratings)
        self.codes = nn.Embedding(entries + 1, config.width)  # one more: hidden
        nn.init.normal_(self.codes.weight, std=0.02)
        self.trunk = Trunk(config, grid, entries, levels, ratings)
        self.air = Air(self.grid, entries)

    @property
    def passes(self) -> int:
        return self.config.passes

    def start(self, codes: Tensor, shifted: Tensor | None = None, *others: Tensor | None) -> None:
        self.air.start(codes if shifted is None else torch.cat([codes, shifted]))
        self.trunk.counts.start(codes)

    def forward(self, codes: Tensor, hidden: Tensor, level: Tensor | None = None, rating: Tensor | None = None) -> Tensor:
        """(B, h, w) codes, of which those where `hidden` is true are not read -> logits (B, h, w, K), in training (B, n, K) of the
        inside."""
        inner = self._inner(self.inside(codes), self.inside(hidden), level, rating)
        return inner if self.training else self.air.around(inner)

    def inside(self, maps: Tensor) -> Tensor:
        """(B, h, w) -> (B, n): the places that are not air."""
        return maps.flatten(1)[:, self.air.places()]

    def _inner(self, codes: Tensor, hidden: Tensor, *labels: Tensor | None) -> Tensor:
        """Both (B, n) -> (B, n, K)."""
        read = torch.where(hidden, self.entries, codes)
        return self.trunk(self.codes(read), *labels, causal=False, where=self.air.places())

    def told(self, codes: Tensor, row: int, column: int) -> Tensor:
        hidden = torch.zeros_like(codes, dtype=torch.bool)
        hidden[:, row, column] = True
        return self(codes, hidden)[:, row, column]

    def hide(self, codes: Tensor, draws: Tensor) -> Tensor:
        """A share cos(u pi / 2) of every head, u and the places by `draws` (B, 1 + h * w) in [0, 1): what training hides."""
        share = torch.cos(draws[:, :1] * math.pi / 2)
        places = torch.where(self.air.inside, draws[:, 1:], 2.0)  # air comes last, and so never
        count = (share * len(self.air.places())).ceil().clamp(min=1).long()
        return (places.argsort(1).argsort(1) < count).view(codes.shape)

    @torch.no_grad()
    def fill(self, codes: Tensor, mask: Tensor, level: Label = None, rating: Label = None, *,
             generator: torch.Generator | None = None, cached: bool = True, batch: int = 64, progress: bool | None = None,
             passes: int | None = None, **how: Any) -> Tensor:  # fmt: skip
        """`codes` drawn anew where `mask` is true, given all others. There is nothing to cache: `cached` changes nothing."""
        choose, passes = Choice(**how), passes or self.config.passes
        codes, mask = self.check_codes(codes).clone(), mask.to(self.device).expand(len(codes), *self.grid)
        labels, seeds = self.labels(len(codes), level, rating), image_seeds(len(codes), generator, self.device)
        parts = list(torch.arange(len(codes), device=self.device).split(batch))
        inside, wanted = self.inside(codes), self.inside(mask)
        with full_precision(self), drawing(len(parts) * passes, "pass", progress) as bar:
            for part in parts:
                drawn, hidden = inside[part], wanted[part]
                total = hidden.sum(1, keepdim=True)
                for i in range(passes):
                    left = torch.floor(math.cos((i + 1) / passes * math.pi / 2) * total).long() if i + 1 < passes else 0 * total
                    logits = self._inner(drawn, hidden, *(label[part] for label in labels))
                    drawn, hidden = self._pass(drawn, hidden, logits, seeds[part], i, left, 1 - (i + 1) / passes, choose)
                    bar.update()
                inside[part] = drawn
        codes = torch.where(mask, self.air.usual.view(self.grid), codes)
        codes.view(len(codes), -1)[:, self.air.places()] = inside
        return codes

    def _pass(
        self, codes: Tensor, hidden: Tensor, logits: Tensor, seeds: Tensor, i: int, left: Tensor, heat: float, choose: Choice
    ) -> tuple:
        """Draw all hidden codes, keep the surest: `left` (n, 1) stay hidden. `heat` is how much chance has a say in which."""
        places = logits.shape[1]
        logits = logits[hidden]  # (M, K): the others are settled
        drawn = choose(logits, gumbel(place_seeds(seeds, places)[hidden], i, self.entries))[0]
        luck = -torch.log(-torch.log(uniform(seeds, 0x10000 + i, places)))[hidden]
        sure = torch.full(hidden.shape, torch.inf, dtype=torch.float64, device=codes.device)
        sure[hidden] = logits.log_softmax(-1).gather(-1, drawn[:, None])[:, 0].double() + CHOICE_TEMPERATURE * heat * luck
        return codes.masked_scatter(hidden, drawn), sure.argsort(1).argsort(1) < left


CHOICE_TEMPERATURE = 4.5  # as in the paper's code: without chance the surest codes are all background
