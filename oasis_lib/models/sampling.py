"""What every prior over codes has in common: labels that may be left open, and samplers that draw the same from the same seed."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from oasis_lib.models.choice import Choice, gumbel, image_seeds

Label = int | Tensor | None
Step = Callable[[Tensor, int], Tensor]


class Prior(nn.Module):
    """A distribution over (h, w) maps of codes 0 .. entries - 1, given a level and a rating or neither."""

    kind = ""
    guided = False  # whether `guidance` is an option of `fill`
    shown = 512  # training slices to be shown at the start

    def __init__(self, config: Any, grid: tuple[int, int], entries: int, levels: int = 0, ratings: int = 0):
        super().__init__()
        if len(grid) != 2 or min(grid) < 1:
            raise ValueError(f"grid={grid!r} must be (rows, columns), both at least 1")
        self.config, self.grid, self.entries, self.levels, self.ratings = config, tuple(grid), entries, levels, ratings

    @property
    def shape(self) -> dict[str, Any]:
        """What a fresh one is built from, beside its config."""
        return {"grid": list(self.grid), "entries": self.entries, "levels": self.levels, "ratings": self.ratings}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def passes(self) -> int:
        """How many looks a whole map takes."""
        return self.grid[0] * self.grid[1]

    def start(self, codes: Tensor, level: Tensor | None = None, shifted: Tensor | None = None) -> None:
        """Training maps (n, h, w), shown once before the first step: what is plain from counting need not be learned.

        `level` is theirs; `shifted` are more of them, mirrored and moved as far as training does it.
        """

    def labels(self, n: int, level: Label = None, rating: Label = None) -> tuple[Tensor, Tensor]:
        """Both labels as (n,) tensors, -1 where open, after a look at their range."""
        given = (("level", level, self.levels), ("rating", rating, self.ratings))
        return tuple(_label(name, value, count, n).to(self.device) for name, value, count in given)

    def sample(self, n: int, level: Label = None, rating: Label = None, **options: Any) -> Tensor:
        """(n, h, w) int64. Options: those of `Choice` (temperature, top_k, top_p, min_p), generator, cached, batch, progress."""
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        empty = torch.zeros(n, *self.grid, dtype=torch.int64, device=self.device)
        return self.fill(empty, torch.ones_like(empty, dtype=torch.bool), level, rating, **options)

    def check_codes(self, codes: Tensor) -> Tensor:
        if codes.dim() != 3 or tuple(codes.shape[1:]) != self.grid:
            raise ValueError(f"codes must be (B, {self.grid[0]}, {self.grid[1]}), not {tuple(codes.shape)}")
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < self.entries:
            raise ValueError(f"codes must lie in 0 .. {self.entries - 1}, not {int(codes.min())} .. {int(codes.max())}")
        return codes.to(self.device, torch.int64)


class Autoregressive(Prior):
    """One code after the other, row by row. A child gives `forward` (B, h, w) -> logits (B, h, w, K) and `stepper`."""

    guided = True

    def stepper(self, level: Tensor, rating: Tensor) -> Step:
        """A function (codes (n, h * w), position) -> logits (n, K), called for positions 0, 1, 2 ... in turn."""
        raise TypeError(f"{type(self).__name__} has no cached sampler; use cached=False")

    def targets(self, codes: Tensor) -> Tensor:
        """The codes that the logits of `forward` are of in training; a child may leave some out."""
        return codes

    @torch.no_grad()
    def log_probs(self, codes: Tensor, level: Label = None, rating: Label = None, batch: int = 64) -> Tensor:
        """(B, h, w): the natural logarithm of each code's probability given the codes before it."""
        codes = self.check_codes(codes)
        labels = self.labels(len(codes), level, rating)
        parts = zip(codes.split(batch), *(label.split(batch) for label in labels))
        return torch.cat([-F.cross_entropy(self(*p).movedim(-1, 1).float(), p[0], reduction="none") for p in parts])

    def nll(self, codes: Tensor, level: Label = None, rating: Label = None, batch: int = 64) -> Tensor:
        """(B,) nats an image."""
        return -self.log_probs(codes, level, rating, batch).flatten(1).sum(1)

    @torch.no_grad()
    def fill(self, codes: Tensor, mask: Tensor, level: Label = None, rating: Label = None, *,
             generator: torch.Generator | None = None, cached: bool = True, batch: int = 64, progress: bool | None = None,
             guidance: float = 0.0, **how: Any) -> Tensor:  # fmt: skip
        """`codes` drawn anew where `mask` is true, each given the codes before it; all others stay as they are.

        `cached=False` is the plain loop, one whole pass a code, and draws the same codes from the same seed. `guidance` moves all
        chances away from those with the level left open (Ho 2022, arXiv:2207.12598): what is drawn obeys its level more.
        """
        choose = Choice(**how)
        if not guidance >= 0:
            raise ValueError(f"guidance={guidance} must be 0 (none) or more")
        codes, mask = self.check_codes(codes).clone(), mask.to(self.device).expand(len(codes), *self.grid)
        level, rating = self.labels(len(codes), level, rating)
        seeds = image_seeds(len(codes), generator, self.device)
        wanted = mask.flatten(1)
        end = int(wanted.any(0).nonzero().max()) + 1 if bool(wanted.any()) else 0
        done, referee = [], None
        with full_precision(self), drawing(-(-len(codes) // batch) * end, "code", progress) as bar:
            for part in torch.arange(len(codes), device=self.device).split(batch):
                flat, labels = codes[part].flatten(1), (level[part], rating[part])
                step = self._guided(self.stepper if cached else self._plain_stepper, *labels, guidance)
                for t in range(end):
                    logits = step(flat, t)
                    noise = gumbel(seeds[part], t, self.entries)
                    drawn, doubt = choose(logits, noise)
                    doubt &= wanted[part, t]
                    if bool(doubt.any()):  # too close for single precision: settled the same way by every sampler
                        referee = referee or copy.deepcopy(self).double()
                        again = self._guided(referee._plain_stepper, *(label[doubt] for label in labels), guidance)
                        drawn[doubt] = choose(again(flat[doubt], t), noise[doubt])[0]
                    flat[:, t] = torch.where(wanted[part, t], drawn, flat[:, t])
                    bar.update()
                done.append(flat.view(-1, *self.grid))
        return torch.cat(done)

    @staticmethod
    def _guided(stepper: Callable[[Tensor, Tensor], Step], level: Tensor, rating: Tensor, guidance: float) -> Step:
        told = stepper(level, rating)
        if not guidance:
            return told
        left_open = stepper(torch.full_like(level, -1), rating)
        return lambda flat, t: (1 + guidance) * told(flat, t) - guidance * left_open(flat, t)

    def _plain_stepper(self, level: Tensor, rating: Tensor) -> Step:
        return lambda flat, t: self(flat.view(-1, *self.grid), level, rating).flatten(1, 2)[:, t]


class Labels(nn.Module):
    """Level and rating as one vector; each has one more entry, for "left open"."""

    def __init__(self, levels: int, ratings: int, width: int):
        super().__init__()
        self.level, self.rating = nn.Embedding(levels + 1, width), nn.Embedding(ratings + 1, width)

    def forward(self, level: Tensor | None, rating: Tensor | None, n: int) -> Tensor:
        """(n,) each, -1 or None where open -> (n, width)."""
        return _look_up(self.level, level, n) + _look_up(self.rating, rating, n)


def _look_up(table: nn.Embedding, label: Tensor | None, n: int) -> Tensor:
    open_label = table.num_embeddings - 1
    if label is None:
        return table.weight[open_label].expand(n, -1)
    return table(torch.where(label < 0, open_label, label))


def _label(name: str, value: Label, count: int, n: int) -> Tensor:
    if value is None:
        return torch.full((n,), -1)
    value = torch.as_tensor(value).to(torch.int64).reshape(-1)
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
def full_precision(model: nn.Module) -> Iterator[None]:
    """Eval mode and true float32 (no TF32) while codes are drawn; all is put back after."""
    was_training, matmul, convolution = model.training, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    model.eval()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        model.train(was_training)
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
