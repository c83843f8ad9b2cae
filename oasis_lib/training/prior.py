"""Training priors on codes that are made afresh at every step: shifted, flipped images through the frozen VQ-VAE."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn import functional as F

from oasis_lib.cards import write_cards
from oasis_lib.checkpoint import WEIGHTS, read_model
from oasis_lib.cohort import Cohort
from oasis_lib.config import PRIORS, Part, TrainingConfig, as_dict, near
from oasis_lib.models import VQVAE, build, load
from oasis_lib.models.prior import Autoregressive, Prior
from oasis_lib.paths import atomic
from oasis_lib.training.codes import codes_of, encode_images
from oasis_lib.training.data import Batch, Batches, ends, evenly, flips, rating_index, seeded, swapped
from oasis_lib.training.loop import Task
from oasis_lib.training.once import fit_once
from oasis_lib.training.vqvae import in_channels

VALIDATED = 192  # slices looked at while training; the reported numbers are of all
BATCH = 32  # of validation
COUNTED = 4096  # training slices whose tokens are counted before the first step
SHIFTED = 96  # training slices that a model is shown before the first step in four other places, beside those as they are
VARIED = 0.7  # of the run: from here on slices are as they are, for a prior draws what it was shown last
OPEN = 0.1  # how often a label is left open in training, so that it may be at sampling
SNAPSHOTS, SHOWN = "snapshots.npz", 4  # a few maps of fixed noise, drawn whenever the number of steps has doubled


class PriorTask(Task):
    """Any prior: a child says what its loss is, and how it is validated."""

    learnt = False  # whether the model came with weights of an earlier training

    def __init__(self, model: Prior, vqvae: VQVAE, cohort: Cohort, device: torch.device, training: TrainingConfig, out: Path):
        super().__init__(model)
        seed, self.shift, self.cohort, self.flips = training.seed, training.shift, cohort, flips(cohort, training)
        self.out, self.step = out, 0
        self.vqvae, self.device, self.seed = vqvae.to(device).eval().requires_grad_(False), device, seed
        rows = evenly(len(cohort["validate"]), VALIDATED)
        self.codes = self._all("validate")[rows].long()
        self.level = torch.from_numpy(cohort["validate"].levels[rows].astype(np.int64)).to(device)
        self.rating = torch.from_numpy(rating_index(cohort, "validate")[rows]).to(device)
        self.still = not (
            training.shift or training.intensity or training.warp
        )  # then each head is encoded once, as it is and mirrored
        sides = [False, True] if self.still and self.flips else [False]
        self.maps = torch.stack([self._all("train", side) for side in sides])  # (1 or 2, N, h, w)

    def _all(self, split: str, mirrored: bool = False) -> Tensor:
        return torch.from_numpy(codes_of(self.vqvae, self.cohort, split, self.device, mirrored=mirrored)).to(self.device)

    @torch.no_grad()
    def encode(self, batch: Batch) -> Tensor:
        """Codes as everywhere else: half precision would pick other entries."""
        varied = self.fraction < VARIED
        if self.still or not varied:
            return self.maps[(batch.mirrored & varied).long(), batch.rows].long()
        with torch.autocast(self.device.type, enabled=False):
            return self.vqvae.encode(in_channels(batch.images, self.vqvae))

    def labels(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Level and rating, each left open now and then."""
        draws = torch.rand(2, len(batch.rows), generator=seeded(self.seed, 5, step)).to(self.device)
        return tuple(label.masked_fill(draw < OPEN, -1) for label, draw in zip((batch.level, batch.rating), draws))

    def begin(self, batch: Batch) -> None:
        """Show the model some training maps, also as training varies them; forget an earlier run's samples."""
        (self.out / SNAPSHOTS).unlink(missing_ok=True)
        if self.learnt:
            return
        train = self.cohort["train"]
        rows = evenly(len(train), COUNTED)
        level = torch.from_numpy(train.levels[rows].astype(np.int64)).to(self.device)
        varied = torch.cat([self.maps[1:, rows].flatten(0, 1).long(), self._shifted()])
        self.model.start(self.maps[0, rows].long(), level, varied)

    def _shifted(self) -> Tensor:
        """A few heads at the corners of where training shifts them, on either side; none where it doesn't."""
        train = self.cohort["train"].images
        images = train[evenly(len(train), SHIFTED)] if self.shift else train[:0]
        if self.flips:
            images = np.concatenate([images, swapped(images, ends(train[evenly(len(train), 256)]))])
        corners = [(y * self.shift, x * self.shift) for y in (-1, 1) for x in (-1, 1)]
        moved = np.concatenate([np.roll(images, move, axis=(1, 2)) for move in corners])
        codes = encode_images(self.vqvae, moved, self.device) if len(moved) else np.zeros((0, *self.codes.shape[1:]))
        return torch.from_numpy(codes).long().to(self.device)

    def after_step(self, step: int) -> None:
        self.step = step + 1

    def measure(self, model: Prior) -> dict[str, float]:
        raise TypeError(f"{type(self).__name__} has no validation")

    @torch.no_grad()
    def validate(self, model: Prior) -> dict[str, float]:
        measured = self.measure(model)
        if PartialState().is_main_process:
            keep_snapshot(self.out / SNAPSHOTS, model, self.step)
        return measured


