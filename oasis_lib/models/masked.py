"""Parallel decoding (MaskGIT, Chang 2022, arXiv:2202.04200): a whole map in a few passes, the surest codes first."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from oasis_lib.config import MaskedConfig
from oasis_lib.models.sampling import (
    Label,
    Prior,
    check_options,
    choose,
    full_precision,
    gumbel,
    image_seeds,
    place_seeds,
    uniform,
)
from oasis_lib.models.transformer import Trunk


class MaskedTransformer(Prior):
    """The transformer's blocks, each position seeing all others; hidden codes are told from those around them."""

    kind = "masked"

    def __init__(self, config: MaskedConfig, grid: tuple[int, int], entries: int, levels: int = 0, ratings: int = 0):
        super().__init__(config, grid, entries, levels, ratings)
        self.codes = nn.Embedding(entries + 1, config.width)  # one more: hidden
        nn.init.normal_(self.codes.weight, std=0.02)
        self.trunk = Trunk(config, grid, entries, levels, ratings)

    @property
    def passes(self) -> int:
        return self.config.passes

    def start(self, codes: Tensor, *others: Tensor | None) -> None:
        self.trunk.counts.start(codes)

    def forward(self, codes: Tensor, hidden: Tensor, level: Tensor | None = None, rating: Tensor | None = None) -> Tensor:
        """(B, h, w) codes, of which those where `hidden` is true are not read -> logits (B, h, w, K)."""
        read = torch.where(hidden, self.entries, codes).flatten(1)
        return self.trunk(self.codes(read), level, rating, causal=False).unflatten(1, self.grid)

    def told(self, codes: Tensor, row: int, column: int) -> Tensor:
        hidden = torch.zeros_like(codes, dtype=torch.bool)
        hidden[:, row, column] = True
        return self(codes, hidden)[:, row, column]

    def hide(self, codes: Tensor, draws: Tensor) -> Tensor:
        """A share cos(u pi / 2) of every map, u and the places by `draws` (B, 1 + h * w) in [0, 1): what training hides."""
        share = torch.cos(draws[:, :1] * math.pi / 2)
        places = draws[:, 1:]
        count = (share * places.shape[1]).ceil().clamp(min=1).long()
        return (places.argsort(1).argsort(1) < count).view(codes.shape)

    @torch.no_grad()
    def fill(self, codes: Tensor, mask: Tensor, level: Label = None, rating: Label = None, *, temperature: float = 1.0,
             top_k: int | None = None, top_p: float | None = None, generator: torch.Generator | None = None,
             cached: bool = True, batch: int = 64, progress: bool | None = None, passes: int | None = None) -> Tensor:  # fmt: skip
        """`codes` drawn anew where `mask` is true, given all others. There is nothing to cache: `cached` changes nothing."""
        check_options(temperature, top_k, top_p)
        passes = passes or self.config.passes
        codes, mask = self.check_codes(codes).clone(), mask.to(self.device).expand(len(codes), *self.grid)
        labels, seeds = self.labels(len(codes), level, rating), image_seeds(len(codes), generator, self.device)
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        parts = list(torch.arange(len(codes), device=self.device).split(batch))
        done = []
        with full_precision(self), tqdm(total=len(parts) * passes, desc="drawing", unit="pass", disable=not progress) as bar:
            for part in parts:
                drawn, hidden = codes[part], mask[part].clone()
                total = hidden.flatten(1).sum(1, keepdim=True)
                for i in range(passes):
                    left = torch.floor(math.cos((i + 1) / passes * math.pi / 2) * total).long() if i + 1 < passes else 0 * total
                    logits = self(drawn, hidden, *(label[part] for label in labels)).flatten(1, 2)
                    drawn, hidden = self._pass(drawn, hidden, logits, seeds[part], i, left, 1 - (i + 1) / passes, options)
                    bar.update()
                done.append(drawn)
        return torch.cat(done)

    def _pass(
        self, codes: Tensor, hidden: Tensor, logits: Tensor, seeds: Tensor, i: int, left: Tensor, heat: float, options: dict
    ) -> tuple:
        """Draw all hidden codes, keep the surest: `left` (n, 1) stay hidden. `heat` is how much chance has a say in which."""
        places, asked = logits.shape[1], hidden.flatten(1)
        logits = logits[asked]  # (M, K): the others are settled
        drawn = choose(logits, gumbel(place_seeds(seeds, places)[asked], i, self.entries), **options)[0]
        luck = -torch.log(-torch.log(uniform(seeds, 0x10000 + i, places)))[asked]
        sure = torch.full(asked.shape, torch.inf, dtype=torch.float64, device=codes.device)
        sure[asked] = logits.log_softmax(-1).gather(-1, drawn[:, None])[:, 0].double() + CHOICE_TEMPERATURE * heat * luck
        codes = codes.masked_scatter(hidden, drawn)
        return codes, (sure.argsort(1).argsort(1) < left).view_as(hidden)


CHOICE_TEMPERATURE = 4.5  # as in the paper's code: without chance the surest codes are all background
