"""How a token is drawn from its logits, with noise that belongs to its image: the batch makes no difference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """The options of `sample` and `fill`. Temperature, then top-k, then top-p (Holtzman 2019, arXiv:1904.09751)."""

    temperature: float = 1.0  # 0: always the likeliest token
    top_k: int | None = None  # draw from the k likeliest
    top_p: float | None = None  # draw from the likeliest that together have this probability
    guidance: float = 0.0  # how far logits go beyond those without labels (Ho & Salimans 2022, arXiv:2207.12598)
    generator: torch.Generator | None = None
    batch: int = 0  # images drawn together; 0: as suits the device
    progress: bool | None = None

    def __post_init__(self) -> None:
        wrong = {
            "temperature": (not self.temperature >= 0, "0 (always the likeliest) or more"),
            "top_k": (self.top_k is not None and self.top_k < 1, "at least 1, or None"),
            "top_p": (self.top_p is not None and not 0 < self.top_p <= 1, "above 0 and at most 1, or None"),
            "guidance": (not self.guidance >= 0, "0 (none) or more"),
        }
        for name, (is_so, range_) in wrong.items():
            if is_so:
                raise ValueError(f"{name}={getattr(self, name)} must be {range_}")

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
            probs = ranked.softmax(-1)
            ranked = ranked.masked_fill(probs.cumsum(-1) - probs >= self.top_p, torch.inf)
            logits = logits.masked_fill(logits < ranked.amin(-1, keepdim=True), -torch.inf)
        return logits


def image_seeds(n: int, generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """(n,) numbers below 2^32, one per image: all that is taken from the generator."""
    where = generator.device if generator is not None else "cpu"
    return torch.randint(2**32, (n,), generator=generator, device=where).to(device)


def uniform(seeds: Tensor, positions: Tensor | int, count: int = 1) -> Tensor:
    """(n,) image seeds, (m,) positions -> (n, m, count) in (0, 1): a hash, the same for any batch, order and device."""
    x = (seeds[:, None] + positions * 0x9E3779B1)[..., None] ^ (torch.arange(count, device=seeds.device) * 0x85EBCA6B)
    for factor in (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F):  # murmur3's last steps
        x = x & 0xFFFFFFFF
        x = (x ^ (x >> 16)) * factor
    x = x & 0xFFFFFFFF
    return (((x ^ (x >> 15)) >> 9).float() + 0.5) / 2**23  # 24 bits: exact in single precision


def gumbel(seeds: Tensor, positions: Tensor | int, count: int) -> Tensor:
    """(n, m, count) noise: logits plus this are largest for a token drawn by its probability."""
    return -torch.log(-torch.log(uniform(seeds, positions, count)))
