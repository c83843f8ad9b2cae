"""How a token is drawn from its logits, with noise that belongs to its image: no sample depends on the batch it is drawn in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """Temperature, then top-k, then top-p (Holtzman 2019, arXiv:1904.09751)."""

    temperature: float = 1.0  # 0: always the likeliest
    top_k: int | None = None  # only so many of the likeliest
    top_p: float | None = None  # only the likeliest that together have this probability

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must be 0 (always the likeliest) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1, or None")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1, or None")

    def __call__(self, logits: Tensor, noise: Tensor) -> Tensor:
        """(..., K) logits and Gumbel noise -> (...) tokens."""
        return (self.filtered(logits) + noise).argmax(-1)

    def filtered(self, logits: Tensor) -> Tensor:
        """(..., K) logits after temperature, top-k and top-p: -inf for what may not be drawn."""
        logits = logits.float()
        if not self.temperature:
            return logits.masked_fill(logits < logits.amax(-1, keepdim=True), -torch.inf)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[..., -1:], -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ranked = logits.sort(-1, descending=True).values
            chances = ranked.softmax(-1)
            ranked = ranked.masked_fill(chances.cumsum(-1) - chances >= self.top_p, torch.inf)
            logits = logits.masked_fill(logits < ranked.amin(-1, keepdim=True), -torch.inf)
        return logits


def image_seeds(n: int, generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """(n,) numbers below 2^32, one an image: all that is taken from the generator."""
    where = generator.device if generator is not None else "cpu"
    return torch.randint(2**32, (n,), generator=generator, device=where).to(device)


def uniform(seeds: Tensor, positions: Tensor | int, count: int = 1) -> Tensor:
    """(n,) image seeds, (m,) positions -> (n, m, count) in (0, 1): a hash, the same for any batch, order and device."""
    x = (seeds[:, None] + positions * 0x9E3779B1)[..., None] ^ (torch.arange(count, device=seeds.device) * 0x85EBCA6B)
    for factor in (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F):  # murmur3's finishing steps
        x = x & 0xFFFFFFFF
        x = (x ^ (x >> 16)) * factor
    x = x & 0xFFFFFFFF
    return (((x ^ (x >> 15)) >> 9).float() + 0.5) / 2**23  # 24 bits: exact in single precision


def gumbel(seeds: Tensor, positions: Tensor | int, count: int) -> Tensor:
    """(n, m, count): a token's logits plus this noise are largest for a fair draw."""
    return -torch.log(-torch.log(uniform(seeds, positions, count)))