class LikelihoodTask(PriorTask):
    """Autoregressive priors: the bits of an image, and nothing else."""

    def loss(self, part: str, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        codes = self.encode(batch)
        logits = self.parts[part](codes, *self.labels(batch, step))
        targets = self.model.targets(codes)
        loss = F.cross_entropy(logits.float().flatten(0, -2), targets.flatten())
        return loss, {"bits": loss * targets[0].numel() / math.log(2)}

    def measure(self, model: Autoregressive) -> dict[str, float]:
        nats = model.nll(self.codes, self.level, self.rating, batch=BATCH)
        bits = float(nats.mean()) / math.log(2)
        return {"validate_bits": bits, "validate_nats_a_code": float(nats.mean()) / self.codes[0].numel(), "score": -bits}


def task_of(kind: str) -> type[PriorTask]:
    if kind == "codegan":
        from oasis_lib.training.gan import GANTask  # here, because it builds on this module

        return GANTask
    if kind not in PRIORS:
        raise ValueError(f"no prior {kind!r}; there are {', '.join(PRIORS)}{near(kind, PRIORS)}")
    return LikelihoodTask


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def weights_of(folder: Path, wanted: dict[str, Any]) -> dict[str, Tensor]:
    """An earlier prior's, if it is over the same codes as the one `wanted`, and made alike."""
    state, config = read_model(folder)
    for key in ("kind", "vqvae", "grid", "levels", "ratings"):
        if config.get(key) != wanted[key]:
            raise ValueError(f"{folder} can't be begun with: its {key} is {config.get(key)}, not {wanted[key]}")
    shapes = {name: value.shape for name, value in state.items()}
    fresh = build(wanted["kind"], wanted["model"], **{key: wanted[key] for key in ("grid", "entries", "levels", "ratings")})
    if shapes != {name: value.shape for name, value in fresh.state_dict().items()}:
        raise ValueError(
            f"{folder} can't be begun with: its network is made otherwise; leave its settings as they are in config.json"
        )
    return state


def keep_snapshot(path: Path, model: Prior, step: int) -> None:
    """Add maps of this moment's weights to the file, if the steps have doubled since the last: the seed is always the same."""
    before = dict(np.load(path)) if path.is_file() else {}
    steps = before.get("steps", np.zeros(0, np.int64))
    steps, maps = steps[steps < step], before.get("codes", np.zeros((0, SHOWN, *model.grid), np.int16))
    if len(steps) and step < 2 * steps[-1]:
        return
    level = (torch.arange(SHOWN) * 2 + 1) * model.levels // (2 * SHOWN) if model.levels else None
    drawn = model.sample(SHOWN, level=level, generator=seeded(0)).cpu().numpy().astype(np.int16)
    with atomic(path) as beside, beside.open("wb") as file:
        np.savez(file, steps=np.append(steps, step), codes=np.concatenate([maps[: len(steps)], drawn[None]]))


def train_prior(
    kind: str, cohort: Cohort, vqvae: str | Path, out: str | Path, part: Part, *, begin: str | Path = "", progress: bool = True
) -> pd.DataFrame:
    """Train a prior over the codes of the VQ-VAE in folder `vqvae`, or go on where an earlier call was stopped.

    `begin` is the folder of a prior over the same codes, whose weights it begins with.
    """
    task = task_of(kind)
    vqvae, out, training = Path(vqvae), Path(out), part.training
    encoder = load(vqvae)
    config, entries, side = part.model, encoder.config.entries, cohort.size // encoder.config.factor
    if hasattr(config, "code_dim"):
        config = dataclasses.replace(config, code_dim=encoder.config.code_dim)
    shape = {"grid": [side, side], "entries": entries, "levels": cohort.levels, "ratings": len(cohort.ratings)}
    made = {"kind": kind, "model": as_dict(config), **shape, "vqvae": digest(vqvae)}
    if begin and Path(begin).absolute() == out.absolute():
        raise ValueError(f"{out} can't be begun with and written to; give another folder")
    weights = weights_of(Path(begin), made) if begin else None
    saved = made | {"cohort": cohort.hash, "synthetic": cohort.synthetic} | ({"begin": digest(Path(begin))} if begin else {})

    def make_task(device: torch.device) -> PriorTask:
        ready = task(build(kind, config, **shape), load(vqvae), cohort, device, training, out)
        if weights:
            ready.model.load_state_dict(weights)
            ready.learnt = True
        return ready

    def make_batches(*where) -> Batches:
        return Batches(cohort, "train", training, *where)

    history = fit_once(make_task, make_batches, training, out, saved, progress)
    write_cards(out, cohort.info)
    return history
