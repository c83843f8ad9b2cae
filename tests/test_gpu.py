"""Ready for a GPU: what a CPU can tell of it, and, where there is one, the correctness section of benchmarks/gpu.py."""

import math
import os
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import PROJECT
from safetensors.torch import load_file
from test_loop import MODEL, made_cohort
from test_priors import background_around, seed, tiny
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from oasis_lib import device
from oasis_lib.config import PROFILES, CodeGANConfig, Part, PixelCNNConfig, TrainingConfig, TransformerConfig
from oasis_lib.evaluation import reconstruction
from oasis_lib.models import build, load, transformer
from oasis_lib.models.prior import Autoregressive
from oasis_lib.storage import read_json
from oasis_lib.training import Batches, encode_images, loop, train_prior, train_vqvae

sys.path.insert(0, str(PROJECT / "benchmarks"))
import gpu
from gpu_bench import Waits

STEPS = TrainingConfig(steps=12, batch=8, precision="no", validate_every=12)
PRIORS = {
    "transformer": TransformerConfig(width=16, layers=1, heads=2),
    "pixelcnn": PixelCNNConfig(hidden=8, layers=4),
    "codegan": CodeGANConfig(hidden=8, noise=8),
}
ABSENT = ("IPython", "jupyter_client", "ipykernel", "nilearn", "nibabel", "papermill", "matplotlib", "umap")
BARE = f"""
import runpy, sys
sys.modules |= dict.fromkeys({ABSENT})  # None: as if not installed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_script_for_a_gpu_runs_on_a_cpu_without_what_a_bare_machine_lacks(tmp_path):
    """All kinds in bf16 and float32, stopped and resumed, compiled, sampled, evaluated: what a GPU will be asked."""
    words = [
        sys.executable,
        "-c",
        BARE,
        str(PROJECT / "benchmarks/gpu.py"),
        "--device",
        "cpu",
        "--tiny",
        "--out",
        "gpu.json",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = read_json(tmp_path / "gpu.json")
    assert list(found) == list(gpu.DEADLINES) and "s in all; every number is in gpu.json" in done.stdout
    for section, numbers in found.items():
        assert "failed" not in numbers, (section, numbers["failed"])
        assert all(value.get("ok", True) for value in numbers.values() if isinstance(value, dict)), (section, numbers)
    assert all(row["weights differ"] == 0 for name, row in found["training"].items() if name != "took_s"), found[
        "training"
    ]


def test_a_section_that_fails_or_takes_too_long_is_told_and_the_others_go_on():
    assert gpu.run(lambda _: {"a": 1}, None, 5)["a"] == 1
    assert gpu.run(lambda _: 1 / 0, None, 5)["failed"].startswith("ZeroDivisionError: division by zero (test_gpu.py:")
    assert "not done after 1 s" in gpu.run(lambda _: time.sleep(5), None, 1)["failed"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives_and_is_never_waited_for(tmp_path):
    found = gpu.main(["--only", "correctness,training,waits", "--out", str(tmp_path / "gpu.json")])
    for section, numbers in found.items():
        assert "failed" not in numbers, (section, numbers["failed"])
        assert all(value["ok"] for value in numbers.values() if isinstance(value, dict)), (section, numbers)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    cohort = made_cohort(folder)
    train_vqvae(cohort, folder / "vqvae", Part(MODEL, replace(STEPS)), progress=False)
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
    steps = [
        dict(after - before) for before, after in zip(seen[5:], seen[6:])
    ]  # the first ones start the codebook and the clock
    assert len(steps) >= 5 and not any(steps), steps
    assert waits.found, "what is done before the first step and in validation is seen, or the counter is blind"


class Doubles(TorchDispatchMode):
    """In which functions of the library tensors of float64 come about: Apple's GPU has none."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if getattr(out, "dtype", None) == torch.float64:
            self.found |= {f.name for f in [f for f in traceback.extract_stack() if "oasis_lib" in f.filename][-1:]}
        return out


@pytest.mark.parametrize("kind", ["vqvae", *PRIORS])
def test_float64_is_used_on_the_cpu_alone(kind, world, tmp_path):
    cohort, vqvae = world
    with Doubles() as doubles:
        if kind == "vqvae":
            train_vqvae(cohort, tmp_path / kind, Part(replace(MODEL, adversarial=0.5), STEPS), progress=False)
        else:
            train_prior(kind, cohort, vqvae, tmp_path / kind, Part(PRIORS[kind], STEPS), progress=False)
            load(tmp_path / kind).sample(2, slice_index=0)
        encode_images(load(vqvae), cohort["test"].images[:2])
    assert doubles.found <= {"_band", "perplexity", "fit"}, "these three take the CPU"


