"""Training priors: they learn, stop and go on exactly, keep the best, and leave what notebooks read."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_loop import made_cohort
from torch.nn import functional as F

from oasis_lib.config import (
    CodeGANConfig,
    Part,
    PixelCNNConfig,
    TrainingConfig,
    TransformerConfig,
    VQVAEConfig,
)
from oasis_lib.evaluation import codebook, likelihood
from oasis_lib.models import VQVAE, build, load
from oasis_lib.training import codes_of, encode_cohort, encode_images, loop, to_images, train_prior, train_vqvae
from oasis_lib.training.data import Batches
from oasis_lib.training.tasks import LikelihoodTask

MODELS = {
    "transformer": TransformerConfig(width=16, layers=1, heads=2, code_dim=4),
    "pixelcnn": PixelCNNConfig(hidden=8, layers=4, code_dim=4),
    "codegan": CodeGANConfig(hidden=8, noise=8),
}
TRAINING = TrainingConfig(steps=8, batch=8, precision="no", validate_every=4)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A cohort of discs, and a VQ-VAE that has seen them."""
    folder = tmp_path_factory.mktemp("world")
    cohort = made_cohort(folder)
    model = VQVAEConfig(codebook_size=16, code_dim=4, hidden=16, blocks=1, autoencoder_steps=5)
    train_vqvae(cohort, folder / "vqvae", Part(model, replace(TRAINING, steps=40)), progress=False)
    return cohort, folder / "vqvae"


