"""What priors learn from: token maps of training slices, varied as the settings say, through the frozen VQ-VAE."""

from __future__ import annotations

import math
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from oasis_lib.cohort import Cohort
from oasis_lib.config import TrainingConfig
from oasis_lib.models import VQVAE
from oasis_lib.models.position_prior import PositionPrior
from oasis_lib.models.prior import Autoregressive, Prior
from oasis_lib.training import data
from oasis_lib.training.codes import Device, codes_of, encode_images
from oasis_lib.training.data import Batch, in_channels, labels_of, linspace_rows
from oasis_lib.training.loop import Task
from oasis_lib.training.progress import SHOWN, SNAPSHOTS, keep_snapshot

VALIDATED = 192  # slices looked at while training; the reported numbers are of all
BATCH = 32  # of validation
COUNTED = 4096  # training slices whose tokens are counted before the first step
SHIFTED = 96  # training slices that a model is shown before the first step in four other places too
VARIED = 0.7  # of the run: from here on slices are as they are, for a prior draws what it was shown last
OPEN = 0.1  # how often a label is left open in training, so that it may be at sampling
MEANT = 200  # steps before which no bits are judged


class PriorTask(Task):
    """Any prior: a child says what its loss is, and how it is validated."""

    def __init__(self, model: Prior, vqvae: VQVAE, cohort: Cohort, device: Device, training: TrainingConfig, out: Path):
        super().__init__(model)
        self.shift, self.cohort, self.flips = training.shift, cohort, data.flips(cohort, training)
        self.vqvae, self.device, self.out = vqvae.to(device).eval().requires_grad_(False), device, out
        rows = linspace_rows(len(cohort["validate"]), VALIDATED)
        self.codes = self._all("validate")[rows].long()
        self.slice_index, self.cdr = (label[rows] for label in labels_of(cohort, "validate", device))
        self.still = not (training.shift or training.intensity)  # each slice is encoded once, as it is and mirrored
        sides = [False, True] if self.still and self.flips else [False]
        self.maps = torch.stack([self._all("train", side) for side in sides])  # (1 or 2, N, h, w)

    def _all(self, split: str, mirrored: bool = False) -> Tensor:
        codes = codes_of(self.vqvae, self.cohort, split, self.device, mirrored=mirrored)
        return torch.from_numpy(codes).to(self.device)

    @torch.no_grad()
    def encode(self, batch: Batch) -> Tensor:
        """Codes as everywhere else."""
        varied = self.fraction < VARIED
        if self.still or not varied:
            return self.maps[(batch.mirrored & varied).long(), batch.rows].long()
        return self.vqvae.tokens(in_channels(batch.images, self.vqvae))

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Slice index and CDR, each left open now and then."""
        labels = (batch.slice_index, batch.cdr)
        return tuple(label.masked_fill(chance < OPEN, -1) for label, chance in zip(labels, batch.chance))

    def begin(self, batch: Batch) -> None:
        """Show the model some training maps, also as training varies them."""
        rows = linspace_rows(self.maps.shape[1], COUNTED)
        slice_index = labels_of(self.cohort, "train", self.device)[0][rows]
        varied = torch.cat([self.maps[1:, rows].flatten(0, 1).long(), self._shifted()])
        self.model.start(self.maps[0, rows].long(), slice_index, varied, self.vqvae.quantizer.codebook.detach())

    def _shifted(self) -> Tensor:
        """A few brains at the corners of where training shifts them, on either side; none where it doesn't."""
        if not self.shift:
            return self.codes[:0]
        train = self.cohort["train"].images
        images = train[linspace_rows(len(train), SHIFTED)]
        if self.flips:
            images = np.concatenate([images, data.mirrored(images, train)])
        corners = product((-self.shift, self.shift), repeat=2)
        moved = np.concatenate([np.roll(images, move, axis=(1, 2)) for move in corners])
        return torch.from_numpy(encode_images(self.vqvae, moved, self.device)).long().to(self.device)

    @torch.no_grad()
    def validate(self, model: Prior) -> dict[str, float]:
        """A child's `measure`, and now and then some samples, always of the same seed."""
        measured, spread = self.measure(model), torch.from_numpy(data.even_slice_indices(SHOWN, model.slice_indices))

        def draw() -> np.ndarray:
            return model.sample(SHOWN, spread, generator=data.seeded(0)).cpu().numpy().astype(np.int16)

        keep_snapshot(self.out / SNAPSHOTS, self.step, "codes", draw)
        return measured


class LikelihoodTask(PriorTask):
    """Autoregressive priors: the bits of an image, and nothing else."""

    def loss(self, part: str, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        codes = self.encode(batch)
        logits = self.parts[part](codes, *self.labels(batch))
        targets = self.model.targets(codes)
        loss = F.cross_entropy(logits.float().flatten(0, -2), targets.flatten())
        return loss, {"bits": loss * targets[0].numel() / math.log(2)}

    def measure(self, model: Autoregressive) -> dict[str, float]:
        nats = float(model.nll(self.codes, self.slice_index, self.cdr, batch=BATCH).mean())
        bits = nats / math.log(2)
        return {"validate_bits": bits, "validate_nats_a_code": nats / self.codes[0].numel(), "score": -bits}

    @cached_property
    def counted(self) -> float:
        """Bits of a validation image by the frequency of each token at each position of training maps."""
        counts = PositionPrior(self.model.grid, self.model.codebook_size).to(self.device)
        counts.start(self.maps[0, linspace_rows(self.maps.shape[1], COUNTED)].long())
        return float(-counts.logits.log_softmax(-1).gather(1, self.codes.flatten(1).T).sum(0).mean()) / math.log(2)

    def verdicts(self, row: dict[str, float]) -> list[str]:
        bits = row["validate_bits"]
        if row["step"] < MEANT or bits < self.counted:
            return []
        found = f"{bits:.0f} bits an image of validation subjects; counting tokens by position gives {self.counted:.0f}"
        return [f"{found}: the prior has learned nothing that holds for others; lower its lr, or add subjects"]
