"""The seeds' DCGAN over codes, made to work: three ways from a generator's output to a map of codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from oasis_lib.config import CodeGANConfig
from oasis_lib.models.prior import Label, Labels, Prior, drawing, exact
from oasis_lib.models.sampler import Sampler, gumbel, image_seeds, uniform


def halvings(grid: tuple[int, int]) -> int:
    """How often the shorter side is halved until it is about four."""
    return max(0, (min(grid) // 4).bit_length() - 1)


class Generator(nn.Module):
    """Noise and labels -> (B, outputs, h, w), doubling the side by transposed convolutions.

    Group normalisation, not batch normalisation: an image must not depend on those drawn beside it, nor the averaged weights on
    statistics of others.
    """

    def __init__(self, noise: int, hidden: int, outputs: int, grid: tuple[int, int], levels: int = 0, ratings: int = 0):
        super().__init__()
        self.grid, ups = grid, halvings(grid)
        self.base = tuple(-(-side // 2**ups) for side in grid)
        width = hidden * 2**ups
        self.labels, self.first = Labels(levels, ratings, noise), nn.Linear(2 * noise, width * self.base[0] * self.base[1])
        layers: list[nn.Module] = [nn.GroupNorm(8, width), nn.ReLU()]
        for _ in range(ups):
            layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.GroupNorm(8, width // 2), nn.ReLU()]
            width //= 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.Conv2d(2 * width, outputs, 1))

    def forward(self, noise: Tensor, level: Tensor | None = None, rating: Tensor | None = None) -> Tensor:
        start = self.first(torch.cat([noise, self.labels(level, rating, len(noise))], 1)).unflatten(1, (-1, *self.base))
        return self.layers(start)[:, :, : self.grid[0], : self.grid[1]]


class Discriminator(nn.Module):
    """(B, inputs, h, w) -> (B,) logits, above zero for "real"; how much images of a batch differ is one more thing it sees."""

    def __init__(self, inputs: int, hidden: int, grid: tuple[int, int], levels: int = 0, ratings: int = 0, spectral: bool = True):
        super().__init__()
        bound = spectral_norm if spectral else lambda layer: layer
        layers, width = [bound(nn.Conv2d(inputs, hidden, 3, padding=1)), nn.LeakyReLU(0.2)], hidden
        for _ in range(halvings(grid)):
            layers += [bound(nn.Conv2d(width, 2 * width, 4, 2, 1)), nn.LeakyReLU(0.2)]
            width *= 2
        self.layers = nn.Sequential(*layers)
        self.last = bound(nn.Conv2d(width + 1, width, 3, padding=1))
        self.score, self.labels = bound(nn.Linear(width, 1)), Labels(levels, ratings, width)

    def forward(self, maps: Tensor, level: Tensor | None = None, rating: Tensor | None = None) -> Tensor:
        features = self.layers(maps)
        spread = features.var(0, unbiased=False).add(1e-8).sqrt().mean().expand(len(maps), 1, *features.shape[2:])
        pooled = F.leaky_relu(self.last(torch.cat([features, spread], 1)), 0.2).mean((2, 3))
        # Projection (Miyato 2018): does it look real, and does it look like this label?
        fits = (F.normalize(self.labels(level, rating, len(maps)), dim=1) * pooled).sum(1)
        return self.score(pooled)[:, 0] + fits


class CodeGAN(Prior):
    """`config.codes`: "one-hot" (a logit an entry, Gumbel noise, straight-through), "latent" (vectors snapped to the codebook) or
    "index" (one number a code, cut in bins)."""

    kind = "codegan"

    def __init__(self, config: CodeGANConfig, grid: tuple[int, int], entries: int, levels: int = 0, ratings: int = 0):
        super().__init__(config, grid, entries, levels, ratings)
        outputs = {"one-hot": entries, "latent": config.code_dim, "index": 1}[config.codes]
        inputs = 1 if config.codes == "index" else config.code_dim
        self.generator = Generator(config.noise, config.hidden, outputs, self.grid, levels, ratings)
        self.discriminator = Discriminator(inputs, config.hidden, self.grid, levels, ratings, config.stabiliser == "spectral")
        # What a code looks like to the discriminator: its codebook entry, scaled; training puts them in.
        self.register_buffer("vectors", torch.randn(entries, config.code_dim, generator=torch.Generator().manual_seed(0)))
        self.register_buffer("frequencies", torch.full((entries,), 1 / entries))  # of the codes, among training people
        # While training: the discriminator's share of right answers, and how much noise blurs what it sees.
        self.register_buffer("accuracy", torch.tensor(0.5))
        self.register_buffer("blur", torch.tensor(0.0))
        edges = torch.linspace(-1, 1, entries + 1)
        self.register_buffer("real_edges", edges)  # of "index": the interval of [-1, 1] that stands for each code
        self.register_buffer("edges", edges.clone())  # and where a generated number is cut; differs for learned bins

    def noise(self, seeds: Tensor) -> Tensor:
        """(n,) seeds -> (n, noise) standard normal numbers."""
        return 2**0.5 * torch.erfinv(2 * uniform(seeds, -1, self.config.noise)[:, 0] - 1)

    def maps(self, raw: Tensor) -> Tensor:
        """What the generator gives -> what the discriminator sees, with a gradient through every snap."""
        raw = raw.float()
        if self.config.codes == "index":
            return raw.tanh()
        if self.config.codes == "one-hot":
            # As F.gumbel_softmax does it, without its exponential numbers (a fifth of a step on a CPU) and its one-hot map.
            raw = raw.movedim(1, -1)
            noisy = raw - torch.log(-torch.log(torch.rand_like(raw).clamp(1e-20, 1 - 1e-7)))
            chosen = F.embedding(noisy.argmax(-1), self.vectors)
            if torch.is_grad_enabled():  # one code forwards, the mean of all backwards
                mean = noisy.softmax(-1) @ self.vectors
                chosen = mean + (chosen - mean).detach()
            return chosen.movedim(-1, 1)
        return raw + (self.real_maps(self.nearest(raw)) - raw).detach()

    def real_maps(self, codes: Tensor) -> Tensor:
        """(B, h, w) codes -> what the discriminator sees of real ones."""
        if self.config.codes == "index":  # anywhere in the code's interval, or else steps alone would give real maps away
            low, high = self.real_edges[codes], self.real_edges[codes + 1]
            return (low + (high - low) * torch.rand_like(low))[:, None]
        return F.embedding(codes, self.vectors).movedim(-1, 1)

    def nearest(self, latents: Tensor) -> Tensor:
        flat = latents.movedim(1, -1).flatten(0, -2)
        offset = self.vectors.square().sum(1)
        return torch.addmm(offset, flat, -2 * self.vectors.T).argmin(1).view(len(latents), *self.grid)

    @torch.no_grad()
    def sample(self, n: int, level: Label = None, rating: Label = None, *, generator: torch.Generator | None = None,
               batch: int = 16, progress: bool | None = None, **how: Any) -> Tensor:  # fmt: skip
        """(n, h, w) int64, in one pass. `how` (see `Sampler`) acts on one-hot codes; the other ways leave nothing to draw."""
        choose = Sampler(**how)
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        labels, seeds = self.labels(n, level, rating), image_seeds(n, generator, self.device)
        drawn = []
        with exact(self), drawing(n, "map", progress) as bar:
            for own, *label in zip(seeds.split(batch), *(label.split(batch) for label in labels)):
                raw = self.generator(self.noise(own), *label)
                drawn.append(self._codes(raw, own, choose))
                bar.update(len(own))
        return torch.cat(drawn)

    def _codes(self, raw: Tensor, seeds: Tensor, choose: Sampler) -> Tensor:
        if self.config.codes == "index":
            inner = self.edges[1:-1].contiguous()
            return torch.bucketize(raw.tanh()[:, 0].contiguous(), inner, right=True)
        if self.config.codes == "latent":
            return self.nearest(raw)
        places = torch.arange(self.grid[0] * self.grid[1], device=seeds.device)
        return choose(raw.flatten(2).mT, gumbel(seeds, places, self.entries)).view(len(raw), *self.grid)
