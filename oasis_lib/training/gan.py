"""Training the CodeGAN: hinge loss, a learning rate for each network, and words when the two are out of balance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oasis_lib.device import upload
from oasis_lib.metrics import apart, in_regions
from oasis_lib.models.codegan import FRESH, CodeGAN
from oasis_lib.training.adversarial import judged
from oasis_lib.training.data import Batch, labels_of, seeded
from oasis_lib.training.tasks import PriorTask

COMMITMENT = 1.0  # weight of the generated latents' distance to the codebook; at 0.01 latents grow without end
SETTLED = 200  # steps before which nothing is said of the balance


class GANTask(PriorTask):
    """Discriminator, then generator, each once a step, on the same generated maps."""

    model: CodeGAN

    def __init__(self, model: CodeGAN, *given: Any):
        super().__init__(model, *given)
        self.rates = {"discriminator": model.config.discriminator_lr_scale}
        self.raw, self.now = self.codes[:0].float(), (self.slice_index, self.cdr)

    def begin(self, batch: Batch) -> None:
        super().begin(batch)
        train, sides = self.cohort["train"], len(self.maps)
        slice_index = labels_of(self.cohort, "train", self.device)[0].repeat(sides)
        names = train.subjects if self.model.slice_indices else np.arange(len(train))
        subject = np.unique(names, return_inverse=True)[1]
        subject = np.concatenate([subject + side * (subject.max() + 1) for side in range(sides)])  # mirrored, another
        vectors, subject = self.vqvae.quantizer.codebook.detach(), torch.from_numpy(subject).to(self.device)
        self.model.fit_start(vectors, self.maps.flatten(0, 1).long(), slice_index, subject)

    def split(self) -> dict[str, nn.Module]:
        return {"discriminator": self.model.discriminator, "generator": self.model.generator}

    def loss(self, part: str, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        critic = self.model.discriminator
        if part == "generator":  # the discriminator only passes gradients on
            critic.requires_grad_(False)
            fake = self.model.snapped(self.raw)
            loss = -critic(fake, self.model.expected(self.now[0]), *self.now).mean()
            critic.requires_grad_(True)
            return loss + COMMITMENT * F.mse_loss(self.raw, fake.detach()), {"generator": loss}
        self.now = batch.slice_index.clamp(min=0), self.labels(batch)[1]
        real = self.model.real_maps(self.encode(batch))
        shapes = (self.model.config.noise,), (FRESH, *self.model.grid)
        noise, fresh = (upload(torch.randn(len(real), *shape), self.device) for shape in shapes)
        self.raw = self.model.draw(noise, fresh, *self.now, through=self.parts["generator"]).float()
        expected = self.model.expected(self.now[0])
        both = real, self.model.snapped(self.raw.detach())
        on_real, on_fake = (self.parts["discriminator"](maps, expected, *self.now) for maps in both)
        logs = judged(on_real, on_fake)
        self.model.accuracy.lerp_(logs["accuracy"].detach(), 0.02)
        return logs["discriminator"], logs | {"real_score": on_real.mean(), "fake_score": on_fake.mean()}

    def measure(self, model: CodeGAN) -> dict[str, float]:
        slice_index, size = self.slice_index.clamp(min=0), model.codebook_size
        drawn = model.sample(len(self.codes), self.slice_index, self.cdr, generator=seeded(0))
        real, fake = (coarse(model, codes, slice_index) for codes in (self.codes, drawn))
        found = {
            "validate_regions": apart(*(in_regions(codes, size) for codes in (self.codes, drawn)), 16 * size),
            "codes_used": len(drawn.unique()),
            "diversity": float(spread(fake) / spread(real).clamp(min=1e-6)),
            "slice_index_within_one": within_one(model, drawn, slice_index),
            "accuracy": float(model.accuracy),
        }
        self.real_within_one = within_one(model, self.codes, slice_index)
        return found | {"score": -found["validate_regions"]}

    def verdicts(self, row: dict[str, float]) -> list[str]:
        return verdicts(row, self.real_within_one) if row["step"] >= SETTLED else []


def verdicts(found: dict[str, float], real_within_one: float) -> list[str]:
    """What the numbers say of the balance of the two networks, and of the samples."""
    accuracy, diversity, within = (found[name] for name in ("accuracy", "diversity", "slice_index_within_one"))
    near = f"{within:.2f} are nearest to the mean of a slice within one of it; validation slices: {real_within_one:.2f}"
    words = {
        "the discriminator wins: 95 % of its answers are right; lower codegan.discriminator_lr_scale": accuracy > 0.95,
        "the generator wins: the discriminator guesses; raise codegan.discriminator_lr_scale": accuracy < 0.52,
        f"samples collapse: they differ {diversity:.2f} times as much as validation subjects do": diversity < 0.5,
        f"samples ignore their slice index: {near}": within < real_within_one / 2,
    }
    return [said for said, so in words.items() if so]


def coarse(model: CodeGAN, codes: Tensor, slice_index: Tensor) -> Tensor:
    """(n, h, w) tokens -> (n, C, h / 4, w / 4): mean latents of 4 x 4 positions, less those of their slice index."""
    return F.avg_pool2d(model.real_maps(codes) - model.expected(slice_index), 4, ceil_mode=True)


def spread(maps: Tensor) -> Tensor:
    """How far maps are from one another: the root mean square difference of neighbours in the list."""
    return (maps - maps.roll(1, 0)).square().mean().sqrt()


def within_one(model: CodeGAN, codes: Tensor, slice_index: Tensor) -> float:
    """The share of maps that are nearest to the mean of a slice index within one of their own."""
    every = torch.arange(max(model.slice_indices, 1), device=codes.device)
    means = F.avg_pool2d(model.expected(every), 4, ceil_mode=True).flatten(1)
    maps = F.avg_pool2d(model.real_maps(codes), 4, ceil_mode=True).flatten(1)
    return float(((torch.cdist(maps, means).argmin(1) - slice_index).abs() <= 1).float().mean())
