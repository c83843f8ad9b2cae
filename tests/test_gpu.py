"""Ready for a GPU: what a CPU can tell of it, and, where there is one, the correctness section of benchmarks/gpu.py."""

import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_loop import MODEL, made_cohort
from torch.utils._python_dispatch import TorchDispatchMode

from oasis_lib.config import PROFILES, CodeGANConfig, Part, PixelCNNConfig, TrainingConfig, TransformerConfig
from oasis_lib.evaluation import reconstruction
from oasis_lib.models import build, load
from oasis_lib.training import Batches, loop, train_prior, train_vqvae

STEPS = TrainingConfig(steps=12, batch=8, shift=1, precision="no", validate_every=12, warp=1.0)
PRIORS = {
    "transformer": TransformerConfig(width=16, layers=1, heads=2),
    "pixelcnn": PixelCNNConfig(hidden=8, layers=4),
    "codegan": CodeGANConfig(hidden=8, noise=8),
}
WAITING = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "_unique2")


class Waits(TorchDispatchMode):
    """Counts operations whose result a GPU must hand to the host before the next can be asked for."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[-1].split(".")[0]
        by_mask = name.startswith("index") and any(getattr(x, "dtype", None) == torch.bool for x in flattened(args[1:]))
        if name in WAITING or by_mask:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


def flattened(values):
    for value in values:
        yield from flattened(value) if isinstance(value, list | tuple) else [value]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    cohort = made_cohort(folder)
    train_vqvae(cohort, folder / "vqvae", Part(MODEL, replace(STEPS, warp=0.0)), progress=False)
    return cohort, folder / "vqvae"


@pytest.mark.parametrize("kind", ["vqvae", *PRIORS])
def test_a_training_step_reads_nothing_back(kind, world, tmp_path, monkeypatch):
    cohort, vqvae = world
    waits, seen, batch = Waits(), [], Batches.batch

    def noted(self, step):
        seen.append(Counter(waits.found))
        return batch(self, step)

    monkeypatch.setattr(Batches, "batch", noted)
    with waits:
        if kind == "vqvae":
            train_vqvae(cohort, tmp_path / kind, Part(replace(MODEL, autoencoder_steps=2), STEPS), progress=False)
        else:
            train_prior(kind, cohort, vqvae, tmp_path / kind, Part(PRIORS[kind], STEPS), progress=False)
    steps = [dict(after - before) for before, after in zip(seen[5:], seen[6:])]  # the first ones start the codebook and the clock
    assert len(steps) >= 5 and not any(steps), steps
    assert waits.found, "what is done before the first step and in validation is seen, or the counter is blind"


def test_the_clock_starts_after_the_first_steps(tmp_path, monkeypatch):
    batch = Batches.batch

    def slow(self, step):
        time.sleep(0.5 if step < loop.WARM_UP else 0.0)
        return batch(self, step)

    monkeypatch.setattr(Batches, "batch", slow)
    training = replace(STEPS, steps=6, validate_every=1, warp=0.0)
    history = train_vqvae(made_cohort(tmp_path), tmp_path / "m", Part(MODEL, training), progress=False)
    assert history["seconds"].iloc[-1] < 0.9 and (history["seconds"].iloc[: loop.WARM_UP] < 0.05).all()
    assert history["images_per_second"].isna().sum() == loop.WARM_UP


def test_validation_and_writing_are_off_the_clock(tmp_path, monkeypatch):
    save = loop.save_model
    monkeypatch.setattr(loop, "save_model", lambda *given: (time.sleep(0.5), save(*given)))
    training = replace(STEPS, steps=6, validate_every=1, warp=0.0)
    history = train_vqvae(made_cohort(tmp_path), tmp_path / "m", Part(MODEL, training), progress=False)
    assert history["seconds"].iloc[-1] < 0.5


def test_the_cpu_is_taken_where_it_is_asked_for_though_there_is_a_gpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    asked = []
    probe = loop.PartialState
    monkeypatch.setattr(loop, "PartialState", lambda cpu: (asked.append(cpu), probe(cpu=cpu))[1])
    assert loop.accelerator_for(STEPS).device.type == "cpu" and asked == [True]


def test_known_tokens_are_shown_and_not_found_again(world):
    cohort, folder = world
    model, images = load(folder), cohort["test"].images[:2]
    known = np.full((2, 8, 8), 3)
    shown = reconstruction.look(model, images, known)
    assert (shown["codes"] == known).all() and not (reconstruction.look(model, images)["codes"] == known).all()


def test_a_full_step_fits_a_small_card():
    """What autograd keeps of one step in float32, parameters and their averages and moments: on the meta device, at no cost."""
    profile, seen = PROFILES["full"], {}
    side = profile.cohort.size // profile.vqvae.model.factor

    def keep(tensor):
        storage = tensor.untyped_storage()
        seen[id(storage)] = (storage, storage.nbytes())
        return tensor

    for kind in ("transformer", "pixelcnn"):
        part = getattr(profile, kind)
        with torch.device("meta"):
            model = build(
                kind, part.model, grid=(side, side), codebook_size=profile.vqvae.model.codebook_size, slice_indices=64, cdrs=4
            )
        everywhere = torch.arange(side * side, device="meta")
        model.background.positions = lambda everywhere=everywhere: everywhere
        seen.clear()
        codes = torch.zeros(part.training.batch, side, side, dtype=torch.int64, device="meta")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(codes, codes[:, 0, 0], codes[:, 0, 0]).float().logsumexp(-1).mean()
        held = sum(size for _, size in seen.values()) + 5 * 4 * sum(p.numel() for p in model.parameters())
        assert 1e8 < held < 12e9, (kind, held)
