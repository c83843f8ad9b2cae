"""The earlier projects' DCGANs over token maps, with what was tried to make them work: three ways from a generator to tokens.

Importing this module adds the kind "dcgan" to the library's: `models.build`, `models.load` and `train_prior` take it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from oasis_lib.cohort import Cohort
from oasis_lib.config import MODEL_CONFIGS, TrainingConfig
from oasis_lib.metrics import apart, in_regions
from oasis_lib.models import KINDS, VQVAE
from oasis_lib.models.prior import Label, Labels, Prior, drawing
from oasis_lib.models.sampler import Sampler, gumbel, image_seeds, uniform
from oasis_lib.training.codes import codes_of
from oasis_lib.training.data import Batch, linspace_rows, seeded
from oasis_lib.training.prior import TASKS
from oasis_lib.training.tasks import PriorTask

WANTED = 0.75  # of the discriminator's answers may be right; above, what it sees is blurred with noise
BLUR_STEP = 0.01
R1_EVERY, R1 = 8, 1.0


@dataclass(frozen=True)
class DCGANConfig:
    codes: Literal["one-hot", "latent", "index"] = "one-hot"  # how the generator reaches tokens
    bins: Literal["uniform", "quantile", "learned"] = "quantile"  # for "index"
    noise: int = 128
    hidden: int = 64
    stabiliser: Literal["spectral", "r1", "none"] = "spectral"
    smoothing: float = 0.1  # real labels are 1 - this, false ones this
    discriminator_lr_scale: float = 2.0  # the discriminator learns this many times as fast
    code_dim: int = 8  # of the VQ-VAE's codebook; training fills it in


# Adam (.5, .999) at 2e-4, as both projects have it
TRAINING = TrainingConfig(lr=2e-4, beta1=0.5, beta2=0.999, weight_decay=0.0, ema=0.99)


def halvings(grid: tuple[int, int]) -> int:
    """How often the shorter side is halved until it is about four."""
    return max(0, (min(grid) // 4).bit_length() - 1)


class Generator(nn.Module):
    """Noise and labels -> (B, outputs, h, w), doubling the side by transposed convolutions.

    Group normalisation, not batch normalisation: an image must not depend on those drawn beside it, nor the averaged weights on
    statistics of others.
    """

    def __init__(
        self, noise: int, hidden: int, outputs: int, grid: tuple[int, int], slice_indices: int = 0, cdrs: int = 0
    ):
        super().__init__()
        self.grid, ups = grid, halvings(grid)
        self.base = tuple(-(-side // 2**ups) for side in grid)
        width = hidden * 2**ups
        self.labels, self.first = (
            Labels(slice_indices, cdrs, noise),
            nn.Linear(2 * noise, width * self.base[0] * self.base[1]),
        )
        layers: list[nn.Module] = [nn.GroupNorm(8, width), nn.ReLU()]
        for _ in range(ups):
            layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.GroupNorm(8, width // 2), nn.ReLU()]
            width //= 2
        self.layers = nn.Sequential(
            *layers, nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.Conv2d(2 * width, outputs, 1)
        )

    def forward(self, noise: Tensor, slice_index: Tensor | None = None, cdr: Tensor | None = None) -> Tensor:
        start = self.first(torch.cat([noise, self.labels(slice_index, cdr, len(noise))], 1)).unflatten(
            1, (-1, *self.base)
        )
        return self.layers(start)[:, :, : self.grid[0], : self.grid[1]]


class Discriminator(nn.Module):
    """(B, inputs, h, w) -> (B,) logits, above zero for "real"; how much images of a batch differ is one more thing it sees."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        grid: tuple[int, int],
        slice_indices: int = 0,
        cdrs: int = 0,
        spectral: bool = True,
    ):
        super().__init__()
        bound = spectral_norm if spectral else lambda layer: layer
        layers, width = [bound(nn.Conv2d(inputs, hidden, 3, padding=1)), nn.LeakyReLU(0.2)], hidden
        for _ in range(halvings(grid)):
            layers += [bound(nn.Conv2d(width, 2 * width, 4, 2, 1)), nn.LeakyReLU(0.2)]
            width *= 2
        self.layers = nn.Sequential(*layers)
        self.last = bound(nn.Conv2d(width + 1, width, 3, padding=1))
        self.score, self.labels = bound(nn.Linear(width, 1)), Labels(slice_indices, cdrs, width)

    def forward(self, maps: Tensor, slice_index: Tensor | None = None, cdr: Tensor | None = None) -> Tensor:
        features = self.layers(maps)
        spread = features.var(0, unbiased=False).add(1e-8).sqrt().mean().expand(len(maps), 1, *features.shape[2:])
        pooled = F.leaky_relu(self.last(torch.cat([features, spread], 1)), 0.2).mean((2, 3))
        # Projection (Miyato 2018): does it look real, and does it look like this label?
        fits = (F.normalize(self.labels(slice_index, cdr, len(maps)), dim=1) * pooled).sum(1)
        return self.score(pooled)[:, 0] + fits


