"""What priors over token maps have in common: labels that may be left open, likelihood, and sampling from a seed."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from oasis_lib.config import TokenMaps
from oasis_lib.device import full_precision, sampling_precision, together
from oasis_lib.models.position_prior import Background, PositionPrior
from oasis_lib.models.sampler import Sampler, gumbel, image_seeds
from oasis_lib.models.tokens import check_tokens, feature_count, features_of

Label = int | Tensor | None
Step = Callable[[Tensor, int], Tensor]


@runtime_checkable
class Likelihood(Protocol):
    """A prior that can tell the probability of token maps (B, h, w)."""

    def log_probs(self, codes: Tensor, slice_index: Label = None, cdr: Label = None, batch: int = 64) -> Tensor: ...

    def nll(self, codes: Tensor, slice_index: Label = None, cdr: Label = None, batch: int = 64) -> Tensor: ...


@runtime_checkable
class Inpainting(Protocol):
    """A prior that can draw some tokens of a map, given the others."""

    def fill(self, codes: Tensor, mask: Tensor, slice_index: Label = None, cdr: Label = None, **how: Any) -> Tensor: ...


class Prior(nn.Module, ABC):
    """A distribution over (h, w) maps of tokens 0 .. K - 1, given slice index and CDR, each of which may be left open.

    A child gives `sample`. What else it can do is `Likelihood` and `Inpainting`.
    """

    kind = ""
    passes = 1  # through the network, for a whole map

    def __init__(self, config: Any, grid: tuple[int, int], codebook_size: int, slice_indices: int = 0, cdrs: int = 0):
        super().__init__()
        self.config, self.grid, self.codebook_size = config, tuple(grid), codebook_size
        self.slice_indices, self.cdrs = slice_indices, cdrs

    @property
    def shape(self) -> dict[str, Any]:
        """What a fresh one is built from, beside its config."""
        return {field.name: getattr(self, field.name) for field in fields(TokenMaps)} | {"grid": list(self.grid)}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def start(self, codes: Tensor, slice_index: Label = None, mirrored: Tensor | None = None, vectors=None) -> None:
        """Counting before the first step: training maps (n, h, w), slice indices, mirrored maps, codebook (K, D)."""

    @abstractmethod
    def sample(self, n: int, slice_index: Label = None, cdr: Label = None, **options: Any) -> Tensor:
        """(n, h, w) int64. Options are those of `Sampler`."""

    def labels(self, n: int, slice_index: Label = None, cdr: Label = None) -> tuple[Tensor, Tensor]:
        """Both labels as (n,) tensors, -1 where open."""
        given = (("slice_index", slice_index, self.slice_indices), ("cdr", cdr, self.cdrs))
        return tuple(_label(name, value, count, n).to(self.device) for name, value, count in given)

    def check_codes(self, codes: Tensor) -> Tensor:
        codes = check_tokens(codes, self.codebook_size)
        if tuple(codes.shape[1:]) != self.grid:
            raise ValueError(f"codes must be (B, {self.grid[0]}, {self.grid[1]}), not {tuple(codes.shape)}")
        return codes.to(self.device)


class Autoregressive(Prior):
    """One token after the other, row by row: `Likelihood` and `Inpainting`. A child gives `inner`.

    Background is not modelled by the network; elsewhere its logits are added to those of counting.
    """

    kept = 0  # numbers a position that are kept of a map while it is drawn

    def __init__(self, config: Any, **shape: Any):
        super().__init__(config, **shape)
        self.position_prior = PositionPrior(self.grid, self.codebook_size, self.slice_indices, config.knots)
        self.background = Background(self.grid, self.codebook_size)
        self.register_buffer("features", torch.zeros(self.codebook_size, feature_count(config.code_dim)))

    @abstractmethod
    def inner(self, codes: Tensor, slice_index: Tensor | None, cdr: Tensor | None) -> Tensor:
        """(B, h, w) -> logits (B, n, K) of the n foreground positions; each depends on the tokens before it alone."""

    def forward(self, codes: Tensor, slice_index: Tensor | None = None, cdr: Tensor | None = None) -> Tensor:
        """(B, h, w) -> logits (B, h, w, K), in training (B, n, K) of the foreground."""
        logits = self.inner(codes, slice_index, cdr) + self.position_prior(self.background.positions(), slice_index)
        return logits if self.training else self.background.around(logits)

    def start(self, codes: Tensor, slice_index: Label = None, mirrored: Tensor | None = None, vectors=None) -> None:
        self.background.start(codes if mirrored is None else torch.cat([codes, mirrored]))
        self.position_prior.start(codes, slice_index)
        if vectors is not None:
            self.features.copy_(features_of(vectors))

    @property
    def passes(self) -> int:
        return len(self.background.positions())

    def targets(self, codes: Tensor) -> Tensor:
        """(B, n): the tokens that the logits of training are of."""
        return codes.flatten(1)[:, self.background.positions()]

    def stepper(self, slice_index: Tensor, cdr: Tensor) -> Step:
        """A function (codes (B, h * w), position) -> logits (B, K), called for each foreground position in turn."""
        return lambda flat, t: self(flat.view(-1, *self.grid), slice_index, cdr).flatten(1, 2)[:, t]

    def guided(self, slice_index: Tensor, cdr: Tensor, guidance: float) -> Step:
        """A stepper whose logits move on from those of open labels: samples show their labels more plainly."""
        asked = self.stepper(slice_index, cdr)
        if not guidance:
            return asked
        left_open = self.stepper(torch.full_like(slice_index, -1), torch.full_like(cdr, -1))
        return lambda flat, t: torch.lerp(left_open(flat, t), asked(flat, t), 1 + guidance)

    @torch.no_grad()
    def log_probs(self, codes: Tensor, slice_index: Label = None, cdr: Label = None, batch: int = 64) -> Tensor:
        """(B, h, w): natural logarithm of each token's probability given the tokens before it."""
        codes = self.check_codes(codes)
        labels = self.labels(len(codes), slice_index, cdr)
        parts = zip(codes.split(batch), *(label.split(batch) for label in labels))
        with full_precision(self.device):
            return torch.cat([-F.cross_entropy(self(*p).movedim(-1, 1), p[0], reduction="none") for p in parts])

    def nll(self, codes: Tensor, slice_index: Label = None, cdr: Label = None, batch: int = 64) -> Tensor:
        """(B,) nats per image."""
        return -self.log_probs(codes, slice_index, cdr, batch).flatten(1).sum(1)

    def sample(self, n: int, slice_index: Label = None, cdr: Label = None, **options: Any) -> Tensor:
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        empty = torch.zeros(n, *self.grid, dtype=torch.int64, device=self.device)
        return self.fill(empty, torch.ones_like(empty, dtype=torch.bool), slice_index, cdr, **options)

    @torch.no_grad()
    def fill(self, codes: Tensor, mask: Tensor, slice_index: Label = None, cdr: Label = None, **options: Any) -> Tensor:
        """`codes` (B, h, w) drawn anew where `mask` is true. Options are those of `Sampler`."""
        how, codes = Sampler(**options), self.check_codes(codes)
        wanted = mask.to(self.device).expand(len(codes), *self.grid).flatten(1)
        labels, seeds = self.labels(len(codes), slice_index, cdr), image_seeds(len(codes), how.generator, self.device)
        end = int(wanted.any(0).nonzero().max()) + 1 if bool(wanted.any()) else 0
        order = [t for t in self.background.positions().tolist() if t < end]
        size = 4 * wanted.shape[1] * max(self.kept, self.codebook_size) * (2 if how.guidance else 1)
        parts = torch.arange(len(codes), device=self.device).split(how.batch or together(self.device, 64, size))
        done = []
        with drawing(self, len(parts) * len(order), "token", how.progress) as bar, sampling_precision(self.device):
            for part in parts:
                flat, step = codes[part].flatten(1), self.guided(*(label[part] for label in labels), how.guidance)
                self.background.draw(flat, wanted[part], seeds[part], how)
                for t in order:
                    drawn = how(step(flat, t), gumbel(seeds[part], t, self.codebook_size)[:, 0])
                    flat[:, t] = torch.where(wanted[part, t], drawn, flat[:, t])
                    bar.update()
                done.append(flat.view(-1, *self.grid))
        return torch.cat(done)


