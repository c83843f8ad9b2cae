"""The adversarial stage: a second decoder is trained, and nothing else moves."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_loop import MODEL, TRAINING, made_cohort

from oasis_lib.cohort import Split
from oasis_lib.config import Part
from oasis_lib.metrics import sharpness
from oasis_lib.models import load
from oasis_lib.training import adversarial, decode_codes, loop, to_images, train_vqvae
from oasis_lib.training.adversarial import train_crisp

PART = Part(replace(MODEL, adversarial=0.5), TRAINING)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return made_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def faithful(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqvae") / "m"
    train_vqvae(cohort, folder, Part(replace(MODEL, adversarial=0.0), TRAINING), progress=False)
    return folder


def test_codes_and_the_faithful_decoder_stay_bit_for_bit(cohort, faithful, tmp_path):
    folder = shutil.copytree(faithful, tmp_path / "m")
    before = (folder / "model.safetensors").read_bytes()
    train_vqvae(cohort, folder, PART, progress=False)
    assert (folder / "model.safetensors").read_bytes() == before
    plain, both = load(faithful), load(folder)
    images = to_images(cohort["test"].images)
    codes = plain.encode(images)
    assert plain.crisp is None and torch.equal(both.encode(images), codes)
    assert torch.equal(both.decode(codes), plain.decode(codes))
    assert not torch.equal(both.decode(codes, crisp=True), plain.decode(codes))
    with torch.no_grad():
        both.decoder[-1].weight.zero_(), both.decoder[-1].bias.fill_(-9.0)
        assert float(both.decode(codes, crisp=True).max()) == 0, "background is where the faithful decoder draws it"
    both = load(folder)
    drawn = [
        decode_codes(model, codes.numpy(), crisp=crisp) for model, crisp in ((both, None), (both, True), (plain, None))
    ]
    assert np.array_equal(*drawn[:2]) and not np.array_equal(*drawn[1:]), (
        "samples are drawn by the crisp decoder where there is one"
    )
    with pytest.raises(ValueError, match=r"no crisp decoder: train with vqvae\.adversarial > 0"):
        plain.decode(codes, crisp=True)


def test_a_stage_that_is_stopped_ends_with_the_same_weights(cohort, faithful, tmp_path, monkeypatch):
    whole, broken = (shutil.copytree(faithful, tmp_path / name) for name in ("whole", "broken"))
    train_crisp(cohort, whole, PART, progress=False)
    monkeypatch.setattr(loop, "SAVE_EVERY", -1)
    save = loop.save_state

    def killed(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        train_crisp(cohort, broken, PART, progress=False)
    monkeypatch.undo()
    train_crisp(cohort, broken, PART, progress=False)
    a, b = (load_file(folder / "crisp/model.safetensors") for folder in (whole, broken))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_nothing_is_learned_from_validation_subjects(cohort, faithful, tmp_path):
    other = made_cohort(tmp_path)
    held_out = other["validate"]
    other.splits["validate"] = Split("validate", 255 - held_out.images, held_out.table)
    other.info["hash"] = "another"  # or the first cohort's tokens, kept beside the model, would be taken
    folders = [shutil.copytree(faithful, tmp_path / name / "m") for name in ("a", "b")]
    for one, folder in zip((cohort, other), folders):
        train_crisp(one, folder, PART, progress=False)
    a, b = (load_file(folder / "crisp/model.safetensors") for folder in folders)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_decoder_that_diverges_is_said_and_not_kept(cohort, faithful, tmp_path, monkeypatch):
    folder = shutil.copytree(faithful, tmp_path / "m")
    monkeypatch.setattr(adversarial, "LOST", -1.0)  # any SSIM is too low now
    with pytest.warns(UserWarning, match=r"diverges: SSIM in the brain is .* Lower vqvae\.lr or vqvae\.adversarial"):
        history = train_crisp(cohort, folder, PART, progress=False)
    assert (history["score"] == -1).all()


def test_a_crisp_decoder_of_another_model_is_refused(cohort, faithful, tmp_path):
    folder, other = shutil.copytree(faithful, tmp_path / "m"), tmp_path / "other"
    train_crisp(cohort, folder, PART, progress=False)
    train_vqvae(cohort, other, Part(MODEL, replace(TRAINING, seed=1, steps=4)), progress=False)
    shutil.rmtree(other / "crisp", ignore_errors=True)
    shutil.copytree(folder / "crisp", other / "crisp")
    with pytest.raises(ValueError, match="belongs to another VQ-VAE"):
        load(other)


def test_blur_lowers_sharpness():
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = torch.ones_like(images, dtype=torch.bool)
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    assert sharpness(blurred, masks) < 0.5 * sharpness(images, masks)
