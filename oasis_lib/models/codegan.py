"""A GAN over quantised latents: a linear model of training brains by slice index, and a network that refines it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from oasis_lib.config import CodeGANConfig
from oasis_lib.device import together
from oasis_lib.models.position_prior import Background, knots_around
from oasis_lib.models.prior import Label, Labels, Prior, drawing
from oasis_lib.models.sampler import Sampler, image_seeds, uniform

STYLE, FRESH = 128, 4  # width of the style vector; noise channels per position


class LinearStart(nn.Module):
    """Mean and principal components of training subjects' latents, at interpolation knots over the slice index.

    `size` normal numbers are a subject's scores at every slice index.
    """

    def __init__(self, size: int, knots: int, slice_indices: int, channels: int, grid: tuple[int, int]):
        super().__init__()
        self.last, knots = max(slice_indices - 1, 1), max(1, min(knots, slice_indices))
        self.register_buffer("mean", torch.zeros(knots, channels, *grid))
        # In bytes, scaled per component and knot: the largest part of the model.
        self.register_buffer("components", torch.zeros(knots, size, self.mean[0].numel(), dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(knots, size))

    def between(self, slice_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high, part = knots_around(slice_index, len(self.mean), self.last)
        return low, high, part[:, None, None, None]

    @torch.no_grad()
    def fit(self, latents: Tensor, slice_index: Tensor, subject: Tensor) -> None:
        """(n, C, h, w) latents, (n,) slice indices, and (n,) subjects 0, 1, 2 ..."""
        low, high, part = (x.flatten() for x in self.between(slice_index))
        knots, count = len(self.mean), int(subject.max()) + 1
        brains, weights = latents.new_zeros(count * knots, *latents.shape[1:]), latents.new_zeros(count * knots)
        for knot, weight in ((low, 1 - part), (high, part)):  # a subject's knots are means of slices nearby
            weights.index_add_(0, subject * knots + knot, weight)
            brains.index_add_(0, subject * knots + knot, latents * weight[:, None, None, None])
        brains, weights = brains.unflatten(0, (count, knots)), weights.view(count, knots, 1, 1, 1)
        self.mean.copy_(brains.sum(0) / weights.sum(0).clamp(min=1e-6))
        apart = torch.where(weights > 0, brains / weights.clamp(min=1e-6) - self.mean, 0.0).flatten(1)
        products = (apart @ apart.T).cpu().double() / count  # on the CPU: MPS has neither float64 nor eigh
        vectors = torch.linalg.eigh(products)[1].flip(1).to(torch.float32).to(apart.device)
        found = (vectors[:, : self.components.shape[1]].T @ apart / count**0.5).unflatten(1, (knots, -1))
        self.keep(found.transpose(0, 1))

    def keep(self, components: Tensor) -> None:
        """(knots, at most `size`, C * h * w)."""
        scales, count = components.abs().amax(2) / 127, components.shape[1]
        self.scales[:, :count] = scales
        self.components[:, :count] = (components / scales.clamp(min=1e-9)[..., None]).round().to(torch.int8)

    def expected(self, slice_index: Tensor) -> Tensor:
        """(B,) -> (B, C, h, w): the mean at a slice index."""
        low, high, part = self.between(slice_index)
        return torch.lerp(self.mean[low], self.mean[high], part)

    def forward(self, noise: Tensor, slice_index: Tensor) -> Tensor:
        *knots, part = self.between(slice_index)
        scores = [(noise * self.scales[knot])[:, None] for knot in knots]
        below, above = (torch.bmm(x, self.components[knot].to(x.dtype)).float() for x, knot in zip(scores, knots))
        return self.expected(slice_index) + torch.lerp(below, above, part[..., 0]).view(-1, *self.mean.shape[1:])


class Modulation(nn.Module):
    """Fresh noise per position, group normalisation, then scale and shift by the style vector."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(8, channels), channels, affine=False)
        self.style = nn.Linear(STYLE, 2 * channels)
        self.noise = nn.Conv2d(FRESH, channels, 1, bias=False)
        nn.init.normal_(self.noise.weight, std=0.05)
        nn.init.normal_(self.style.weight, std=0.02)
        nn.init.zeros_(self.style.bias)

    def forward(self, x: Tensor, style: Tensor, fresh: Tensor) -> Tensor:
        scale, shift = self.style(style)[:, :, None, None].chunk(2, 1)
        return F.silu(self.norm(x + self.noise(fresh)) * (1 + scale) + shift)


