"""A decoder-only transformer over token maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oasis_lib.config import TransformerConfig
from oasis_lib.device import computed_in
from oasis_lib.models.prior import Autoregressive, Labels, Step
from oasis_lib.models.tokens import TokenEmbedding, TokenLogits

# What a position reads directly, as (rows up, columns right). Attention reaches all tokens before it.
NEIGHBOURS = ((0, -1), (0, -2), (-1, -2), (-1, -1), (-1, 0), (-1, 1), (-1, 2), (-2, -1), (-2, 0), (-2, 1))
GRAPHS = ("cuda",)  # devices that can record a step and launch it as one
Cache = Sequence[Tensor]  # keys and values, (B, heads, N, width / heads) each, in memory that is taken once


class Block(nn.Module):
    """Pre-norm attention and a feed-forward network, each added to the stream."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, cache: Cache = (), at: Tensor | None = None, end: int | None = None) -> Tensor:
        """(B, T, width) -> the same. With a cache, x is position `at` (1,) alone and sees the cached ones before it.

        These are the first `end`; without it, a mask says which, and all shapes are fixed.
        """
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, d)
        mask = None
        if cache:
            k, v = (kept.index_copy_(2, at, new)[:, :, :end] for kept, new in zip(cache, (k, v)))
            mask = (torch.arange(k.shape[2], device=k.device) <= at)[None] if end is None else None
        # No dropout of attention weights: it would rule out the fused kernel.
        seen = F.scaled_dot_product_attention(q, k, v, mask, is_causal=len(cache) == 0)
        x = x + F.dropout(self.mix(seen.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return x + F.dropout(self.narrow(F.gelu(self.wide(self.norm2(x)))), self.dropout, self.training)


class Trunk(nn.Module):
    """Two-dimensional position and labels, added to what comes in; then the blocks."""

    def __init__(self, config: TransformerConfig, grid: tuple[int, int], slice_indices: int, cdrs: int):
        super().__init__()
        width = config.width
        self.rows = nn.Parameter(0.02 * torch.randn(grid[0], 1, width))
        self.columns = nn.Parameter(0.02 * torch.randn(1, grid[1], width))
        self.labels, self.dropout = Labels(slice_indices, cdrs, width), config.dropout
        self.blocks = nn.ModuleList(Block(width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.apply(_initialise)
        for block in self.blocks:  # 2 * layers terms add to one stream
            for last in (block.mix, block.narrow):
                nn.init.normal_(last.weight, std=0.02 / (2 * config.layers) ** 0.5)

    def places(self) -> Tensor:
        return (self.rows + self.columns).flatten(0, 1)  # (h * w, width)

    def forward(self, x: Tensor, slice_index: Tensor | None, cdr: Tensor | None, where: Tensor) -> Tensor:
        """(B, N, width) at the N positions `where` -> the same, after all blocks."""
        x = x + self.places()[where] + self.labels(slice_index, cdr, len(x))[:, None]
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class CodeTransformer(Autoregressive):
    """Each foreground position reads its nearest neighbours before it, side by side, and attends to all before it."""

    kind = "transformer"

    def __init__(self, config: TransformerConfig, **shape: Any):
        super().__init__(config, **shape)
        size, dim = self.codebook_size, max(16, config.width // 4)
        self.kept = 2 * config.layers * config.width
        self.codes = TokenEmbedding(size, 2, config.code_dim, dim)  # two more: outside the map, and dropped
        self.gather = nn.Linear(dim * (len(NEIGHBOURS) + 1), config.width)
        self.trunk = Trunk(config, self.grid, self.slice_indices, self.cdrs)
        self.head = TokenLogits(config.width, size, config.code_dim)
        self.register_buffer("neighbours", neighbour_table(*self.grid), persistent=False)

    def _places(self) -> tuple[Tensor, Tensor]:
        """The foreground positions (n,), and where each looks: its neighbours, and the foreground position before it.

        (n, neighbours + 1); -1 and h * w are outside the map.
        """
        where = self.background.positions()
        before = torch.cat([where[:1] - 1, where[:-1]])  # at the start of a row, the last of the row above
        return where, torch.cat([self.neighbours[where], before[:, None]], 1)

    def _read(self, flat: Tensor, table: Tensor) -> Tensor:
        """Tokens (B, N) and where each of T positions looks (T, neighbours + 1) -> (B, T, width)."""
        outside = torch.full_like(flat[:, :1], self.codebook_size)
        return self.gather(self.codes(torch.cat([flat, outside], 1)[:, table], self.features).flatten(2))

    def inner(self, codes: Tensor, slice_index: Tensor | None, cdr: Tensor | None) -> Tensor:
        flat = codes.flatten(1)
        if self.training and self.config.token_dropout:
            dropped = torch.rand(flat.shape, device=flat.device) < self.config.token_dropout
            flat = torch.where(dropped, self.codebook_size + 1, flat)
        where, table = self._places()
        return self.head(self.trunk(self._read(flat, table), slice_index, cdr, where), self.features)

    def stepper(self, slice_index: Tensor, cdr: Tensor) -> Step:
        """A token costs one position's work. On CUDA that is a graph: one launch instead of a hundred."""
        work, where = self.cached(slice_index, cdr), self.background.positions()
        order, everywhere = {t: i for i, t in enumerate(where.tolist())}, torch.arange(len(where), device=self.device)
        if self.device.type not in GRAPHS:
            return lambda flat, t: work(flat, everywhere[order[t] : order[t] + 1], order[t] + 1)
        empty = where.new_zeros(len(slice_index), self.grid[0] * self.grid[1]), where.new_zeros(1)
        graph = torch.cuda.make_graphed_callables(work, empty)
        return lambda flat, t: graph(flat, everywhere[order[t] : order[t] + 1])

    def cached(self, slice_index: Tensor, cdr: Tensor) -> Callable[..., Tensor]:
        """A function (codes (B, h * w), place (1,) among those inside) -> logits (B, K), called for each place in turn.

        Keys and values are kept. Told that it sees the first `end`, it reads no more; otherwise its shapes are fixed.
        """
        n, trunk, (where, table) = len(slice_index), self.trunk, self._places()
        room = (n, self.config.heads, len(where), self.config.width // self.config.heads)
        empty = torch.zeros(room, dtype=computed_in(self.device), device=self.device)
        caches = [(empty.clone(), empty.clone()) for _ in trunk.blocks]
        places = (trunk.places() + trunk.labels(slice_index, cdr, n)[:, None])[:, where]  # (n, N, width)

        def work(flat: Tensor, at: Tensor, end: int | None = None) -> Tensor:
            x = self._read(flat, table[at]) + places[:, at]
            for block, cache in zip(trunk.blocks, caches):
                x = block(x, cache, at, end)
            counted = self.position_prior(where[at], slice_index)[..., 0, :]
            return self.head(trunk.norm(x), self.features)[:, 0] + counted

        return work


def neighbour_table(h: int, w: int) -> Tensor:
    """(h * w, neighbours) positions, row by row; h * w is outside the map."""
    row, column = torch.arange(h)[:, None, None], torch.arange(w)[None, :, None]
    up, right = torch.tensor(NEIGHBOURS).T
    row, column = row + up, column + right
    inside = (row >= 0) & (column >= 0) & (column < w)
    return torch.where(inside, row * w + column, h * w).flatten(0, 1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
