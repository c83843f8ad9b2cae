"""Training the CodeGAN: two players, kept in balance, and words when they are not."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oasis_lib.cohort import Cohort
from oasis_lib.config import TrainingConfig
from oasis_lib.metrics import PAIRS, apart, in_regions, pairs
from oasis_lib.models import VQVAE
from oasis_lib.models.codegan import CodeGAN
from oasis_lib.training.codes import codes_of
from oasis_lib.training.data import Batch, evenly, seeded
from oasis_lib.training.tasks import PriorTask

WANTED = 0.75  # of the discriminator's answers may be right; above, what it sees is blurred with noise
BLUR_STEP = 0.01
R1_EVERY, R1 = 8, 1.0
SETTLED = 100  # steps before which nothing is said of the balance
WARNINGS = "warnings.txt"


class GANTask(PriorTask):
    """Discriminator, then generator, each once a step. The score compares which codes are used where with validation people."""

    model: CodeGAN

    def __init__(self, model: CodeGAN, vqvae: VQVAE, cohort: Cohort, device: torch.device, training: TrainingConfig, out: Path):
        super().__init__(model, vqvae, cohort, device, training, out)
        self.rates = {"discriminator": model.config.patience}
        codes = codes_of(self.vqvae, cohort, "train", device)[evenly(len(cohort["train"]), 512)]
        prepare(model, self.vqvae.quantizer.codebook.detach(), torch.from_numpy(codes).long().to(device))
        self.real, self.now = self.codes[:0], (self.level, self.rating)
        self.made = torch.empty(0, device=device)

    def begin(self, batch: Batch) -> None:
        super().begin(batch)
        (self.out / WARNINGS).unlink(missing_ok=True)

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
        self.real, self.now = self.encode(batch), self.labels(batch, step)
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

    def measure(self, model: CodeGAN) -> dict[str, float]:
        drawn = model.sample(len(self.codes), self.level, self.rating, generator=seeded(0))
        entries = model.entries
        found = {
            "validate_histogram": apart(self.codes, drawn, entries),
            "validate_regions": apart(in_regions(self.codes, entries), in_regions(drawn, entries), 16 * entries),
            "validate_pairs": apart(pairs(self.codes), pairs(drawn), PAIRS),
            "codes_used": len(drawn.unique()),
            "diversity": variety(drawn) / max(variety(self.codes), 1e-6),
            "accuracy": float(model.accuracy),
        }
        for words in verdicts(found, len(self.codes.unique())) if self.step >= SETTLED else []:
            self.out.mkdir(parents=True, exist_ok=True)
            with (self.out / WARNINGS).open("a") as file:
                file.write(f"step {self.step}: {words}\n")
            warnings.warn(f"codegan, step {self.step}: {words}", stacklevel=2)
        return found | {"score": -(found["validate_regions"] + found["validate_pairs"]) / 2}


def verdicts(found: dict[str, float], used_by_people: int) -> list[str]:
    """What a person who watches the curves would say."""
    words = []
    if found["accuracy"] > 0.95:
        words.append(
            "the discriminator wins: 95 % of its answers are right, and the generator learns nothing; lower codegan.patience"
        )
    if found["accuracy"] < 0.52:
        words.append("the generator wins: the discriminator guesses; raise codegan.patience")
    if found["codes_used"] < used_by_people / 4 or found["diversity"] < 0.3:
        words.append(
            f"samples collapse: {found['codes_used']} codes in use where people use {used_by_people}, "
            f"and they differ {found['diversity']:.2f} times as much as people do"
        )
    return words


@torch.no_grad()
def prepare(model: CodeGAN, vectors: Tensor, codes: Tensor) -> None:
    """What the model has to know of the codebook, and of how often training people use each code."""
    model.vectors.copy_((vectors - vectors.mean(0)) / vectors.std())
    counts = torch.bincount(codes.flatten(), minlength=model.entries).double()
    # "uniform": equal bins for the codes in use, as seed 000 has it; "quantile": as wide as the code is frequent.
    widths = counts if model.config.bins == "quantile" else (counts > 0).double()
    edges = torch.cat([widths.new_zeros(1), widths.cumsum(0)]) / widths.sum() * 2 - 1
    model.real_edges.copy_(edges)
    model.edges.copy_(edges)
    model.frequencies.copy_(counts / counts.sum())


@torch.no_grad()
def learn_bins(model: CodeGAN, made: Tensor, rate: float = 0.02) -> None:
    """Move the cuts towards those that would give each code its frequency among training people."""
    values = made.flatten().float().sort().values
    shares = model.frequencies.cumsum(0)[:-1].clamp(0, 1)
    cuts = values[(shares * (len(values) - 1)).long()]
    model.edges[1:-1] = model.edges[1:-1].lerp(cuts, rate).cummax(0).values


def variety(codes: Tensor) -> float:
    """The share of places at which two maps differ, over neighbours in the list."""
    return float((codes != codes.roll(1, 0)).float().mean())