class Labels(nn.Module):
    """Slice index and CDR as one vector; each has one more entry, for "left open"."""

    def __init__(self, slice_indices: int, cdrs: int, width: int):
        super().__init__()
        self.slice_index, self.cdr = nn.Embedding(slice_indices + 1, width), nn.Embedding(cdrs + 1, width)

    def forward(self, slice_index: Tensor | None, cdr: Tensor | None, n: int) -> Tensor:
        """(n,) each, -1 or None where open -> (n, width)."""
        return _look_up(self.slice_index, slice_index, n) + _look_up(self.cdr, cdr, n)


def _look_up(table: nn.Embedding, label: Tensor | None, n: int) -> Tensor:
    left_open = table.num_embeddings - 1
    if label is None:
        return table.weight[left_open].expand(n, -1)
    return table(torch.where(label < 0, left_open, label))


def _label(name: str, value: Label, count: int, n: int) -> Tensor:
    value = torch.as_tensor(-1 if value is None else value).reshape(-1)
    if value.dtype == torch.bool or bool((value != value.long()).any()):
        raise ValueError(f"{name} must be whole numbers, not {value.dtype}")
    if len(value) not in (1, n):
        raise ValueError(f"{name} must be one number or {n} of them, not {len(value)}")
    low, high = int(value.min()), int(value.max())
    if low < -1 or high >= count:
        known = f"0 .. {count - 1}, or -1 where open" if count else "left open: this prior was trained without it"
        raise ValueError(f"{name}={high if high >= count else low} must be {known}")
    return value.long().expand(n).clone()


@contextmanager
def drawing(model: Prior, total: int, unit: str, progress: bool | None) -> Iterator[tqdm]:
    """Eval mode and true float32 while tokens are drawn, and a progress bar: rare lines where there is no terminal."""
    was_training, every = model.training, 1.0 if sys.stderr.isatty() else 15.0
    bar = tqdm(total=total, desc="drawing", unit=unit, disable=not progress, mininterval=every, maxinterval=2 * every)
    model.eval()
    try:
        with full_precision(model.device), bar:
            yield bar
    finally:
        model.train(was_training)
