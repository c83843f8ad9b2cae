"""The air around a head: the same code at the same place in every image, and half of the map. Nobody need learn it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Air(nn.Module):
    """Finds the places of air in training maps, and gives each a fixed distribution: likelihoods still sum to one."""

    def __init__(self, grid: tuple[int, int], entries: int):
        super().__init__()
        size = grid[0] * grid[1]
        self.grid, self.entries = grid, entries
        self.register_buffer("inside", torch.ones(size, dtype=torch.bool))
        self.register_buffer("usual", torch.zeros(size, dtype=torch.int64))  # outside: the code that is there,
        self.register_buffer("chance", torch.ones(size))  # and how probable it is; the rest is shared by all others
        self._found: tuple | None = None

    @torch.no_grad()
    def start(self, codes: Tensor, share: float = 0.998) -> None:
        """Outside is where one code fills at least `share` of these (n, h, w) maps."""
        counts = torch.stack([torch.bincount(at, minlength=self.entries) for at in codes.flatten(1).T])  # (h * w, K)
        most, usual = counts.max(1)
        self.usual.copy_(usual)
        self.chance.copy_((most + 1) / (len(codes) + 2))  # Laplace's rule: never quite certain
        self.inside.copy_(most < share * len(codes))
        if not bool(self.inside.any()):
            self.inside.fill_(True)

    @torch.compiler.disable
    def places(self) -> Tensor:
        """(n,) the places inside, in order."""
        return self._look()[0]

    @torch.compiler.disable
    def box(self) -> tuple[int, int, int, int]:
        """Rows (first, end) and columns (first, end) that hold all that is inside."""
        return self._look()[1]

    def logits(self, where: Tensor | int) -> Tensor:
        """(n, K) at places of air."""
        usual, chance = self.usual[where].reshape(-1, 1), self.chance[where].reshape(-1, 1)
        rest = torch.log((1 - chance).clamp(min=1e-9) / max(self.entries - 1, 1))
        return rest.expand(-1, self.entries).scatter(1, usual, chance.log())

    def around(self, inner: Tensor) -> Tensor:
        """Logits (B, n, K) of the places inside -> (B, h, w, K) of all."""
        logits = inner.new_empty(len(inner), len(self.inside), self.entries)
        logits[:, self.places()] = inner
        logits[:, ~self.inside] = self.logits(~self.inside).to(inner.dtype)
        return logits.unflatten(1, self.grid)

    def _look(self) -> tuple[Tensor, tuple[int, int, int, int]]:
        """Both of the above, found anew when `inside` has changed: asking a GPU each time would make it wait."""
        stamp = (self.inside.device, self.inside._version)
        if self._found is None or self._found[0] != stamp:
            where = self.inside.nonzero()[:, 0]
            rows, columns = where // self.grid[1], where % self.grid[1]
            box = (int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1)
            self._found = (stamp, where, box)
        return self._found[1:]