class StyledBlock(nn.Module):
    """x + two modulated 3 x 3 convolutions, the second zero at first."""

    def __init__(self, channels: int):
        super().__init__()
        self.modulations = nn.ModuleList(Modulation(channels) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.convolutions[1].weight)

    def forward(self, x: Tensor, style: Tensor, fresh: Tensor) -> Tensor:
        y = x
        for modulate, convolve in zip(self.modulations, self.convolutions):
            y = convolve(modulate(y, style, fresh))
        return x + y


class Generator(nn.Module):
    """A linear start (B, C, h, w) and noise -> latents (B, C, h, w): a small U-net that works at half the grid."""

    def __init__(self, channels: int, hidden: int, noise: int, slice_indices: int = 0, cdrs: int = 0):
        super().__init__()
        self.labels = Labels(slice_indices, cdrs, 32)
        self.style = nn.Sequential(nn.Linear(noise + 32, STYLE), nn.SiLU(), nn.Linear(STYLE, STYLE), nn.SiLU())
        self.first = nn.Conv2d(4 * channels + 2, hidden, 3, padding=1)
        self.middle = nn.ModuleList(StyledBlock(hidden) for _ in range(3))
        self.down, self.up = nn.Conv2d(hidden, 2 * hidden, 4, 2, 1), nn.Conv2d(2 * hidden, hidden, 1)
        self.deep = nn.ModuleList(StyledBlock(2 * hidden) for _ in range(2))
        self.unfold = nn.Conv2d(hidden, 2 * hidden, 1)
        self.whole = nn.Conv2d(hidden // 2 + channels, hidden // 2, 3, padding=1)
        self.modulation = Modulation(hidden // 2)
        self.last = nn.Conv2d(hidden // 2, channels, 3, padding=1)
        nn.init.normal_(self.last.weight, std=0.02)

    def forward(self, start: Tensor, noise: Tensor, fresh: Tensor, slice_index: Tensor, cdr: Tensor) -> Tensor:
        style = self.style(torch.cat([noise, self.labels(slice_index, cdr, len(noise))], 1))
        start_, fresh = padded(start, 4), padded(fresh, 4)
        x = F.pixel_unshuffle(start_, 2)
        x = self.middle[0](self.first(torch.cat([x, coordinates(x)], 1)), style, fresh[:, :, ::2, ::2])
        y = self.down(x)
        for block in self.deep:
            y = block(y, style, fresh[:, :, ::4, ::4])
        x = x + F.interpolate(self.up(y), scale_factor=2.0)
        for block in self.middle[1:]:
            x = block(x, style, fresh[:, :, ::2, ::2])
        x = self.whole(torch.cat([F.silu(F.pixel_shuffle(self.unfold(x), 2)), start_], 1))
        return start + self.last(self.modulation(x, style, fresh))[:, :, : start.shape[2], : start.shape[3]]


class Discriminator(nn.Module):
    """Maps (B, C, h, w), the mean at their slice index -> logits, above 0 for "real": of two patch sizes, and of all.

    Spectral norm: Miyato 2018, arXiv:1802.05957. Projection of the labels: Miyato 2018, arXiv:1802.05637.
    """

    def __init__(self, channels: int, hidden: int, slice_indices: int = 0, cdrs: int = 0):
        super().__init__()
        widths, inputs = (hidden, 3 * hidden // 2, 2 * hidden), 2 * channels + 2
        pairs = zip((inputs, *widths), widths[:2])
        stages = [(nn.Conv2d(a, b, 4, 2, 1), nn.Conv2d(b, b, 3, padding=1)) for a, b in pairs]
        self.stages = nn.ModuleList(nn.ModuleList(map(spectral_norm, stage)) for stage in stages)
        self.patches = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths[:2])
        self.down = spectral_norm(nn.Conv2d(widths[1], widths[2], 4, 2, 1))
        self.last = spectral_norm(nn.Conv2d(widths[2] + 1, widths[2], 3, padding=1))
        self.score, self.labels = nn.Linear(widths[2], 1), Labels(slice_indices, cdrs, widths[2])

    def forward(self, maps: Tensor, expected: Tensor, slice_index: Tensor, cdr: Tensor) -> Tensor:
        x, logits = padded(torch.cat([maps, maps - expected], 1), 8), []
        x = torch.cat([x, coordinates(x)], 1)
        for stage, patch in zip(self.stages, self.patches):
            for layer in stage:
                x = F.leaky_relu(layer(x), 0.2)
            logits.append(patch(x).flatten(1))
        x = F.leaky_relu(self.down(x), 0.2)
        # How much the maps of a batch differ (Karras 2018, arXiv:1710.10196), against a generator of equal maps.
        spread = x.float().var(0, unbiased=False).add(1e-8).sqrt().mean().expand(len(x), 1, *x.shape[2:])
        pooled = F.leaky_relu(self.last(torch.cat([x, spread.to(x.dtype)], 1)), 0.2).mean((2, 3))
        fits = (F.normalize(self.labels(slice_index, cdr, len(maps)), dim=1) * pooled).sum(1, keepdim=True)
        return torch.cat([part.float() for part in (*logits, self.score(pooled) + fits)], 1)


def padded(x: Tensor, multiple: int) -> Tensor:
    """(B, C, h, w), zero-padded to the right and below."""
    return F.pad(x, (0, -x.shape[3] % multiple, 0, -x.shape[2] % multiple))


def coordinates(x: Tensor) -> Tensor:
    """(B, 2, h, w): where each position lies, -1 .. 1."""
    rows, columns = (torch.linspace(-1, 1, size, device=x.device, dtype=x.dtype) for size in x.shape[2:])
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(len(x), -1, -1, -1)


class CodeGAN(Prior):
    """Draws a map in one pass; a latent becomes the nearest codebook vector. Background is as in training maps."""

    kind = "codegan"

    def __init__(self, config: CodeGANConfig, **shape: Any):
        super().__init__(config, **shape)
        slice_indices, cdrs, codebook_size = self.slice_indices, self.cdrs, self.codebook_size
        self.start_from = LinearStart(config.noise, config.knots, slice_indices, config.code_dim, self.grid)
        self.generator = Generator(config.code_dim, config.hidden, config.noise, slice_indices, cdrs)
        self.discriminator = Discriminator(config.code_dim, config.hidden, slice_indices, cdrs)
        self.background = Background(self.grid, codebook_size)
        vectors = torch.randn(codebook_size, config.code_dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("vectors", vectors)  # the codebook, standardised
        self.register_buffer("accuracy", torch.tensor(0.75))  # of the discriminator, while training
        self.register_buffer("box", torch.tensor([0, self.grid[0], 0, self.grid[1]]))  # foreground rows, columns
        self._sides: tuple = (None, 0, [])

    @torch.no_grad()
    def fit_start(self, vectors: Tensor, codes: Tensor, slice_index: Tensor, subject: Tensor) -> None:
        """What is found without a gradient, from the codebook and training maps (n, h, w) with their labels."""
        share = torch.bincount(codes.flatten(), minlength=len(vectors)).float()[:, None] / codes.numel()
        mean = (share * vectors).sum(0)
        self.vectors.copy_((vectors - mean) / (share * (vectors - mean).square()).sum(0).sqrt().clamp(min=1e-6))
        self.background.start(codes)
        inside = self.background.inside.view(self.grid)
        sides = [(where[0], where[-1] + 1) for where in (inside.any(dim).nonzero()[:, 0] for dim in (1, 0))]
        self.box.copy_(torch.stack([end for side in sides for end in side]))
        self.start_from.fit(F.embedding(codes, self.vectors).movedim(-1, 1), slice_index.clamp(min=0), subject)

    def forward(self, seeds: Tensor) -> Tensor:
        """(n,) seeds -> the discriminator's logits of maps generated at the first slice index."""
        slice_index, cdr = torch.zeros_like(seeds), torch.full_like(seeds, -1)
        latents = self.draw(*self.noise(seeds), slice_index, cdr)
        return self.discriminator(self.snapped(latents), self.expected(slice_index), slice_index, cdr)

    def cut(self, maps: Tensor) -> Tensor:
        """(..., h, w) -> its foreground box."""
        known, version, sides = self._sides
        if known is not self.box or version != self.box._version:  # read once: a GPU would have to wait for each look
            sides = self.box.tolist()
            self._sides = (self.box, self.box._version, sides)
        top, bottom, left, right = sides
        return maps[..., top:bottom, left:right]

    def draw(self, noise: Tensor, fresh: Tensor, *labels: Tensor, through: nn.Module | None = None) -> Tensor:
        """(B, noise) and (B, FRESH, h, w) standard normal numbers, slice index and CDR -> (B, C, box) latents.

        `through` is the generator as a training loop wraps it.
        """
        start = self.cut(self.start_from(noise, labels[0]))
        return (through or self.generator)(start, noise, self.cut(fresh), *labels)

    def expected(self, slice_index: Tensor) -> Tensor:
        return self.cut(self.start_from.expected(slice_index))

    def real_maps(self, codes: Tensor) -> Tensor:
        """(B, h, w) tokens -> (B, C, box) latents."""
        return F.embedding(self.cut(codes), self.vectors).movedim(-1, 1)

    def snapped(self, latents: Tensor) -> Tensor:
        """(B, C, box) latents -> the nearest codebook vectors, with the gradient of the latents."""
        latents = latents.float()
        return latents + (F.embedding(self.tokens(latents.detach()), self.vectors).movedim(-1, 1) - latents).detach()

    def tokens(self, latents: Tensor) -> Tensor:
        """(B, C, box) latents -> (B, box) tokens, background as in training maps."""
        flat = latents.movedim(1, -1).flatten(0, -2)
        nearest = torch.addmm(self.vectors.square().sum(1), flat, self.vectors.T, alpha=-2).argmin(1)
        nearest = nearest.view(len(latents), *latents.shape[2:])
        usual, inside = (self.cut(x.view(self.grid)) for x in (self.background.usual, self.background.inside))
        return torch.where(inside, nearest, usual)

    @torch.no_grad()
    def sample(self, n: int, slice_index: Label = None, cdr: Label = None, **options: Any) -> Tensor:
        """(n, h, w) int64, in one pass. Where the slice index is open, each is equally probable.

        `temperature` scales the noise: below 1, samples are nearer the mean (truncation, Brock 2018, arXiv:1809.11096).
        """
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        how = Sampler(**options)
        if how.top_k is not None or (how.top_p or 1.0) < 1 or how.guidance:
            raise ValueError("a codegan prior has no logits: it takes a temperature, but no top-k, top-p or guidance")
        (slice_index, cdr), seeds = self.labels(n, slice_index, cdr), image_seeds(n, how.generator, self.device)
        drawn = (uniform(seeds, -1)[:, 0, 0] * max(self.slice_indices, 1)).long()
        slice_index = torch.where(slice_index < 0, drawn, slice_index)
        maps = self.background.usual.view(self.grid).repeat(n, 1, 1)
        with drawing(self, n, "map", how.progress) as bar:
            for part in torch.arange(n, device=self.device).split(how.batch or together(self.device, 16)):
                noise, fresh = self.noise(seeds[part])
                latents = self.draw(how.temperature * noise, fresh, slice_index[part], cdr[part])
                self.cut(maps)[part] = self.tokens(latents)
                bar.update(len(part))
        return maps

    def noise(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) seeds -> (n, noise) and (n, FRESH, h, w) standard normal numbers."""
        even = uniform(seeds, -2, self.config.noise + FRESH * self.grid[0] * self.grid[1])[:, 0]
        normal = 2**0.5 * torch.erfinv(2 * even - 1)
        return normal[:, : self.config.noise], normal[:, self.config.noise :].view(-1, FRESH, *self.grid)
