"""A decoder-only transformer over code maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oasis_lib.config import TransformerConfig
from oasis_lib.models.position_prior import Background, PositionPrior
from oasis_lib.models.prior import Autoregressive, Labels, Step
from oasis_lib.models.tokens import TokenEmbedding, TokenLogits, feature_count, features_of

# What a position is told of directly, as (rows up, columns right). Attention reaches all the codes before it.
NEIGHBOURS = ((0, -1), (0, -2), (-1, -2), (-1, -1), (-1, 0), (-1, 1), (-1, 2), (-2, -1), (-2, 0), (-2, 1))
Cache = tuple[Tensor, Tensor]  # keys and values, (B, heads, N, width / heads) each


class Block(nn.Module):
    """Pre-norm attention and a feed-forward net, each added to the stream."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} can't be shared out among {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, cache: Cache | None = None, t: int = 0) -> Tensor:
        """(B, T, width) -> the same. With a cache, x is position t alone and sees the cached ones before it."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, d) each
        if cache is not None:
            cache[0][:, :, t : t + 1], cache[1][:, :, t : t + 1] = k, v
            k, v = cache[0][:, :, : t + 1], cache[1][:, :, : t + 1]
        # No dropout of attention weights: it keeps the fused kernel out, and its random numbers alone cost more than the step.
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        x = x + F.dropout(self.mix(seen.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return x + F.dropout(self.narrow(F.gelu(self.wide(self.norm2(x)))), self.dropout, self.training)


class Trunk(nn.Module):
    """Position in two dimensions and the labels, added to what comes in; then the blocks."""

    def __init__(self, config: TransformerConfig, grid: tuple[int, int], slice_indices: int, cdrs: int):
        super().__init__()
        width = config.width
        self.rows = nn.Parameter(0.02 * torch.randn(grid[0], 1, width))
        self.columns = nn.Parameter(0.02 * torch.randn(1, grid[1], width))
        self.labels, self.dropout = Labels(slice_indices, cdrs, width), config.dropout
        self.blocks = nn.ModuleList(Block(width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.apply(_start)
        for block in self.blocks:  # each adds to one stream: together they start as large as one
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
    """Each position reads its nearest neighbours before it, embedded side by side, and attends to all positions before it.

    Background is left out of the sequence, which halves the work.
    """

    kind = "transformer"

    def __init__(self, config: TransformerConfig, grid: tuple[int, int], codebook_size: int, slice_indices: int = 0, cdrs: int = 0):
        super().__init__(config, grid, codebook_size, slice_indices, cdrs)
        dim = max(16, config.width // 4)
        self.codes = TokenEmbedding(codebook_size, 2, config.code_dim, dim)  # two more: outside the map, and hidden (in training)
        self.gather = nn.Linear(dim * (len(NEIGHBOURS) + 1), config.width)
        self.trunk, self.head = Trunk(config, grid, slice_indices, cdrs), TokenLogits(config.width, codebook_size, config.code_dim)
        self.position_prior = PositionPrior(grid, codebook_size, slice_indices, config.knots)
        self.register_buffer("features", torch.zeros(codebook_size, feature_count(config.code_dim)))
        self.register_buffer("neighbours", neighbour_table(*grid), persistent=False)
        self.background = Background(self.grid, codebook_size)

    def start(self, codes: Tensor, slice_index: Tensor | None = None, shifted: Tensor | None = None, vectors=None) -> None:
        self.background.start(codes if shifted is None else torch.cat([codes, shifted]))
        self.position_prior.start(codes, slice_index)
        if vectors is not None:
            self.features.copy_(features_of(vectors))

    def targets(self, codes: Tensor) -> Tensor:
        """The codes that training's logits are of: (B, n)."""
        return codes.flatten(1)[:, self._places()[0]]

    def _places(self) -> tuple[Tensor, Tensor]:
        """The positions inside (n,), and where each looks (n, neighbours + 1)."""
        where = self.background.positions()
        table = self.neighbours[where]
        table[1:, -1] = where[:-1]  # the one before, without the background: at the start of a row, the last of the row above
        return where, table

    def _read(self, flat: Tensor, neighbours: Tensor) -> Tensor:
        """Codes (B, N) and a table (T, neighbours) of where to look -> (B, T, width)."""
        outside = torch.full_like(flat[:, :1], self.codebook_size)
        return self.gather(self.codes(torch.cat([flat, outside], 1)[:, neighbours], self.features).flatten(2))

    def forward(self, codes: Tensor, slice_index: Tensor | None = None, cdr: Tensor | None = None) -> Tensor:
        """(B, h, w) -> logits (B, h, w, K), in training (B, n, K) of the inside; each depends on the codes before it alone."""
        flat = codes.flatten(1)
        if self.training and self.config.token_dropout:  # some codes are hidden, so that none can be leant on alone
            hidden = torch.rand(flat.shape, device=flat.device) < self.config.token_dropout
            flat = torch.where(hidden, self.codebook_size + 1, flat)
        where, table = self._places()
        inner = self.head(self.trunk(self._read(flat, table), slice_index, cdr, where), self.features) + self.position_prior(
            where, slice_index
        )
        return inner if self.training else self.background.around(inner)

    def stepper(self, slice_index: Tensor, cdr: Tensor) -> Step:
        """Keys and values of the positions before are kept, so that a token costs one position's work."""
        n, trunk, (where, table) = len(slice_index), self.trunk, self._places()
        order = {t: i for i, t in enumerate(where.tolist())}
        room = (n, self.config.heads, len(where), self.config.width // self.config.heads)
        kind = {"device": self.device, "dtype": self.gather.weight.dtype}
        caches = [(torch.empty(room, **kind), torch.empty(room, **kind)) for _ in trunk.blocks]
        places = trunk.places() + trunk.labels(slice_index, cdr, n)[:, None]  # (n, N, width)

        def step(flat: Tensor, t: int) -> Tensor:
            i = order[t]
            x = self._read(flat, table[i : i + 1]) + places[:, t : t + 1]
            for block, cache in zip(trunk.blocks, caches):
                x = block(x, cache, i)
            return self.head(trunk.norm(x), self.features)[:, 0] + self.position_prior(slice(t, t + 1), slice_index)[..., 0, :]

        return step


def neighbour_table(h: int, w: int) -> Tensor:
    """(h * w, neighbours + 1): where in the row-by-row order they lie; h * w is outside the map.

    The last is the code just before in that order: at the start of a row no other neighbour is.
    """
    row, column = torch.arange(h)[:, None, None], torch.arange(w)[None, :, None]
    up, right = torch.tensor(NEIGHBOURS).T
    row, column = row + up, column + right
    inside = (row >= 0) & (column >= 0) & (column < w)
    table = torch.where(inside, row * w + column, h * w).flatten(0, 1)
    before = torch.arange(h * w)[:, None] - 1
    return torch.cat([table, torch.where(before < 0, h * w, before)], 1)


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