class DCGAN(Prior):
    """`config.codes`: "one-hot" (a logit an entry, Gumbel noise, straight-through), "latent" (vectors snapped to the codebook) or
    "index" (one number a code, cut in bins)."""

    kind = "dcgan"

    def __init__(
        self, config: DCGANConfig, grid: tuple[int, int], codebook_size: int, slice_indices: int = 0, cdrs: int = 0
    ):
        super().__init__(config, grid, codebook_size, slice_indices, cdrs)
        outputs = {"one-hot": codebook_size, "latent": config.code_dim, "index": 1}[config.codes]
        inputs = 1 if config.codes == "index" else config.code_dim
        self.generator = Generator(config.noise, config.hidden, outputs, self.grid, slice_indices, cdrs)
        self.discriminator = Discriminator(
            inputs, config.hidden, self.grid, slice_indices, cdrs, config.stabiliser == "spectral"
        )
        # What a code looks like to the discriminator: its codebook entry, scaled; training puts them in.
        self.register_buffer(
            "vectors", torch.randn(codebook_size, config.code_dim, generator=torch.Generator().manual_seed(0))
        )
        self.register_buffer(
            "frequencies", torch.full((codebook_size,), 1 / codebook_size)
        )  # of the codes, among training subjects
        # While training: the discriminator's share of right answers, and how much noise blurs what it sees.
        self.register_buffer("accuracy", torch.tensor(0.5))
        self.register_buffer("blur", torch.tensor(0.0))
        edges = torch.linspace(-1, 1, codebook_size + 1)
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
            # As F.gumbel_softmax does it, without its exponential numbers (a fifth of a step on a CPU) and its one-hot
            # map.
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
        if (
            self.config.codes == "index"
        ):  # anywhere in the code's interval, or else steps alone would give real maps away
            low, high = self.real_edges[codes], self.real_edges[codes + 1]
            return (low + (high - low) * torch.rand_like(low))[:, None]
        return F.embedding(codes, self.vectors).movedim(-1, 1)

    def nearest(self, latents: Tensor) -> Tensor:
        flat = latents.movedim(1, -1).flatten(0, -2)
        offset = self.vectors.square().sum(1)
        return torch.addmm(offset, flat, -2 * self.vectors.T).argmin(1).view(len(latents), *self.grid)

    @torch.no_grad()
    def sample(self, n: int, slice_index: Label = None, cdr: Label = None, **options: Any) -> Tensor:
        """(n, h, w) int64, in one pass.

        Temperature, top-k and top-p act on one-hot codes; the other ways leave nothing to draw.
        """
        how = Sampler(**options)
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        labels, seeds, batch = (
            self.labels(n, slice_index, cdr),
            image_seeds(n, how.generator, self.device),
            how.batch or 16,
        )
        drawn = []
        with drawing(self, n, "map", how.progress) as bar:
            for own, *label in zip(seeds.split(batch), *(label.split(batch) for label in labels)):
                raw = self.generator(self.noise(own), *label)
                drawn.append(self._codes(raw, own, how))
                bar.update(len(own))
        return torch.cat(drawn)

    def _codes(self, raw: Tensor, seeds: Tensor, choose: Sampler) -> Tensor:
        if self.config.codes == "index":
            inner = self.edges[1:-1].contiguous()
            return torch.bucketize(raw.tanh()[:, 0].contiguous(), inner, right=True)
        if self.config.codes == "latent":
            return self.nearest(raw)
        places = torch.arange(self.grid[0] * self.grid[1], device=seeds.device)
        return choose(raw.flatten(2).mT, gumbel(seeds, places, self.codebook_size)).view(len(raw), *self.grid)