@torch.no_grad()
def test_a_cached_step_is_one_graph_whose_memory_stays_where_it_is():
    """As a CUDA graph wants it: no break, nothing compiled again from place to place, nothing read back."""
    prior, codes = tiny("transformer", framed=True), background_around((6, 5), 7)[:3].flatten(1)
    labels, inside = prior.labels(3, torch.tensor([0, 2, -1]), 1), prior.background.positions()
    work, growing, plain = prior.cached(*labels), prior.cached(*labels), Autoregressive.stepper(prior, *labels)
    counter, at, where, waits = CompileCounter(), inside[:1] * 0, set(), Waits()
    torch._dynamo.reset()
    compiled = torch.compile(prior.cached(*labels), fullgraph=True, backend=counter)

    def note(_block, given):
        where.update((kept.data_ptr(), kept.shape) for cache in given[1:2] for kept in cache)

    for block in prior.trunk.blocks:
        block.register_forward_pre_hook(note)
    for place in range(len(inside)):
        at.fill_(place)
        with waits:
            logits = work(codes, at)
        torch.testing.assert_close(logits, plain(codes, int(inside[place])), atol=1e-4, rtol=0)
        torch.testing.assert_close(growing(codes, at, place + 1), logits, atol=1e-5, rtol=0)
    assert not waits.found and len(where) == 2 * 2 * 2, "keys and values of two blocks, for each of two samplings"
    prior.trunk.blocks.apply(lambda block: block._forward_pre_hooks.clear())
    for place in range(len(inside)):
        at.fill_(place)
        torch.testing.assert_close(compiled(codes, at), plain(codes, int(inside[place])), atol=1e-4, rtol=0)
    assert counter.frame_count == 1, "compiled again"


def test_a_recorded_step_draws_what_the_plain_one_does(monkeypatch):
    """What CUDA does, with a recording that calls."""
    prior, made = tiny("transformer", framed=True), []
    asked = {"slice_index": torch.tensor([0, 1, 2, -1, 1]), "cdr": 1, "batch": 2}
    plain = prior.sample(5, generator=seed(), **asked)
    monkeypatch.setattr(transformer, "GRAPHS", ("cpu",))
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda work, given: made.append(work(*given)) or work)
    assert torch.equal(prior.sample(5, generator=seed(), **asked), plain) and len(made) == 3


@pytest.mark.parametrize("kind", ["transformer", "pixelcnn"])
def test_one_switch_puts_sampling_and_training_into_half_precision(kind, monkeypatch):
    prior, kinds, linear = tiny(kind, framed=True), set(), torch.nn.functional.linear
    single = prior.sample(64, generator=seed())
    monkeypatch.setenv("OASIS_PRECISION", "bf16")
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *given: kinds.add((out := linear(*given)).dtype) or out)
    half = prior.sample(64, generator=seed())
    assert kinds == {torch.bfloat16} and 0.7 < float((single == half).float().mean())
    assert loop.accelerator_for(replace(STEPS, precision="auto")).mixed_precision == "bf16"
    assert loop.accelerator_for(STEPS).mixed_precision == "no", "who asks for a precision gets it"
    monkeypatch.setenv("OASIS_PRECISION", "half")
    with pytest.raises(ValueError, match="OASIS_PRECISION='half' must be auto, bf16 or no"):
        prior.sample(1)


class Card(NamedTuple):
    type: str = "cuda"


def test_a_card_takes_as_many_maps_and_keeps_as_much_of_a_step_as_fits(monkeypatch):
    full = PROFILES["full"].transformer.model
    monkeypatch.setattr(device, "card_memory", lambda _: (7e9, 8e9))
    monkeypatch.setattr(torch, "device", lambda given: given)
    size = 4 * 32 * 32 * 2 * full.layers * full.width
    assert 50 < (few := device.together(Card(), 64, size)) < 512 and few * size < 7e9
    assert device.together(Card("cpu"), 64, size) == 64 and device.step_room(Card("cpu")) == math.inf
    assert device.step_room(Card()) == 0.4 * 7e9
    monkeypatch.setattr(device, "card_memory", lambda _: (130e9, 139e9))
    assert device.together(Card(), 64, size) == 512 and device.step_room(Card()) == math.inf


