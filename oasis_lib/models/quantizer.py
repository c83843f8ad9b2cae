"""The codebook: nearest entry, a gradient that passes through, and the two ways an entry can move."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.distributed import all_gather, all_reduce, get_rank, get_world_size, is_available, is_initialized
from torch.nn import functional as F

from oasis_lib.config import VQVAEConfig
from oasis_lib.device import upload

CHUNK = 8192  # vectors compared at a time: the distances stay in the cache


class VectorQuantizer(nn.Module):
    """`forward` is pure: the codebook moves only in `update`, which the training loop calls after the optimiser's step.

    EMA update: van den Oord 2017, appendix A.1.
    """

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        entries, dim = config.codebook_size, config.code_dim
        codebook = torch.empty(entries, dim).uniform_(-1 / entries, 1 / entries)
        if config.codebook == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        # The codebook is sums / counts, decayed; all three are reset together when an entry is revived.
        self.register_buffer("counts", torch.ones(entries))
        self.register_buffer("sums", codebook.detach().clone())
        self.register_buffer("started", torch.tensor(0.0))  # 1 once k-means has placed the entries

    def nearest(self, flat: Tensor) -> Tensor:
        """(N, D) -> (N,) int64. Full precision: half of it picks other entries."""
        with torch.no_grad(), torch.autocast(flat.device.type, enabled=False):
            entries = self.codebook.float()
            offset, doubled = entries.square().sum(1), -2 * entries.T
            return torch.cat([least(torch.addmm(offset, part, doubled)) for part in flat.float().split(CHUNK)])

    def embed(self, codes: Tensor) -> Tensor:
        """(B, h, w) -> (B, D, h, w)."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D, h, w) -> quantized (gradients reach the latents), codes (B, h, w), the loss terms that bind both."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            codes = self.nearest(flatten(latents)).view(latents.shape[0], *latents.shape[2:])
            entries = self.embed(codes)
            loss = self.config.commitment * F.mse_loss(latents, entries.detach())
            if self.config.codebook == "gradient":
                loss = loss + F.mse_loss(entries, latents.detach())
            return straight_through(latents, entries.detach()), codes, loss

    @torch.no_grad()
    def start(self, latents: Tensor, rounds: int = 10, generator: Generator | None = None) -> None:
        """k-means on the latents of the (global) batch: no entry starts where no vector is."""
        if world() > 1:
            shares = [torch.empty_like(latents) for _ in range(world())]
            all_gather(shares, latents.contiguous())
            latents = torch.stack(shares, 1).flatten(0, 1)  # image i of the batch is with process i % world
        flat = flatten(latents.float())
        flat = flat[torch.randperm(len(flat), generator=generator)[: 64 * self.config.codebook_size].to(flat.device)]
        self.codebook.copy_(flat[torch.arange(self.config.codebook_size, device=flat.device) % len(flat)])
        for _ in range(rounds):
            counts, sums = self._tally(flat, self.nearest(flat))
            live = counts > 0
            self.codebook[live] = sums[live] / counts[live, None]
        self.counts.fill_(1.0)
        self.sums.copy_(self.codebook)
        self.started.fill_(1.0)

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor, *, revive=True, generator: Generator | None = None) -> None:
        """One step of the moving averages (over all ranks), then revival of entries that went out of use."""
        flat = flatten(latents.float())
        counts, sums = self._tally(flat, codes.flatten())
        if world() > 1:
            all_reduce(counts)
            all_reduce(sums)
        self.counts.lerp_(counts, 1 - self.config.decay)
        self.sums.lerp_(sums, 1 - self.config.decay)
        if self.config.codebook == "ema":
            # An entry that nothing chose keeps its place exactly: sums and counts decay alike.
            self.codebook.copy_(self.sums / self.counts.clamp(min=1e-5)[:, None])
        if self.config.dead_code_threshold and revive:
            self._revive(flat, latents[0, 0].numel(), generator)

    def _revive(self, flat: Tensor, places: int, generator: Generator | None) -> None:
        mean = self.counts.mean()
        dead = self.counts < self.config.dead_code_threshold * mean  # no `if dead.any()`: that would wait for the GPU
        picks = torch.randint(len(flat) * world(), (self.config.codebook_size,), generator=generator)
        picks = upload(picks, flat.device)
        image, place = picks // places, picks % places
        candidates = flat[image // world() * places + place]
        if world() > 1:  # each process gives the picks that are its own
            candidates = torch.where((image % world() == get_rank())[:, None], candidates, 0.0)
            all_reduce(candidates)
        self.codebook.copy_(torch.where(dead[:, None], candidates, self.codebook))
        self.counts.copy_(torch.where(dead, mean, self.counts))
        self.sums.copy_(torch.where(dead[:, None], candidates * mean, self.sums))

    def _tally(self, flat: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """How many vectors chose each entry, and their sum. No `bincount`: a GPU would have to wait for its range."""
        counts = torch.zeros_like(self.counts).index_add_(0, codes, flat.new_ones(()).expand(len(codes)))
        return counts, torch.zeros_like(self.sums).index_add_(0, codes, flat)


def world() -> int:
    """How many processes train together."""
    return get_world_size() if is_available() and is_initialized() else 1


def least(distances: Tensor) -> Tensor:
    """(N, K) -> (N,) where each row is smallest. On a CPU by NumPy, which takes a fifth of the time."""
    return torch.from_numpy(distances.numpy().argmin(1)) if distances.device.type == "cpu" else distances.argmin(1)


def flatten(latents: Tensor) -> Tensor:
    """(B, D, h, w) -> (B * h * w, D)."""
    return latents.movedim(1, -1).flatten(0, -2)


def straight_through(latents: Tensor, entries: Tensor) -> Tensor:
    """The entry's value, the latent's gradient."""
    return latents + (entries - latents).detach()


def perplexity(counts: Tensor) -> float:
    """exp of the entropy of how often each entry is used: 1 for a single entry, K for all alike."""
    counts = counts.cpu().double()  # MPS has no float64
    p = counts / counts.sum().clamp(min=1)
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))