class DCGANTask(PriorTask):
    """Discriminator, then generator, each once a step.

    The score compares which codes are used where with validation subjects.
    """

    model: DCGAN

    def __init__(
        self, model: DCGAN, vqvae: VQVAE, cohort: Cohort, device: torch.device, training: TrainingConfig, out: Path
    ):
        super().__init__(model, vqvae, cohort, device, training, out)
        self.rates = {"discriminator": model.config.discriminator_lr_scale}
        codes = codes_of(self.vqvae, cohort, "train", device)[linspace_rows(len(cohort["train"]), 512)]
        prepare(model, self.vqvae.quantizer.codebook.detach(), torch.from_numpy(codes).long().to(device))
        self.real, self.now = self.codes[:0], (self.slice_index, self.cdr)
        self.made = torch.empty(0, device=device)

    def split(self) -> dict[str, nn.Module]:
        return {"discriminator": self.model.discriminator, "generator": self.model.generator}

    def loss(self, part: str, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        smooth, critic, make = self.model.config.smoothing, self.parts["discriminator"], self.parts["generator"]
        noise = torch.randn(len(batch.rows), self.model.config.noise, device=self.device)
        if part == "generator":
            fake = self.model.maps(make(noise, *self.now))
            self.made = fake.detach()
            answer = critic(self.blurred(fake), *self.now)
            loss = F.softplus(-answer).mean()  # it wants to be taken for real
            return loss, {"generator": loss}
        self.real, self.now = self.encode(batch), self.labels(batch)
        real = self.model.real_maps(self.real)
        with torch.no_grad():
            fake = self.model.maps(make(noise, *self.now))
        penalised = self.model.config.stabiliser == "r1" and step % R1_EVERY == 0
        seen = self.blurred(real).requires_grad_(penalised)
        on_real, on_fake = critic(seen, *self.now), critic(self.blurred(fake), *self.now)
        targets = torch.full_like(on_real, 1 - smooth), torch.full_like(on_fake, smooth)
        loss = sum(F.binary_cross_entropy_with_logits(a, t) for a, t in zip((on_real, on_fake), targets))
        logs = {"discriminator": loss, "real_score": on_real.sigmoid().mean(), "fake_score": on_fake.sigmoid().mean()}
        if penalised:
            slope = torch.autograd.grad(on_real.sum(), seen, create_graph=True)[0]
            loss = loss + 0.5 * R1 * R1_EVERY * slope.square().flatten(1).sum(1).mean()
        right = ((on_real > 0).float().mean() + (on_fake < 0).float().mean()) / 2
        self.model.accuracy.lerp_(right.detach(), 0.02)
        return loss, logs | {"accuracy": right, "blur": self.model.blur.clone()}

    def blurred(self, maps: Tensor) -> Tensor:
        return maps + self.model.blur * torch.randn_like(maps)

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if self.model.config.stabiliser != "none":
            self.model.blur.add_(BLUR_STEP * torch.sign(self.model.accuracy - WANTED)).clamp_(0, 2)
        if self.model.config.codes == "index" and self.model.config.bins == "learned":
            learn_bins(self.model, self.made)

    def measure(self, model: DCGAN) -> dict[str, float]:
        """How far the samples' tokens are from validation subjects', region by region."""
        drawn = model.sample(len(self.codes), self.slice_index, self.cdr, generator=seeded(0))
        regions = apart(*(in_regions(x, model.codebook_size) for x in (self.codes, drawn)), 16 * model.codebook_size)
        return {
            "validate_regions": regions,
            "codes_used": len(drawn.unique()),
            "accuracy": float(model.accuracy),
            "score": -regions,
        }


@torch.no_grad()
def prepare(model: DCGAN, vectors: Tensor, codes: Tensor) -> None:
    """What the model has to know of the codebook, and of how often training subjects use each code."""
    model.vectors.copy_((vectors - vectors.mean(0)) / vectors.std())
    counts = torch.bincount(codes.flatten(), minlength=model.codebook_size).double()
    # "uniform": equal bins for the codes in use, as seed 000 has it; "quantile": as wide as the code is frequent.
    widths = counts if model.config.bins == "quantile" else (counts > 0).double()
    edges = torch.cat([widths.new_zeros(1), widths.cumsum(0)]) / widths.sum() * 2 - 1
    model.real_edges.copy_(edges)
    model.edges.copy_(edges)
    model.frequencies.copy_(counts / counts.sum())


@torch.no_grad()
def learn_bins(model: DCGAN, made: Tensor, rate: float = 0.02) -> None:
    """Move the cuts towards those that would give each code its frequency among training subjects."""
    values = made.flatten().float().sort().values
    shares = model.frequencies.cumsum(0)[:-1].clamp(0, 1)
    cuts = values[(shares * (len(values) - 1)).long()]
    model.edges[1:-1] = model.edges[1:-1].lerp(cuts, rate).cummax(0).values


KINDS["dcgan"], MODEL_CONFIGS["dcgan"], TASKS["dcgan"] = DCGAN, DCGANConfig, DCGANTask
