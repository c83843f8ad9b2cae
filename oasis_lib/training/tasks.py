"""What priors learn from: the token maps of training slices, as they are and mirrored, by the frozen VQ-VAE."""

from __future__ import annotations

import math
from functools import cached_property
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
from oasis_lib.training.codes import Device, codes_of
from oasis_lib.training.data import Batch, labels_of, linspace_rows
from oasis_lib.training.loop import Task
from oasis_lib.training.progress import SHOWN, SNAPSHOTS, keep_snapshot

VALIDATED = 192  # slices looked at while training; the reported numbers are of all
BATCH = 32  # of validation
COUNTED = 4096  # training slices whose tokens are counted before the first step
MIRRORED = 0.7  # of the run: from here on slices are as they are, for a prior draws what it was shown last
OPEN = 0.1  # how often a label is left open in training, so that it may be at sampling
MEANT = 200  # steps before which no bits are judged


class PriorTask(Task):
    """Any prior: a child says what its loss is, and how it is validated."""

    def __init__(self, model: Prior, vqvae: VQVAE, cohort: Cohort, device: Device, training: TrainingConfig, out: Path):
        super().__init__(model)
        if training.shift or training.intensity:
            raise ValueError(f"{model.kind}: shift and intensity must be 0; a prior draws brains as it was shown them")
        self.cohort = cohort
        self.vqvae, self.device, self.out = vqvae.to(device).eval().requires_grad_(False), device, out
        rows = linspace_rows(len(cohort["validate"]), VALIDATED)
        self.codes = self._all("validate")[rows].long()
        self.slice_index, self.cdr = (label[rows] for label in labels_of(cohort, "validate", device))
        sides = [False, True] if data.flips(cohort, training) else [False]
        self.maps = torch.stack([self._all("train", side) for side in sides])  # (1 or 2, N, h, w)

    def _all(self, split: str, mirrored: bool = False) -> Tensor:
        codes = codes_of(self.vqvae, self.cohort, split, self.device, mirrored=mirrored)
        return torch.from_numpy(codes).to(self.device)

    def encode(self, batch: Batch) -> Tensor:
        """(B, h, w) tokens."""
        return self.maps[(batch.mirrored & (self.fraction < MIRRORED)).long(), batch.rows].long()

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Slice index and CDR, each left open now and then."""
        labels = (batch.slice_index, batch.cdr)
        return tuple(label.masked_fill(chance < OPEN, -1) for label, chance in zip(labels, batch.chance))

    def begin(self, batch: Batch) -> None:
        """Show the model some training maps, mirrored ones too if training mirrors."""
        rows = linspace_rows(self.maps.shape[1], COUNTED)
        slice_index = labels_of(self.cohort, "train", self.device)[0][rows]
        plain, mirrored = self.maps[0, rows].long(), self.maps[1:, rows].flatten(0, 1).long()
        self.model.start(plain, slice_index, mirrored, self.vqvae.quantizer.codebook.detach())

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
