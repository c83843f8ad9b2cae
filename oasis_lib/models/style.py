"""What a whole map looks like on average (how bright, how rich in contrast), as one word: no block of codes tells the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oasis_lib.config import VQVAEConfig
from oasis_lib.models.quantizer import VectorQuantizer
from oasis_lib.models.sampling import Labels

REACH = 2.0  # levels: how far a level's counts lend to its neighbours'
WEIGHT = 8.0  # maps: how far a level's, or a rating's, counts are drawn towards those of all


class Style(nn.Module):
    """The nearest of k-means centres of a map's mean and spread, and how frequent each is at a level and a rating."""

    def __init__(self, styles: int, code_dim: int, levels: int, ratings: int):
        super().__init__()
        self.reader = VectorQuantizer(VQVAEConfig(entries=styles, code_dim=2 * code_dim))
        self.register_buffer("mean", torch.zeros(2 * code_dim))
        self.register_buffer("scale", torch.ones(2 * code_dim))
        even = torch.full((styles,), 1 / styles).log()
        self.register_buffer("by_level", even.repeat(levels + 1, 1))  # the last row of both: where the label is open
        self.register_buffer("by_rating", even.repeat(ratings + 1, 1))

    @torch.no_grad()
    def start(self, found: Tensor, level: Tensor | None = None, rating: Tensor | None = None) -> None:
        """(n, 2 D) summaries of training maps and their labels."""
        self.mean.copy_(found.mean(0))
        self.scale.copy_(found.std(0).clamp(min=1e-6))
        self.reader.start(((found - self.mean) / self.scale)[:, :, None], rounds=20, generator=torch.Generator().manual_seed(0))
        here = nn.functional.one_hot(self(found), self.reader.config.entries).float()  # (n, styles)
        everywhere = here.sum(0) + 0.1
        everywhere /= everywhere.sum()
        for table, label, reach in ((self.by_level, level, REACH), (self.by_rating, rating, 0.0)):
            rows = torch.arange(len(table) - 1, device=here.device)
            counts = torch.zeros_like(table)
            if label is not None:
                counts[:-1].index_add_(0, label[label >= 0], here[label >= 0])
            if reach:
                counts[:-1] = torch.exp(-0.5 * ((rows[:, None] - rows) / reach) ** 2) @ counts[:-1]
            counts += WEIGHT * everywhere
            table.copy_((counts / counts.sum(1, keepdim=True)).log())

    @torch.no_grad()
    def forward(self, found: Tensor) -> Tensor:
        """(B, 2 D) summaries -> (B,) the style of each map."""
        return self.reader.nearest((found - self.mean) / self.scale)

    def log_probs(self, level: Tensor, rating: Tensor) -> Tensor:
        """(B,) each, -1 where open -> (B, styles), as if a level and a rating spoke apart from each other."""
        return (self.by_level[level] + self.by_rating[rating] - self.by_rating[-1]).log_softmax(1)


class StyledLabels(Labels):
    """A rating and a style come as one number, so that all that takes labels may stay as it is."""

    def __init__(self, levels: int, ratings: int, styles: int, width: int):
        super().__init__(levels, ratings, width)
        self.style = nn.Embedding(styles, width)

    def forward(self, level: Tensor | None, rating: Tensor, n: int) -> Tensor:
        styles = self.style.num_embeddings
        return super().forward(level, rating // styles - 1, n) + self.style(rating % styles)


def joined(rating: Tensor, style: Tensor, styles: int) -> Tensor:
    """The number that `StyledLabels` takes apart; a rating may be open (-1), a style not."""
    return (rating + 1) * styles + style


def summary(looks: Tensor) -> Tensor:
    """(B, D, places) -> (B, 2 D)."""
    return torch.cat([looks.mean(2), looks.std(2, correction=0)], 1)
