"""A gated PixelCNN (van den Oord 2016, arXiv:1606.05328) whose view covers the whole map."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oasis_lib.config import PixelCNNConfig
from oasis_lib.models.position_prior import Background, PositionPrior
from oasis_lib.models.prior import Autoregressive, Labels, Step
from oasis_lib.models.tokens import TokenEmbedding, TokenLogits, feature_count, features_of


class Reach(NamedTuple):
    """How far a layer looks: `taps` steps of `dilation` positions; a strict layer leaves the position itself out."""

    taps: int
    dilation: int = 1
    strict: bool = False


def plan(layers: int, grid: tuple[int, int]) -> tuple[Reach, ...]:
    """A strict 5 x 5 layer, then steps of 1, 2, 4 ... over and over: all that is needed to see the whole map."""
    far, first = max(grid) - 1, Reach(2, strict=True)
    for cycle in range(1, layers):
        steps = [2 ** (i % cycle) for i in range(layers - 1)]
        if first.taps + sum(steps) >= far:
            return (first, *(Reach(1, step) for step in steps))
    raise ValueError(f"pixelcnn.layers={layers} can't see all of a {grid[0]} x {grid[1]} map; {far.bit_length() + 1} layers can")


class Layer(nn.Module):
    """The vertical stack looks at rows above; the horizontal one to the left, and takes in the vertical one at its place."""

    def __init__(self, hidden: int, reach: Reach, dropout: float):
        super().__init__()
        taps, dilation, strict = reach
        self.reach, self.dropout, self.pad = reach, dropout, taps * dilation
        # A strict layer has no tap at its own row (column): no mask that could slip off.
        self.vertical = nn.Conv2d(hidden, 2 * hidden, (taps + (not strict), 2 * taps + 1), dilation=dilation)
        self.horizontal = nn.Conv2d(hidden, 2 * hidden, (1, taps + (not strict)), dilation=dilation)
        self.down, self.out = nn.Conv2d(2 * hidden, 2 * hidden, 1), nn.Conv2d(hidden, hidden, 1)
        self.up = None if strict else nn.Conv2d(hidden, hidden, 1)

    def forward(self, vertical: Tensor, horizontal: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        strict, pad = int(self.reach.strict), self.pad
        # A strict layer's last row (column) would be the position's own: it is cut off before.
        raw = self.vertical(F.pad(vertical, (pad, pad, pad, -strict)))
        told = self.down(raw) + label
        seen = F.dropout(gate(raw + label), self.dropout, self.training)
        if self.up is not None:
            seen = self.up(seen) + vertical
        left = gate(self.horizontal(F.pad(horizontal, (pad, -strict, 0, 0))) + told)
        left = self.out(F.dropout(left, self.dropout, self.training))
        return seen, left if strict else left + horizontal


def gate(x: Tensor, dim: int = 1) -> Tensor:
    value, opening = x.chunk(2, dim)
    return value.tanh() * opening.sigmoid()


class GatedPixelCNN(Autoregressive):
    kind = "pixelcnn"

    def __init__(self, config: PixelCNNConfig, grid: tuple[int, int], codebook_size: int, slice_indices: int = 0, cdrs: int = 0):
        super().__init__(config, grid, codebook_size, slice_indices, cdrs)
        hidden, self.reaches = config.hidden, plan(config.layers, grid)
        self.codes = TokenEmbedding(codebook_size, 0, config.code_dim, hidden)
        self.places = nn.Parameter(torch.zeros(2 * hidden, *grid))  # where on the map, told to the first layer
        self.label_table = Labels(slice_indices, cdrs, 2 * hidden * len(self.reaches))
        self.layers = nn.ModuleList(Layer(hidden, reach, config.dropout) for reach in self.reaches)
        self.position_prior, self.background = (
            PositionPrior(grid, codebook_size, slice_indices, config.knots),
            Background(self.grid, codebook_size),
        )
        self.widen, self.head = nn.Linear(hidden, 4 * hidden), TokenLogits(4 * hidden, codebook_size, config.code_dim)
        self.register_buffer("features", torch.zeros(codebook_size, feature_count(config.code_dim)))

    @property
    def receptive_field(self) -> int:
        """Rows up, and columns to either side, that a code's chances depend on."""
        return sum(reach.taps * reach.dilation for reach in self.reaches)

    def start(self, codes: Tensor, slice_index: Tensor | None = None, shifted: Tensor | None = None, vectors=None) -> None:
        self.background.start(codes if shifted is None else torch.cat([codes, shifted]))
        self.position_prior.start(codes, slice_index)
        if vectors is not None:
            self.features.copy_(features_of(vectors))

    def targets(self, codes: Tensor) -> Tensor:
        """(B, n): the tokens that are not background."""
        return codes.flatten(1)[:, self.background.positions()]

    def _labels(self, slice_index: Tensor | None, cdr: Tensor | None, n: int) -> list[Tensor]:
        """One (n, 2 * hidden, 1, 1) a layer."""
        return [part[:, :, None, None] for part in self.label_table(slice_index, cdr, n).chunk(len(self.layers), 1)]

    def forward(self, codes: Tensor, slice_index: Tensor | None = None, cdr: Tensor | None = None) -> Tensor:
        """(B, h, w) -> logits (B, h, w, K), in training (B, n, K) of the foreground; each depends on the tokens before it alone."""
        vertical = horizontal = self.codes(codes, self.features).movedim(-1, 1)
        for i, (layer, label) in enumerate(zip(self.layers, self._labels(slice_index, cdr, len(codes)))):
            vertical, horizontal = layer(vertical, horizontal, label + (0.0 if i else self.places))
        where = self.background.positions()
        inner = self._logits(horizontal.flatten(2).mT[:, where]) + self.position_prior(where, slice_index)
        return inner if self.training else self.background.around(inner)

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.widen(x)), self.features)

    def stepper(self, slice_index: Tensor, cdr: Tensor) -> Step:
        """Whole rows of the vertical stack once a row, one position of the horizontal stack a token: channels last, as products.

        Background positions are passed over in the calls; their share of the horizontal stack is made up for in the next one.
        """
        (h, w), n, layers = self.grid, len(slice_index), self.layers
        kind = {"device": self.device, "dtype": self.widen.weight.dtype}
        names = ("vertical", "horizontal", "down", "out", "up")
        weights = [{name: _as_matrix(conv) for name in names if (conv := getattr(layer, name)) is not None} for layer in layers]
        labels = [label[:, None, :, 0, 0] for label in self._labels(slice_index, cdr, n)]  # (n, 1, 2 * hidden)
        # What each layer reads, with its padding: all rows for the vertical stack, this row for the horizontal one.
        above = [torch.zeros(n, layer.pad + h, w + 2 * layer.pad, self.config.hidden, **kind) for layer in layers]
        left = [torch.zeros(n, layer.pad + w, self.config.hidden, **kind) for layer in layers]
        told: list[Tensor] = []  # (n, w, 2 * hidden) a layer, of this row
        done = iter(range(h * w))  # positions in their order, each taken once

        def begin_row(flat: Tensor, r: int) -> None:
            told.clear()
            if r:  # the row above is complete now
                pad = layers[0].pad
                above[0][:, pad + r - 1, pad : pad + w] = self.codes(flat[:, (r - 1) * w : r * w], self.features)
            for i, (layer, weight) in enumerate(zip(layers, weights)):
                (taps, step, strict), pad = layer.reach, layer.pad
                label = labels[i] + (0.0 if i else self.places[:, r].T)
                rows, columns = range(taps + (not strict)), range(2 * taps + 1)
                read = [above[i][:, r + y * step, x * step : x * step + w] for y in rows for x in columns]
                raw = F.linear(torch.cat(read, -1), *weight["vertical"])
                told.append(F.linear(raw, *weight["down"]) + label)
                if i + 1 < len(layers):
                    seen = gate(raw + label, -1)
                    if layer.up is not None:
                        seen = F.linear(seen, *weight["up"]) + above[i][:, pad + r, pad : pad + w]
                    after = layers[i + 1].pad
                    above[i + 1][:, after + r, after : after + w] = seen

        def advance(flat: Tensor, t: int) -> Tensor:
            r, c = divmod(t, w)
            if c == 0:
                begin_row(flat, r)
            else:
                left[0][:, layers[0].pad + c - 1] = self.codes(flat[:, t - 1], self.features)
            for i, (layer, weight) in enumerate(zip(layers, weights)):
                taps, step, strict = layer.reach
                read = [left[i][:, c + x * step] for x in range(taps + (not strict))]
                seen = F.linear(torch.cat(read, -1), *weight["horizontal"]) + told[i][:, c]
                seen = F.linear(gate(seen), *weight["out"])
                if not strict:
                    seen = seen + left[i][:, layer.pad + c]
                if i + 1 < len(layers):
                    left[i + 1][:, layers[i + 1].pad + c] = seen
            return seen

        def step(flat: Tensor, t: int) -> Tensor:
            for at in done:
                seen = advance(flat, at)
                if at == t:
                    return self._logits(seen) + self.position_prior(slice(t, t + 1), slice_index)[..., 0, :]

        return step


def _as_matrix(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weights as (outputs, rows * columns * inputs), and the bias."""
    return conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias
