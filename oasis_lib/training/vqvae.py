"""Training the VQ-VAE."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from oasis_lib import metrics
from oasis_lib.cards import write_cards
from oasis_lib.cohort import Cohort
from oasis_lib.config import Part, as_dict
from oasis_lib.models import VQVAE, build, perplexity
from oasis_lib.storage import WEIGHTS, content_hash, main_process
from oasis_lib.training.adversarial import train_crisp, without_dark_errors
from oasis_lib.training.data import Batch, in_channels, linspace_rows, seeded, to_images
from oasis_lib.training.loop import Task
from oasis_lib.training.once import resume_or_fit, weights_to_begin_with
from oasis_lib.training.progress import SHOWN, SNAPSHOTS, keep_snapshot

VALIDATED = 256  # slices looked at while training; the reported numbers are of all
HEAD_START = 0.25  # of the run without a codebook at most: a slow machine's few steps must not end before there is one
SETTLED = 0.6  # of the run: from here on no entry is moved elsewhere, and the decoder learns what each has come to mean
MEANT, FEW = 200, 0.02  # steps before which no codebook is judged; the share in use below which it has collapsed


class VQVAETask(Task):
    def __init__(self, model: VQVAE, cohort: Cohort, device: torch.device, seed: int = 0, out: Path | None = None):
        super().__init__(model)
        self.seed, self.device, self.out = seed, device, out
        split = cohort["validate"]
        self.rows = linspace_rows(len(split), VALIDATED)
        pixels = split.images[self.rows]
        self.images = to_images(pixels, device)
        self.masks = torch.from_numpy(metrics.brain_mask(pixels)).to(device)[:, None]
        self.begun: bool | None = None  # whether there is a codebook; asked of the model once, as that waits for a GPU
        self.moved: tuple[Tensor, Tensor] | None = None  # what the last step's codebook update needs

    def begin(self, batch: Batch) -> None:
        self.keep_snapshot(self.model.eval())
        self.model.train()

    def loss(self, part: str, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        target = in_channels(batch.images, self.model).contiguous(memory_format=torch.channels_last)
        if self.begun is None:
            self.begun = not self.model.config.autoencoder_steps or bool(self.model.quantizer.started)
        out = self.parts[part](target, quantize=self.begun)
        self.moved = out.latents.detach(), out.codes
        reconstruction, logs = reconstruction_loss(out.images.float(), target, self.model)
        total = reconstruction + out.commitment
        return total, logs | {"loss": total, "commitment": out.commitment}

    def after_step(self, step: int) -> None:
        latents, codes = self.moved
        if self.begun:
            revive = self.fraction < SETTLED
            self.model.quantizer.update(latents, codes, revive=revive, generator=seeded(self.seed, 4, step))
        elif step + 1 >= self.model.config.autoencoder_steps or self.fraction >= HEAD_START:
            self.model.quantizer.start(latents, generator=seeded(self.seed, 3))
            self.begun = True

    def compile(self) -> None:
        self.model.encoder.compile()  # the quantizer stays outside
        self.model.decoder.compile()

    @torch.no_grad()
    def validate(self, model: VQVAE) -> dict[str, float]:
        scores, counts = [], torch.zeros(model.config.codebook_size, device=self.device)
        few = metrics.batch_size_for(self.images[0].numel(), self.device)
        for images, masks in zip(self.images.split(few), self.masks.split(few)):
            out = model(in_channels(images, model))
            pair = images, out.images.mean(dim=1, keepdim=True)
            scores.append(torch.stack([metrics.ssim(*pair), metrics.ssim(*pair, masks), metrics.psnr(*pair)]))
            counts += torch.bincount(out.codes.flatten(), minlength=len(counts))
        self.keep_snapshot(model)
        full, brain, psnr = torch.cat(scores, 1)
        brain = brain[torch.isfinite(brain)]
        return {
            "validate_ssim": float(full.mean()),
            "validate_ssim_min": float(full.min()),
            "validate_ssim_max": float(full.max()),
            "validate_ssim_brain": float(brain.mean()),
            "validate_psnr": float(psnr[torch.isfinite(psnr)].mean()),
            "codes_used": int((counts > 0).sum()),
            "perplexity": perplexity(counts.cpu()),
            "score": float(brain.mean()),
        }

    def verdicts(self, row: dict[str, float]) -> list[str]:
        used, codebook_size = row["perplexity"], self.model.config.codebook_size
        if not self.begun or row["step"] < MEANT or used >= max(2.0, FEW * codebook_size):
            return []
        found = f"the codebook collapses: its use equals that of {used:.1f} of {codebook_size} tokens"
        return [f"{found}; raise vqvae.dead_code_threshold, or lower vqvae.lr"]

    @torch.no_grad()
    def keep_snapshot(self, model: VQVAE) -> None:
        shown = linspace_rows(len(self.rows), SHOWN + 2)[1:-1]  # not the very first and last slice

        def draw() -> np.ndarray:
            images = model(in_channels(self.images[shown], model)).images.mean(1).clamp(0, 1)
            return (images * 255).round().to(torch.uint8).cpu().numpy()

        if self.out is not None:
            keep_snapshot(self.out / SNAPSHOTS, self.step, "images", draw, rows=self.rows[shown])


def reconstruction_loss(shown: Tensor, target: Tensor, model: VQVAE) -> tuple[Tensor, dict[str, Tensor]]:
    shown = without_dark_errors(shown, target)
    if model.config.loss == "l2":
        loss = F.mse_loss(shown, target) / model.variance
        return loss, {"l2": loss}
    l1 = F.l1_loss(shown, target)
    if model.config.loss == "l1":
        return l1, {"l1": l1}
    dssim = 1 - metrics.ssim(shown.mean(1, keepdim=True), target.mean(1, keepdim=True)).mean()
    return l1 + dssim, {"l1": l1, "dssim": dssim}


def train_vqvae(
    cohort: Cohort, out: str | Path, part: Part, *, kind: str = "vqvae", begin: str | Path = "", progress: bool = True
) -> pd.DataFrame:
    """Train into a model folder, or go on where an earlier call was stopped; returns the history.

    `begin` is the folder of a VQ-VAE of the same network, whose weights and codebook it begins with.
    """
    model, training, out = part.model, part.training, Path(out)
    weights = weights_to_begin_with(Path(begin), out, {"kind": kind}, build(kind, model)) if begin else None

    def make_task(device: torch.device) -> VQVAETask:
        vqvae = build(kind, model)
        if weights:
            vqvae.load_state_dict(weights)
        pixels = cohort["train"].images[linspace_rows(len(cohort["train"]), 512)].astype(np.float32) / 255
        vqvae.mean.fill_(float(pixels.mean()))
        vqvae.variance.fill_(float(pixels.var()))
        return VQVAETask(vqvae, cohort, device, training.seed, out)

    first = as_dict(dataclasses.replace(model, adversarial=0.0))  # the second stage changes nothing of it
    saved = {"kind": kind, "model": first, "size": cohort.size}
    saved |= {"begin": content_hash(Path(begin) / WEIGHTS)} if begin else {}
    history = resume_or_fit(make_task, cohort, training, out, saved, progress, crop=True)
    if model.adversarial:
        train_crisp(cohort, out, part, progress=progress)
    if main_process():
        write_cards(out, cohort.info)
    return history
