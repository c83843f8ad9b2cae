"""A gated PixelCNN (van den Oord 2016, arXiv:1606.05328) whose receptive field covers the whole map."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oasis_lib.config import PixelCNNConfig
from oasis_lib.device import computed_in
from oasis_lib.models.prior import Autoregressive, Labels, Step
from oasis_lib.models.tokens import TokenEmbedding, TokenLogits


class Reach(NamedTuple):
    """How far a layer looks: `taps` steps of `dilation` positions; a strict layer leaves the position itself out."""

    taps: int
    dilation: int = 1
    strict: bool = False


def plan(layers: int, grid: tuple[int, int]) -> tuple[Reach, ...]:
    """A strict 5 x 5 layer, then dilations 1, 2, 4 ... over and over, as far as is needed to see the whole map."""
    far, first = max(grid) - 1, Reach(2, strict=True)
    for cycle in range(1, layers):
        steps = [2 ** (i % cycle) for i in range(layers - 1)]
        if first.taps + sum(steps) >= far:
            return (first, *(Reach(1, step) for step in steps))
    needed = far.bit_length() + 1
    raise ValueError(f"pixelcnn.layers={layers} can't see all of a {grid[0]} x {grid[1]} map; {needed} layers can")


class Layer(nn.Module):
    """The vertical stack looks at rows above; the horizontal one to the left, and at the vertical one's output."""

    def __init__(self, hidden: int, reach: Reach, dropout: float):
        super().__init__()
        taps, dilation, strict = reach
        self.reach, self.dropout, self.pad = reach, dropout, taps * dilation
        self.vertical = nn.Conv2d(hidden, 2 * hidden, (taps + (not strict), 2 * taps + 1), dilation=dilation)
        self.horizontal = nn.Conv2d(hidden, 2 * hidden, (1, taps + (not strict)), dilation=dilation)
        self.down, self.out = nn.Conv2d(2 * hidden, 2 * hidden, 1), nn.Conv2d(hidden, hidden, 1)
        self.up = None if strict else nn.Conv2d(hidden, hidden, 1)

    def forward(self, vertical: Tensor, horizontal: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        strict, pad = int(self.reach.strict), self.pad  # a strict layer has no tap at its own row or column
        raw = self.vertical(F.pad(vertical, (pad, pad, pad, -strict)))
        passed = self.down(raw) + label
        seen = F.dropout(gate(raw + label), self.dropout, self.training)
        if self.up is not None:
            seen = self.up(seen) + vertical
        left = gate(self.horizontal(F.pad(horizontal, (pad, -strict, 0, 0))) + passed)
        left = self.out(F.dropout(left, self.dropout, self.training))
        return seen, left if strict else left + horizontal


def gate(x: Tensor, dim: int = 1) -> Tensor:
    value, opening = x.chunk(2, dim)
    return value.tanh() * opening.sigmoid()


class GatedPixelCNN(Autoregressive):
    kind = "pixelcnn"

    def __init__(self, config: PixelCNNConfig, **shape: Any):
        super().__init__(config, **shape)
        hidden, self.reaches = config.hidden, plan(config.layers, self.grid)
        self.kept = 2 * config.layers * hidden
        self.codes = TokenEmbedding(self.codebook_size, 0, config.code_dim, hidden)
        self.places = nn.Parameter(torch.zeros(2 * hidden, *self.grid))  # position, for the first layer
        self.label_table = Labels(self.slice_indices, self.cdrs, 2 * hidden * len(self.reaches))
        self.layers = nn.ModuleList(Layer(hidden, reach, config.dropout) for reach in self.reaches)
        self.widen = nn.Linear(hidden, 4 * hidden)
        self.head = TokenLogits(4 * hidden, self.codebook_size, config.code_dim)

    @property
    def receptive_field(self) -> int:
        """Rows up, and columns to either side."""
        return sum(reach.taps * reach.dilation for reach in self.reaches)

    def label_parts(self, slice_index: Tensor | None, cdr: Tensor | None, n: int) -> list[Tensor]:
        """One (n, 2 * hidden, 1, 1) per layer."""
        return [part[:, :, None, None] for part in self.label_table(slice_index, cdr, n).chunk(len(self.layers), 1)]

    def logits(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.widen(x)), self.features)

    def inner(self, codes: Tensor, slice_index: Tensor | None, cdr: Tensor | None) -> Tensor:
        vertical = horizontal = self.codes(codes, self.features).movedim(-1, 1)
        for i, (layer, label) in enumerate(zip(self.layers, self.label_parts(slice_index, cdr, len(codes)))):
            vertical, horizontal = layer(vertical, horizontal, label + (0.0 if i else self.places))
        return self.logits(horizontal.flatten(2).mT[:, self.background.positions()])

    def stepper(self, slice_index: Tensor, cdr: Tensor) -> Step:
        """Background positions are passed over in the calls; the horizontal stack catches up in the next one."""
        cache, positions = Cache(self, slice_index, cdr), iter(range(self.grid[0] * self.grid[1]))

        def step(flat: Tensor, t: int) -> Tensor:
            for at in positions:
                seen = cache.advance(flat, at)
                if at == t:
                    return self.logits(seen) + self.position_prior(slice(t, t + 1), slice_index)[..., 0, :]

        return step


