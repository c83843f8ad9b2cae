"""How a code is chosen from its logits: which may be drawn at all, and luck that nothing but the seed decides."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

MARGIN = 3e-5  # choices closer than this are made again in double precision; single precision errs by some 1e-6


@dataclass(frozen=True)
class Choice:
    """Calling it with logits (n, K) and Gumbel noise of the same shape draws. All cuts are of the chances after the temperature."""

    temperature: float = 1.0  # 0: always the likeliest
    top_k: int | None = None  # only so many of the likeliest
    top_p: float | None = None  # only the likeliest that together have this chance
    min_p: float | None = None  # only those with this share of the likeliest's chance (Nguyen 2024, arXiv:2407.01082)

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must be 0 (always the likeliest) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1, or None")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}={value} must be above 0 and at most 1, or None")

    def calmed(self, by: float) -> Choice:
        return dataclasses.replace(self, temperature=self.temperature * by)

    def __call__(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) codes, and whether rounding could have decided which."""
        logits = logits.double() / (self.temperature or 1.0)
        low, high = self._thresholds(logits)
        scores = logits + (noise if self.temperature else 0.0)
        best, codes = scores.masked_fill(logits < high, -torch.inf).max(1)
        rivals = scores.masked_fill(logits < low, -torch.inf)
        rivals = rivals.scatter(1, codes[:, None], -torch.inf).max(1).values
        doubt = best - rivals < MARGIN
        if low is not high:
            unsure = (logits >= low).sum(1) != (logits >= high).sum(1)
            at_edge = logits.gather(1, codes[:, None]) <= high + MARGIN
            doubt |= unsure & at_edge[:, 0]
        return codes, doubt

    def _thresholds(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The least logit that, within rounding, might be drawn and the least that surely may: (n, 1) each."""
        low = high = torch.full_like(logits[:, :1], -torch.inf)
        if self.min_p is not None:
            high = logits.amax(1, keepdim=True) + math.log(self.min_p)
            low = high - MARGIN
        if self.top_k is None and self.top_p is None:
            return low, high
        ranked = logits.sort(1, descending=True).values
        if self.top_k is not None and self.top_k < logits.shape[1]:
            edge = ranked[:, self.top_k - 1 : self.top_k]
            low, high = torch.maximum(low, edge - MARGIN), torch.maximum(high, edge)
        if self.top_p is not None and self.top_p < 1:
            chances = ranked.softmax(1)
            before = chances.cumsum(1) - chances
            last = [((before < p).sum(1, keepdim=True) - 1).clamp(min=0) for p in (self.top_p, self.top_p + MARGIN)]
            low = torch.maximum(low, ranked.gather(1, last[1]) - MARGIN)
            high = torch.maximum(high, ranked.gather(1, last[0]))
        return low, high


def image_seeds(n: int, generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """(n,) numbers below 2^32, one an image: all that is taken from the generator."""
    where = generator.device if generator is not None else "cpu"
    return torch.randint(2**32, (n,), generator=generator, device=where).to(device)


def place_seeds(seeds: Tensor, places: int) -> Tensor:
    """(n,) -> (n, places): one number a place, for draws of many places at once."""
    return (seeds[:, None] * 0x2545F491 + torch.arange(places, device=seeds.device) * 0x9E3779B1) & 0xFFFFFFFF


def uniform(seeds: Tensor, position: int, count: int) -> Tensor:
    """(n, count) in (0, 1): a hash of image, position and code, hence the same for any order, batch and device."""
    x = (seeds[:, None] + position * 0x9E3779B1) ^ (torch.arange(count, device=seeds.device) * 0x85EBCA6B)
    for factor in (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F):  # murmur3's finishing steps
        x = x & 0xFFFFFFFF
        x = (x ^ (x >> 16)) * factor
    x = x & 0xFFFFFFFF
    return ((x ^ (x >> 15)).double() + 0.5) / 2**32


def gumbel(seeds: Tensor, position: int, count: int) -> Tensor:
    return -torch.log(-torch.log(uniform(seeds, position, count)))
