"""How high in the head a map looks, told by ridge regression: so of several sketches the one that fits its level can be kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 16  # cells a side that looks are averaged in
RIDGE = 1e-4  # of the mean square of a map


class Gauge(nn.Module):
    """Looks (B, D, h, w) -> levels (B,), as real numbers."""

    def __init__(self, code_dim: int, grid: tuple[int, int]):
        super().__init__()
        self.cells = (min(SIDE, grid[0]), min(SIDE, grid[1]))
        size = code_dim * self.cells[0] * self.cells[1]
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("weight", torch.zeros(size))
        self.register_buffer("middle", torch.zeros(()))

    def cut(self, looks: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(looks.float(), self.cells).flatten(1)

    @torch.no_grad()
    def start(self, cut: Tensor, level: Tensor) -> None:
        """`cut` (n, size) of training maps, and their levels, -1 where open: then there is nothing to learn."""
        known = level >= 0
        if not bool(known.any()):
            return
        cut, level = cut[known].double().cpu(), level[known].double().cpu()
        mean, middle = cut.mean(0), level.mean()
        products = (cut - mean).T @ (cut - mean)
        ridge = RIDGE * products.trace() / len(cut) + 1e-9
        products.diagonal().add_(ridge)
        self.weight.copy_(torch.linalg.solve(products, (cut - mean).T @ (level - middle)))
        self.mean.copy_(mean)
        self.middle.copy_(middle)

    def forward(self, looks: Tensor) -> Tensor:
        return (self.cut(looks) - self.mean) @ self.weight + self.middle
