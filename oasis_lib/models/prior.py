"""What every prior over token maps has in common: labels that may be left open, and a sampler that draws alike from one seed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from oasis_lib.device import full_precision, together
from oasis_lib.models.position_prior import Background
from oasis_lib.models.sampler import Sampler, gumbel, image_seeds

Label = int | Tensor | None
Step = Callable[[Tensor, int], Tensor]


@runtime_checkable
class Likelihood(Protocol):
    """A prior that knows how probable a token map is."""

    def log_probs(self, codes: Tensor, slice_index: Label = None, cdr: Label = None, batch: int = 64) -> Tensor:
        """(B, h, w): the natural logarithm of each token's probability given the tokens before it."""

    def nll(self, codes: Tensor, slice_index: Label = None, cdr: Label = None, batch: int = 64) -> Tensor:
        """(B,) nats an image."""


@runtime_checkable
class Inpainting(Protocol):
    """A prior that can draw some tokens of a map anew, given the others."""

    def fill(self, codes: Tensor, mask: Tensor, slice_index: Label = None, cdr: Label = None, **options: Any) -> Tensor:
        """`codes` (B, h, w) drawn anew where `mask` is true; all others stay as they are."""


class Prior(nn.Module):
    """A distribution over (h, w) maps of tokens 0 .. entries - 1, given a slice index and a CDR or neither.

    A child gives `sample`. What else it can do is `Likelihood` and `Inpainting`.
    """

    kind = ""

    def __init__(self, config: Any, grid: tuple[int, int], codebook_size: int, slice_indices: int = 0, cdrs: int = 0):
        super().__init__()
        if len(grid) != 2 or min(grid) < 1:
            raise ValueError(f"grid={grid!r} must be (rows, columns), both at least 1")
        self.config, self.grid, self.codebook_size, self.slice_indices, self.cdrs = (
            config,
            tuple(grid),
            codebook_size,
            slice_indices,
            cdrs,
        )

    @property
    def shape(self) -> dict[str, Any]:
        """What a fresh one is built from, beside its config."""
        return {
            "grid": list(self.grid),
            "codebook_size": self.codebook_size,
            "slice_indices": self.slice_indices,
            "cdrs": self.cdrs,
        }

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def passes(self) -> int:
        """How many passes through the network a whole map takes."""
        return 1

    def start(self, codes: Tensor, slice_index: Tensor | None = None, shifted: Tensor | None = None, vectors=None) -> None:
        """Training maps (n, h, w), shown once before the first step: what is plain from counting need not be learned.

        `slice_index` is theirs; `shifted` are more of them, mirrored and moved as far as training does it; `vectors` are the
        codebook (K, D).
        """

    def labels(self, n: int, slice_index: Label = None, cdr: Label = None) -> tuple[Tensor, Tensor]:
        """Both labels as (n,) tensors, -1 where open, after a look at their range."""
        given = (("slice_index", slice_index, self.slice_indices), ("cdr", cdr, self.cdrs))
        return tuple(_label(name, value, count, n).to(self.device) for name, value, count in given)

    def sample(self, n: int, slice_index: Label = None, cdr: Label = None, **options: Any) -> Tensor:
        """(n, h, w) int64. Options: those of `Sampler`, generator, batch, progress."""
        raise NotImplementedError

    def check_codes(self, codes: Tensor) -> Tensor:
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"codes must be whole numbers, not {codes.dtype}")
        if codes.dim() != 3 or tuple(codes.shape[1:]) != self.grid:
            raise ValueError(f"codes must be (B, {self.grid[0]}, {self.grid[1]}), not {tuple(codes.shape)}")
        if not len(codes):
            raise ValueError("codes: the batch is empty")
        if not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(f"codes must lie in 0 .. {self.codebook_size - 1}, not {int(codes.min())} .. {int(codes.max())}")
        return codes.to(self.device, torch.int64)


