"""The adversarial stage of VQ-VAE training: a second decoder that draws sharp texture from the same tokens.

A copy of the trained decoder goes on against a PatchGAN discriminator (Isola 2017, arXiv:1611.07004; Esser 2021,
arXiv:2012.09841). Encoder, codebook and first decoder stay as they are, bit for bit: tokens and priors remain valid.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oasis_lib import metrics
from oasis_lib.cohort import Cohort
from oasis_lib.config import Part, TrainingConfig, as_dict
from oasis_lib.models import VQVAE, load
from oasis_lib.models.blocks import PatchDiscriminator
from oasis_lib.models.vqvae import CRISP
from oasis_lib.storage import fingerprint
from oasis_lib.training.codes import codes_of
from oasis_lib.training.data import Batch, content_box, flips, in_channels, linspace_rows, seeded, to_images
from oasis_lib.training.loop import Task
from oasis_lib.training.once import resume_or_fit

HINGE, FEATURES, STRUCTURE = 0.02, 0.2, 0.5  # weights beside the L1 distance
DISCRIMINATOR = 32  # channels of its first layer
VALIDATED = 128  # validation slices measured while training
FOREGROUND, AROUND = 10 / 255, 4  # what the discriminator sees: brighter pixels, and so many around them
WINDOW, EDGE = 112, 8  # pixels a side that a step looks at (texture is local), and of them the border that no loss sees
MEANT, WON = 200, 0.98  # steps before which no balance is judged; share of right answers of a discriminator that wins
LOST = 0.1  # of SSIM inside the brain, below the faithful decoder's: the stage has diverged


class Adversarial(nn.Module):
    def __init__(self, vqvae: VQVAE):
        super().__init__()
        self.decoder = copy.deepcopy(vqvae.decoder)
        self.discriminator = PatchDiscriminator(vqvae.config.channels, DISCRIMINATOR)


class AdversarialTask(Task):
    """Discriminator, then decoder, each once a step: hinge loss, feature matching, L1 and SSIM."""

    rates = {"discriminator": 2.0}

    def __init__(self, vqvae: VQVAE, cohort: Cohort, device: torch.device, training: TrainingConfig):
        model = Adversarial(vqvae)  # copied before the faithful weights are frozen
        self.vqvae = vqvae.to(device).eval().requires_grad_(False)
        super().__init__(model)
        train, split, self.seed = cohort["train"], cohort["validate"], training.seed
        sides = [False, True] if flips(cohort, training) else [False]
        maps = [codes_of(self.vqvae, cohort, "train", device, mirrored=side) for side in sides]
        self.maps = torch.from_numpy(np.stack(maps)).to(device)  # (1 or 2, N, h, w)
        self.box = content_box(train.images, EDGE, vqvae.config.factor)
        rows = linspace_rows(len(split), VALIDATED)
        pixels = split.images[rows]
        self.codes = torch.from_numpy(codes_of(self.vqvae, cohort, "validate", device)[rows]).long().to(device)
        self.images = to_images(pixels, device)
        self.masks = torch.from_numpy(metrics.brain_mask(pixels)).to(device)[:, None]
        self.faithful = float(self.similarity(self.reconstructed(self.vqvae.decoder)).mean())

    def split(self) -> dict[str, nn.Module]:
        return {"discriminator": self.model.discriminator, "decoder": self.model.decoder}

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The decoder alone: sampling needs no discriminator."""
        return model.decoder.state_dict()

    def window(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """One window of every image (B, C, S, S), and its latents, quantised (B, D, s, s)."""
        factor, draws = self.vqvae.config.factor, torch.rand(2, generator=seeded(self.seed, 9, step)).tolist()
        rows, columns = (slice_of(part, draw, factor) for part, draw in zip(self.box, draws))
        codes = self.maps[batch.mirrored.long(), batch.rows][:, rows, columns]
        pixels = [slice(part.start * factor, part.stop * factor) for part in (rows, columns)]
        return in_channels(batch.images[:, :, *pixels], self.vqvae), self.vqvae.embed(codes.long())

    def loss(self, part: str, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        critic, inner = self.parts["discriminator"], (..., slice(EDGE, -EDGE), slice(EDGE, -EDGE))
        if part == "discriminator":
            real, latents = self.window(batch, step)
            fake = self.vqvae.scaled(self.parts["decoder"](latents)).float()
            self.real, self.fake = real[inner], fake[inner]
            lit = (self.real > FOREGROUND).float().amax(1, keepdim=True)
            self.seen = F.max_pool2d(lit, 2 * AROUND + 1, 1, AROUND)  # neither side shows background
            logs = judged(critic(self.real * self.seen)[-1], critic(self.fake.detach() * self.seen)[-1])
            return logs["discriminator"], logs
        with torch.no_grad():
            wanted = critic(self.real * self.seen)
        found = critic(self.fake * self.seen)
        matching = sum(F.l1_loss(a, b) for a, b in zip(found[:-1], wanted[:-1])) / (len(found) - 1)
        hinge = -found[-1].mean()
        shown = without_dark_errors(self.fake, self.real)
        l1 = F.l1_loss(shown, self.real)
        dssim = 1 - metrics.ssim(shown.mean(1, keepdim=True), self.real.mean(1, keepdim=True)).mean()
        loss = l1 + STRUCTURE * dssim + HINGE * hinge + FEATURES * matching
        return loss, {"loss": loss, "l1": l1, "dssim": dssim, "hinge": hinge, "matching": matching}

    @torch.no_grad()
    def reconstructed(self, decoder: nn.Module) -> Tensor:
        """The validation slices (N, 1, H, W), through their tokens and this decoder."""
        few = metrics.batch_size_for(self.images[0].numel(), self.images.device)
        parts = (self.vqvae.embed(codes) for codes in self.codes.split(few))
        return torch.cat([self.vqvae.scaled(decoder(part)).mean(1, keepdim=True).clamp(0, 1) for part in parts])

    def similarity(self, shown: Tensor) -> Tensor:
        """(N,) SSIM inside the brain of the validation slices as they are `shown`."""
        few = metrics.batch_size_for(shown[0].numel(), shown.device)
        parts = zip(self.images.split(few), shown.split(few), self.masks.split(few))
        return torch.cat([metrics.ssim(*part) for part in parts])

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """The last weights are the best, unless they have lost what the tokens say. Sharpness is 1 for real slices."""
        shown = self.reconstructed(model.decoder)
        brain = float(self.similarity(shown).nanmean())
        sharp = metrics.sharpness(shown, self.masks) / metrics.sharpness(self.images, self.masks)
        score = -1.0 if brain < self.faithful - LOST else self.fraction
        return {"validate_ssim_brain": brain, "validate_sharpness": float(sharp), "score": score}

    def verdicts(self, row: dict[str, float]) -> list[str]:
        words = []
        if row["score"] < 0:
            found = f"SSIM in the brain is {row['validate_ssim_brain']:.3f}, the faithful decoder's {self.faithful:.3f}"
            kept = "its last weights before that are kept. Lower vqvae.lr or vqvae.adversarial"
            words.append(f"the adversarial decoder diverges: {found}; {kept}")
        if row["train_accuracy"] >= WON and row["step"] >= MEANT:
            right = f"{row['train_accuracy']:.0%} of its answers are right"
            words.append(f"the discriminator wins: {right}, and the decoder learns little from it; lower vqvae.lr")
        return words


def judged(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Of a discriminator's answers: the hinge loss, and the share that is right."""
    right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
    return {"discriminator": F.relu(1 - real).mean() + F.relu(1 + fake).mean(), "accuracy": right}


def without_dark_errors(shown: Tensor, target: Tensor) -> Tensor:
    """What `decode` clamps to black where black is wanted is no error."""
    return shown.masked_fill((shown < 0) & (target <= 2 / 255), 0)


def slice_of(box: slice, draw: float, factor: int) -> slice:
    """WINDOW pixels somewhere in the box, in tokens."""
    first, end = box.start // factor, -(-box.stop // factor)
    size = min(WINDOW // factor, end - first)
    start = first + int(draw * (end - first - size + 1))
    return slice(start, start + size)


def train_crisp(cohort: Cohort, folder: str | Path, part: Part, *, progress: bool = True) -> pd.DataFrame:
    """Train the crisp decoder of the VQ-VAE in `folder`, or go on where an earlier call was stopped."""
    folder, share = Path(folder), part.model.adversarial
    training = stage(part.training, share)
    vqvae = load(folder, crisp=False)
    saved = {"kind": "decoder", "model": as_dict(part.model), "vqvae": fingerprint(vqvae), "size": cohort.size}

    def make_task(device: torch.device) -> AdversarialTask:
        return AdversarialTask(load(folder, crisp=False), cohort, device, training)

    return resume_or_fit(make_task, cohort, training, folder / CRISP, saved, progress)


def stage(training: TrainingConfig, share: float) -> TrainingConfig:
    """The stage's own settings: `share` of the first stage's length, gently, with the short memory adversaries need."""
    counts = {"epochs": training.epochs, "steps": training.steps}
    limits = {name: count and max(1, round(count * share)) for name, count in counts.items()}
    limits["minutes"] = training.minutes * share
    still = {"shift": 0, "intensity": 0.0}  # the tokens of the slices as they are, and mirrored, are known
    gentle = {"lr": training.lr / 5, "beta1": 0.5, "weight_decay": 0.0, "ema": min(training.ema, 0.995), "warmup": 0.05}
    return dataclasses.replace(training, **limits, **still, **gentle)