@pytest.mark.parametrize("kind", ["vqvae", *PRIORS])
def test_what_does_not_fit_a_card_waits_in_memory_and_changes_no_weight(kind, world, tmp_path, monkeypatch):
    """A card of 8 GB, pretended: a step of the CPU may keep 200 kB of what its backward pass needs."""
    cohort, vqvae = world

    def trained(name):
        if kind == "vqvae":
            train_vqvae(cohort, tmp_path / name, Part(MODEL, STEPS), progress=False)
        else:
            train_prior(kind, cohort, vqvae, tmp_path / name, Part(PRIORS[kind], STEPS), progress=False)
        return load_file(tmp_path / name / "model.safetensors")

    plain, copied = trained("plain"), []
    monkeypatch.setattr(loop, "step_room", lambda _: 2e5)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: copied.append(x.nbytes) or x.to("cpu", copy=True))
    spilled = trained("spilled")
    assert sum(copied) > 1e6 and all(torch.equal(plain[name], spilled[name]) for name in plain)


def test_a_compiled_network_may_wait_in_memory_too(monkeypatch):
    network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))
    x, copied = torch.ones(4, 8), []
    plain = torch.autograd.grad(network(x).sum(), network.parameters())
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: copied.append(x.nbytes) or x.to("cpu", copy=True))
    network.compile(backend="aot_eager")
    with device.spilled(0.0):
        loss = network(x).sum()
    torch.testing.assert_close(torch.autograd.grad(loss, network.parameters()), plain)
    assert len(copied) >= 2


def test_the_clock_starts_after_the_first_steps(tmp_path, monkeypatch):
    batch = Batches.batch

    def slow(self, step):
        time.sleep(0.5 if step < loop.WARM_UP else 0.0)
        return batch(self, step)

    monkeypatch.setattr(Batches, "batch", slow)
    training = replace(STEPS, steps=6, validate_every=1)
    history = train_vqvae(made_cohort(tmp_path), tmp_path / "m", Part(MODEL, training), progress=False)
    assert history["seconds"].iloc[-1] < 0.9 and (history["seconds"].iloc[: loop.WARM_UP] < 0.05).all()
    assert history["images_per_second"].isna().sum() == loop.WARM_UP


def test_validation_and_writing_are_off_the_clock(tmp_path, monkeypatch):
    save = loop.save_model
    monkeypatch.setattr(loop, "save_model", lambda *given: (time.sleep(0.5), save(*given)))
    training = replace(STEPS, steps=6, validate_every=1)
    history = train_vqvae(made_cohort(tmp_path), tmp_path / "m", Part(MODEL, training), progress=False)
    assert history["seconds"].iloc[-1] < 2, "six times half a second"


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
    """What autograd keeps of one step in float32, parameters and their averages and moments.

    On the meta device, at no cost.
    """
    profile, seen = PROFILES["full"], {}
    side = profile.cohort.size // profile.vqvae.model.factor

    def keep(tensor):
        storage = tensor.untyped_storage()
        seen[id(storage)] = (storage, storage.nbytes())
        return tensor

    for kind in ("vqvae", "transformer", "pixelcnn"):
        part, over = getattr(profile, kind), {"grid": (side, side), "slice_indices": 64, "cdrs": 4}
        over |= {"codebook_size": profile.vqvae.model.codebook_size}
        with torch.device("meta"):
            model = build(kind, part.model, **over if kind != "vqvae" else {})
            codes = torch.zeros(part.training.batch, side, side, dtype=torch.int64)
            images, everywhere = torch.zeros(len(codes), 1, *[profile.cohort.size] * 2), torch.arange(side * side)
        seen.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            if kind == "vqvae":
                model(images, quantize=False).images.abs().mean()
            else:
                model.background.positions = lambda everywhere=everywhere: everywhere
                model(codes, codes[:, 0, 0], codes[:, 0, 0]).float().logsumexp(-1).mean()
        held = sum(size for _, size in seen.values()) + 5 * 4 * sum(p.numel() for p in model.parameters())
        assert 1e8 < held < device.ENOUGH, (kind, held)