class Autoregressive(Prior):
    """One token after the other, row by row: `Likelihood` and `Inpainting`. A child gives `forward` (B, h, w) -> (B, h, w, K)."""

    background: Background | None  # positions that are drawn without the network

    @property
    def passes(self) -> int:
        return self.grid[0] * self.grid[1] if self.background is None else len(self.background.positions())

    def stepper(self, slice_index: Tensor, cdr: Tensor) -> Step:
        """A function (codes (n, h * w), position) -> logits (n, K), called for all positions in turn. A child may cache."""
        return lambda flat, t: self(flat.view(-1, *self.grid), slice_index, cdr).flatten(1, 2)[:, t]

    def targets(self, codes: Tensor) -> Tensor:
        """The tokens that the logits of `forward` are of in training; a child may leave some out."""
        return codes

    @torch.no_grad()
    def log_probs(self, codes: Tensor, slice_index: Label = None, cdr: Label = None, batch: int = 64) -> Tensor:
        codes = self.check_codes(codes)
        labels = self.labels(len(codes), slice_index, cdr)
        parts = zip(codes.split(batch), *(label.split(batch) for label in labels))
        with full_precision(self.device):
            return torch.cat([-F.cross_entropy(self(*p).movedim(-1, 1), p[0], reduction="none") for p in parts])

    def nll(self, codes: Tensor, slice_index: Label = None, cdr: Label = None, batch: int = 64) -> Tensor:
        return -self.log_probs(codes, slice_index, cdr, batch).flatten(1).sum(1)

    def sample(self, n: int, slice_index: Label = None, cdr: Label = None, **options: Any) -> Tensor:
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        empty = torch.zeros(n, *self.grid, dtype=torch.int64, device=self.device)
        return self.fill(empty, torch.ones_like(empty, dtype=torch.bool), slice_index, cdr, **options)

    @torch.no_grad()
    def fill(self, codes: Tensor, mask: Tensor, slice_index: Label = None, cdr: Label = None, *,
             generator: torch.Generator | None = None, batch: int = 0, progress: bool | None = None,
             guidance: float = 0.0, **how: Any) -> Tensor:  # fmt: skip
        """`codes` drawn anew where `mask` is true, each given the tokens before it. `how` is what `Sampler` takes.

        `batch` is how many at once, 0 as many as suit the device; no sample depends on it.
        `guidance` moves all logits away from those with the slice index left open (Ho 2022, arXiv:2207.12598).
        """
        sampler, codes, mask = Sampler(**how), self.check_codes(codes), mask.to(self.device).expand(len(codes), *self.grid)
        labels, seeds = self.labels(len(codes), slice_index, cdr), image_seeds(len(codes), generator, self.device)
        wanted, done, batch = mask.flatten(1), [], batch or together(self.device, 64)
        end = int(wanted.any(0).nonzero().max()) + 1 if bool(wanted.any()) else 0
        order = range(end) if self.background is None else [t for t in self.background.positions().tolist() if t < end]
        with exact(self), drawing(-(-len(codes) // batch) * len(order), "token", progress) as bar:
            for part in torch.arange(len(codes), device=self.device).split(batch):
                flat, step = codes[part].flatten(1), self._guided(labels[0][part], labels[1][part], guidance)
                if self.background is not None:
                    self.background.draw(flat, wanted[part], seeds[part], sampler)
                for t in order:
                    drawn = sampler(step(flat, t), gumbel(seeds[part], t, self.codebook_size)[:, 0])
                    flat[:, t] = torch.where(wanted[part, t], drawn, flat[:, t])
                    bar.update()
                done.append(flat.view(-1, *self.grid))
        return torch.cat(done)

    def _guided(self, slice_index: Tensor, cdr: Tensor, guidance: float) -> Step:
        if not guidance >= 0:
            raise ValueError(f"guidance={guidance} must be 0 (none) or more")
        told = self.stepper(slice_index, cdr)
        if not guidance:
            return told
        left_open = self.stepper(torch.full_like(slice_index, -1), cdr)
        return lambda flat, t: (1 + guidance) * told(flat, t) - guidance * left_open(flat, t)


class Labels(nn.Module):
    """Slice index and CDR as one vector; each has one more entry, for "left open"."""

    def __init__(self, slice_indices: int, cdrs: int, width: int):
        super().__init__()
        self.slice_index, self.cdr = nn.Embedding(slice_indices + 1, width), nn.Embedding(cdrs + 1, width)

    def forward(self, slice_index: Tensor | None, cdr: Tensor | None, n: int) -> Tensor:
        """(n,) each, -1 or None where open -> (n, width)."""
        return _look_up(self.slice_index, slice_index, n) + _look_up(self.cdr, cdr, n)


def _look_up(table: nn.Embedding, label: Tensor | None, n: int) -> Tensor:
    open_label = table.num_embeddings - 1
    if label is None:
        return table.weight[open_label].expand(n, -1)
    return table(torch.where(label < 0, open_label, label))


def _label(name: str, value: Label, count: int, n: int) -> Tensor:
    if value is None:
        return torch.full((n,), -1)
    given = torch.as_tensor(value)
    value = given.to(torch.int64).reshape(-1)
    if (given.is_floating_point() and bool((given.reshape(-1) != value).any())) or given.dtype == torch.bool:
        raise ValueError(f"{name} must be whole numbers, not {given.dtype}")
    if len(value) not in (1, n):
        raise ValueError(f"{name} must be one number or {n} of them, not {len(value)}")
    if int(value.max()) >= count or int(value.min()) < -1:
        known = f"0 .. {count - 1}, or -1 where open" if count else "left open: this prior was trained without it"
        raise ValueError(f"{name}={int(value.max()) if int(value.max()) >= count else int(value.min())} must be {known}")
    return value.expand(n).clone()


def drawing(total: int, unit: str, progress: bool | None) -> tqdm:
    """A bar that moves in a terminal, and in a log says now and then how far it is."""
    every = 1.0 if sys.stderr.isatty() else 15.0
    return tqdm(total=total, desc="drawing", unit=unit, disable=not progress, mininterval=every, maxinterval=2 * every)


@contextmanager
def exact(model: Prior) -> Iterator[None]:
    """Eval mode and true float32 while tokens are drawn; all is put back after."""
    was_training = model.training
    model.eval()
    try:
        with full_precision(model.device):
            yield
    finally:
        model.train(was_training)