class Cache:
    """What both stacks computed so far, channels last: each vertical row, and each horizontal position, only once."""

    def __init__(self, prior: GatedPixelCNN, slice_index: Tensor, cdr: Tensor):
        n, (h, w), self.prior, self.layers = len(slice_index), prior.grid, prior, prior.layers
        names = ("vertical", "horizontal", "down", "out", "up")
        self.weights = [{name: _as_matrix(getattr(layer, name)) for name in names} for layer in self.layers]
        self.labels = [label[:, None, :, 0, 0] for label in prior.label_parts(slice_index, cdr, n)]
        # What each layer reads, with its padding: all rows for the vertical stack, this row for the horizontal one.
        zeros, hidden = prior.widen.weight.new_zeros, prior.config.hidden
        self.above = [zeros(n, layer.pad + h, w + 2 * layer.pad, hidden) for layer in self.layers]
        self.left = [zeros(n, layer.pad + w, hidden) for layer in self.layers]
        self.passed: list[Tensor] = []  # (n, w, 2 * hidden) per layer: this row, for the horizontal stack

    def embedded(self, tokens: Tensor) -> Tensor:
        return self.prior.codes(tokens, self.prior.features)

    def begin_row(self, flat: Tensor, r: int) -> None:
        """The vertical stack for row `r`, once the row above is complete."""
        above, w, self.passed = self.above, self.prior.grid[1], []
        if r:
            pad = self.layers[0].pad
            above[0][:, pad + r - 1, pad : pad + w] = self.embedded(flat[:, (r - 1) * w : r * w])
        for i, (layer, weight) in enumerate(zip(self.layers, self.weights)):
            (taps, step, strict), pad = layer.reach, layer.pad
            label = self.labels[i] + (0.0 if i else self.prior.places[:, r].T)
            rows, columns = range(taps + (not strict)), range(2 * taps + 1)
            read = [above[i][:, r + y * step, x * step : x * step + w] for y in rows for x in columns]
            raw = F.linear(torch.cat(read, -1), *weight["vertical"])
            self.passed.append(F.linear(raw, *weight["down"]) + label)
            if i + 1 < len(self.layers):
                seen = gate(raw + label, -1)
                if layer.up is not None:
                    seen = F.linear(seen, *weight["up"]) + above[i][:, pad + r, pad : pad + w]
                after = self.layers[i + 1].pad
                above[i + 1][:, after + r, after : after + w] = seen

    def advance(self, flat: Tensor, t: int) -> Tensor:
        """The horizontal stack at position `t`: (n, hidden)."""
        left, (r, c) = self.left, divmod(t, self.prior.grid[1])
        if c == 0:
            self.begin_row(flat, r)
        else:
            left[0][:, self.layers[0].pad + c - 1] = self.embedded(flat[:, t - 1])
        for i, (layer, weight) in enumerate(zip(self.layers, self.weights)):
            taps, step, strict = layer.reach
            read = [left[i][:, c + x * step] for x in range(taps + (not strict))]
            seen = F.linear(torch.cat(read, -1), *weight["horizontal"]) + self.passed[i][:, c]
            seen = F.linear(gate(seen), *weight["out"])
            if not strict:
                seen = seen + left[i][:, layer.pad + c]
            if i + 1 < len(self.layers):
                left[i + 1][:, self.layers[i + 1].pad + c] = seen
        return seen


def _as_matrix(conv: nn.Conv2d | None) -> tuple[Tensor, Tensor] | None:
    """Weights as (outputs, rows * columns * inputs), and the bias."""
    if conv is None:
        return None
    return conv.weight.permute(0, 2, 3, 1).flatten(1).to(computed_in(conv.weight.device)), conv.bias