@pytest.mark.parametrize("kind", MODELS)
def test_training_leaves_a_model_that_loads_draws_and_is_not_trained_again(kind, world, tmp_path):
    cohort, vqvae = world
    history = train_prior(kind, cohort, vqvae, tmp_path / kind, Part(MODELS[kind], TRAINING), progress=False)
    assert list(history["step"]) == [4, 8] and np.isfinite(history["score"]).all()
    prior = load(tmp_path / kind)
    assert (prior.grid, prior.codebook_size, prior.slice_indices, prior.cdrs) == ((8, 8), 16, 4, 1)
    assert prior.sample(3, slice_index=1, cdr=0).shape == (3, 8, 8)
    shots = likelihood.snapshots(tmp_path / kind)
    assert list(shots) == [4, 8] and shots[8].shape == (4, 8, 8)
    stamp = (tmp_path / kind / "model.safetensors").stat().st_mtime_ns
    again = train_prior(kind, cohort, vqvae, tmp_path / kind, Part(MODELS[kind], TRAINING), progress=False)
    assert len(again) == len(history) and (tmp_path / kind / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_that_is_stopped_ends_with_the_same_weights(kind, world, tmp_path, monkeypatch):
    cohort, vqvae = world
    part = Part(MODELS[kind], TRAINING)
    train_prior(kind, cohort, vqvae, tmp_path / "whole", part, progress=False)
    monkeypatch.setattr(loop, "SAVE_EVERY", -1)  # at every validation
    schedule, steps = loop._schedule, []

    def stop(fraction, warmup):
        steps.append(fraction)
        if fraction > 0.7:
            raise KeyboardInterrupt
        return schedule(fraction, warmup)

    monkeypatch.setattr(loop, "_schedule", stop)
    with pytest.raises(KeyboardInterrupt):
        train_prior(kind, cohort, vqvae, tmp_path / "stopped", part, progress=False)
    monkeypatch.setattr(loop, "_schedule", schedule)
    train_prior(kind, cohort, vqvae, tmp_path / "stopped", part, progress=False)
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    for name, value in whole.items():
        torch.testing.assert_close(stopped[name], value, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", ["transformer", "pixelcnn"])
def test_a_prior_can_learn_eight_maps_by_heart(kind):
    torch.manual_seed(0)
    models = {
        "transformer": TransformerConfig(width=32, layers=2, heads=2, dropout=0.0, token_dropout=0.0),
        "pixelcnn": PixelCNNConfig(hidden=16, layers=4, dropout=0.0),
    }
    prior = build(kind, models[kind], grid=(4, 4), codebook_size=16, slice_indices=8)
    maps, slice_index = torch.randint(16, (8, 4, 4)), torch.arange(8)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(150):
        loss = F.cross_entropy(prior(maps, slice_index).flatten(0, -2), maps.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bits = prior.eval().nll(maps, slice_index).mean() / math.log(2)
    assert bits < 0.5, "of 64 bits"
    assert torch.equal(prior.sample(8, slice_index=slice_index), maps)
    assert prior.nll(maps, slice_index.roll(1)).mean() / math.log(2) > 10, "another label, another map"


def test_priors_start_from_what_counting_tells(world):
    cohort, vqvae = world
    codes = torch.from_numpy(encode_cohort(vqvae, cohort)["train"].astype(np.int64))
    for kind in ("transformer", "pixelcnn"):
        prior = build(kind, MODELS[kind], grid=(8, 8), codebook_size=16).eval()
        blind = prior.nll(codes).mean()
        prior.start(codes)
        assert prior.nll(codes).mean() < blind * 0.6


@pytest.mark.parametrize("kind", MODELS)
def test_a_prior_goes_on_from_another_ones_weights(kind, world, tmp_path):
    cohort, vqvae = world
    part = Part(MODELS[kind], TRAINING)
    train_prior(kind, cohort, vqvae, tmp_path / "first", part, progress=False)
    hardly = Part(part.model, replace(TRAINING, steps=1, warmup=0.0, lr=1e-12, weight_decay=0.0))
    train_prior(kind, cohort, vqvae, tmp_path / "second", hardly, begin=tmp_path / "first", progress=False)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    for name, _ in load(tmp_path / "first").named_parameters():
        torch.testing.assert_close(
            second[name], first[name], rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_vqvae_goes_on_from_another_ones_weights_and_so_does_a_prior_over_it(world, tmp_path):
    cohort, vqvae = world
    first = Part(MODELS["transformer"], TRAINING)
    train_prior("transformer", cohort, vqvae, tmp_path / "first", first, progress=False)
    hardly = replace(TRAINING, steps=1, warmup=0.0, lr=1e-12, weight_decay=0.0, ema=0.0)
    model = load(vqvae).config
    train_vqvae(cohort, tmp_path / "vqvae", Part(model, hardly), begin=vqvae, progress=False)
    first_weights, weights = (dict(load(folder).named_parameters()) for folder in (vqvae, tmp_path / "vqvae"))
    for name, value in weights.items():
        torch.testing.assert_close(value, first_weights[name], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="give another folder"):
        train_vqvae(cohort, vqvae, Part(model, hardly), begin=vqvae, progress=False)
    part = Part(first.model, replace(hardly, seed=1))
    train_prior(
        "transformer", cohort, tmp_path / "vqvae", tmp_path / "second", part, begin=tmp_path / "first", progress=False
    )
    assert load(tmp_path / "second") is not None


def test_weights_over_other_codes_or_of_another_network_are_not_begun_with(world, tmp_path):
    cohort, vqvae = world
    part = Part(MODELS["transformer"], replace(TRAINING, steps=1))
    train_prior("transformer", cohort, vqvae, tmp_path / "first", part, progress=False)
    other = tmp_path / "vqvae"
    train_vqvae(
        cohort,
        other,
        Part(VQVAEConfig(codebook_size=16, code_dim=4, hidden=16, blocks=1), part.training),
        progress=False,
    )
    wider = Part(replace(part.model, width=32), part.training)
    for folder, settings, words in ((other, part, "its vqvae is"), (vqvae, wider, "made otherwise")):
        with pytest.raises(ValueError, match=f"first can't be begun with.*{words}"):
            train_prior(
                "transformer", cohort, folder, tmp_path / "second", settings, begin=tmp_path / "first", progress=False
            )
    with pytest.raises(ValueError, match="give another folder"):
        train_prior("transformer", cohort, vqvae, tmp_path / "first", part, begin=tmp_path / "first", progress=False)
    assert not (tmp_path / "second").exists() and load(tmp_path / "first") is not None


def test_the_wrong_kind_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="no prior 'transfomer'.*did you mean 'transformer'"):
        train_prior("transfomer", *world, tmp_path, Part(MODELS["transformer"], TRAINING))


def test_bits_are_counted_by_subject_and_beside_frequencies(world, tmp_path):
    from oasis_lib.config import profile
    from oasis_lib.run import Run

    cohort, vqvae = world
    run = Run(tmp_path, profile("smoke"), tmp_path)
    run.__dict__["cohort"] = cohort
    codes = encode_cohort(vqvae, cohort)
    priors = {
        "transformer": build(
            "transformer", MODELS["transformer"], grid=(8, 8), codebook_size=16, slice_indices=4, cdrs=1
        ).eval()
    }
    priors["transformer"].start(torch.from_numpy(codes["train"].astype(np.int64)))
    table = likelihood.bits_table(likelihood.likelihoods(run, priors, codes), 64, 100)
    assert set(table["prior"]) == {"frequencies", "frequencies by position", "transformer"} and len(table) == 9
    assert (table["low"] <= table["bits"]).all() and (table["bits"] <= table["high"]).all()
    test = table[table["split"] == "test"].set_index("prior")["bits"]
    assert test["transformer"] < test["frequencies"]
    drawn = likelihood.independent(codes["train"], cohort["train"].slice_indices, np.arange(4), 0)
    agree = [(np.asarray(codes["train"])[:, None] == maps[None]).mean() for maps in drawn.values()]
    assert len(drawn) == 3 and agree[0] < agree[1], "tokens by position are those of training subjects more often"
    found = likelihood.bit_maps(priors["transformer"], codes["test"], cohort["test"].slice_indices)
    assert found.shape == (24, 8, 8) and found.min() >= 0
    moved = likelihood.influence(priors["transformer"], codes["test"][0], 4, 4)
    half = likelihood.influence(priors["transformer"], codes["test"][0], 4, 4, every=2)
    np.testing.assert_allclose(half, moved[::2, ::2], atol=1e-6)
    assert moved.shape == (8, 8) and moved.ravel()[4 * 8 + 4 :].max() == 0
    costs = likelihood.costs(priors, codes["validate"], cohort["validate"].slice_indices, 8)
    assert list(costs["prior"]) == ["other subjects", "transformer"] and costs["misplaced"].between(0, 1).all()


def test_slices_and_their_mirror_images_are_encoded_once_for_all_priors(world, tmp_path, monkeypatch):
    cohort, folder = world
    monkeypatch.setitem(cohort.info, "left_right", "columns")
    cpu = torch.device("cpu")
    asked, encode = [], VQVAE.tokens

    def task(kind: str) -> LikelihoodTask:
        model = build(kind, MODELS[kind], grid=(8, 8), codebook_size=16, slice_indices=4, cdrs=1)
        return LikelihoodTask(model, load(vqvae), cohort, cpu, TRAINING, tmp_path)

    vqvae = tmp_path / "vqvae"
    shutil.copytree(folder, vqvae)
    monkeypatch.setattr(VQVAE, "tokens", lambda self, images: asked.append(len(images)) or encode(self, images))
    first, batches = task("transformer"), Batches(cohort, TRAINING, cpu)
    first.begin(batches.batch(0))
    asked.clear()
    other = task("pixelcnn")
    assert not asked, "what one prior had encoded, the next finds beside the VQ-VAE"
    for step in range(12 * batches.steps_an_epoch):
        batch = batches.batch(step)
        for each in (first, other):
            assert torch.equal(each.encode(batch), encode(each.vqvae, batch.images))
    assert not asked
    with pytest.raises(ValueError, match="transformer: shift and intensity must be 0"):
        LikelihoodTask(first.model, load(vqvae), cohort, cpu, replace(TRAINING, shift=1), tmp_path)
    first.fraction = 0.8  # of the run: slices as they are, so that samples are not mirrored or moved either
    plain = encode(first.vqvae, to_images(cohort["train"].images))
    assert batch.mirrored.any() and torch.equal(first.encode(batch), plain[batch.rows])


def test_kept_codes_are_of_these_weights_and_this_cohort(world, tmp_path):
    cohort, folder = world
    shutil.copytree(folder, tmp_path / "vqvae")
    vqvae, images = load(tmp_path / "vqvae"), cohort["test"].images
    np.testing.assert_array_equal(codes_of(vqvae, cohort, "test"), encode_images(vqvae, images))
    assert not list((tmp_path / "vqvae").glob("**/test*")), (
        "a model's folder may be given away: nobody's scans are in it"
    )
    stored = np.load(tmp_path / "codes" / "test.npy")
    np.testing.assert_array_equal(stored, codes_of(vqvae, cohort, "test"))
    with torch.no_grad():
        vqvae.quantizer.codebook.copy_(vqvae.quantizer.codebook.flip(0))
    np.testing.assert_array_equal(codes_of(vqvae, cohort, "test"), encode_images(vqvae, images))
    other = replace(cohort, info=cohort.info | {"hash": "other"}, splits=cohort.splits | {"test": cohort["train"]})
    assert len(codes_of(vqvae, other, "test")) == len(cohort["train"])
    vqvae.folder = None
    assert len(codes_of(vqvae, cohort, "validate", mirrored=True)) == len(cohort["validate"])


def test_variety_is_the_share_of_places_that_differ():
    one, other = np.zeros((2, 2), int), np.array([[0, 1], [1, 0]])
    assert likelihood.differing(np.stack([one, one])) == 0 and likelihood.differing(np.stack([one, other])) == 0.5
    assert likelihood.differing(np.stack([one, one, other])) == pytest.approx(1 / 3)
    subjects = SimpleNamespace(subjects=np.repeat(list("abcd"), 2), slice_indices=np.tile([0, 1], 4))
    codes = np.repeat(np.arange(4), 2)[:, None, None] * np.ones(
        (1, 2, 2), int
    )  # everybody is alike at all slice indices
    assert likelihood.differing_subjects(codes, subjects, slice_indices=2) == 1.0, "a subject was compared with himself"


def test_tokens_are_decided_in_full_precision(world, monkeypatch):
    cohort, folder = world
    vqvae, seen, latents = load(folder), [], VQVAE.latents

    def spied(self, images):
        seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return latents(self, images)

    monkeypatch.setattr(VQVAE, "latents", spied)
    torch.set_float32_matmul_precision("high")  # as the training loop leaves it on a GPU
    with torch.autocast("cpu", torch.bfloat16):
        encode_images(vqvae, cohort["test"].images)
        vqvae.encode(torch.zeros(1, 1, 32, 32))
        codebook.CodebookStatistics(vqvae, cohort, {}).latents(cohort["test"].images[:1])
    assert seen and set(seen) == {("highest", False)} and torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")
