"""The CodeGAN: samples follow their slice index and differ, balance, and words when there is none."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_loop import weights

from oasis_lib.check import layers
from oasis_lib.cohort import Cohort, Split
from oasis_lib.config import CodeGANConfig, Part, TrainingConfig, VQVAEConfig, as_dict
from oasis_lib.metrics import apart, in_regions
from oasis_lib.models import CodeGAN, Discriminator, Generator, load
from oasis_lib.models.codegan import FRESH, LinearStart
from oasis_lib.paths import PROJECT
from oasis_lib.storage import save_model
from oasis_lib.training import loop, train_prior, train_vqvae
from oasis_lib.training.gan import verdicts

sys.path.insert(0, str(PROJECT / "images"))
import diagrams

LEVELS = 6
MODEL = CodeGANConfig(hidden=16, noise=6, knots=4, code_dim=4)
VQVAE = VQVAEConfig(codebook_size=32, code_dim=4, hidden=16, blocks=1, autoencoder_steps=5, adversarial=0.0)
TRAINING = TrainingConfig(steps=40, batch=8, lr=4e-4, beta1=0.0, precision="no", validate_every=20)


def growing_discs(folder, subjects=12, size=32) -> Cohort:
    """A disc's radius is its slice index's, and a little the subject's."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    splits = {}
    for name in ("train", "validate", "test"):
        slice_index, of = np.tile(np.arange(LEVELS), subjects), np.repeat(np.arange(subjects), LEVELS)
        radius = 4 + 1.6 * slice_index + rng.uniform(-1.2, 1.2, subjects)[of]
        images = 200 * (np.hypot(x, y) < radius[:, None, None])
        table = pd.DataFrame({"subject": [f"{name}-{i}" for i in of], "slice_index": slice_index})
        splits[name] = Split(name, images.astype(np.uint8), table)
    info = {
        "hash": "made",
        "size": size,
        "slice_indices": LEVELS,
        "cdrs": [],
        "synthetic": True,
        "left_right": "columns",
    }
    return Cohort(folder, info, splits)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A cohort, and the folder of a VQ-VAE and a CodeGAN of it."""
    folder = tmp_path_factory.mktemp("gan")
    cohort = growing_discs(folder)
    train_vqvae(cohort, folder / "vqvae", Part(VQVAE, replace(TRAINING, steps=150, lr=2e-3, beta1=0.9)), progress=False)
    train_prior("codegan", cohort, folder / "vqvae", folder / "gan", Part(MODEL, TRAINING), progress=False)
    return cohort, folder


def lit(folder, slice_index, seed=0) -> torch.Tensor:
    """(n,) radii of the discs that samples decode to."""
    drawn = load(folder / "gan").sample(
        len(slice_index), slice_index=slice_index, generator=torch.Generator().manual_seed(seed)
    )
    return ((load(folder / "vqvae").decode(drawn) > 0.4).sum((1, 2, 3)) / torch.pi).sqrt()


def test_samples_follow_their_slice_index(trained):
    slice_index = torch.arange(LEVELS).repeat(10)
    error = (lit(trained[1], slice_index) - (4 + 1.6 * slice_index)).abs()
    assert error.median() < 1.2, "real discs differ by 0.6 on average from what their slice index says"
    wrong = (lit(trained[1], slice_index) - (4 + 1.6 * slice_index.flip(0))).abs()
    assert wrong.median() > 2


def test_samples_of_one_slice_index_differ_as_subjects_do(trained):
    cohort, folder = trained
    codes = load(folder / "gan").sample(24, slice_index=3, generator=torch.Generator().manual_seed(1))
    assert len(codes.flatten(1).unique(dim=0)) > 18
    assert 0.3 < lit(folder, torch.full((60,), 3)).std() / 0.69 < 2, "0.69 is the standard deviation of a uniform +-1.2"


def test_history_tells_both_networks_and_discrimination_is_neither_perfect_nor_chance(trained):
    history = pd.read_csv(trained[1] / "gan" / "history.csv")
    wanted = {
        "train_generator",
        "train_discriminator",
        "train_real_score",
        "train_fake_score",
        "diversity",
        "slice_index_within_one",
    }
    assert wanted <= set(history.columns)
    said = (trained[1] / "gan" / "warnings.txt").is_file()
    assert said or history["accuracy"].iloc[-1] < 0.98


def test_a_run_that_is_stopped_ends_with_the_same_weights(trained, tmp_path, monkeypatch):
    cohort, folder = trained
    monkeypatch.setattr(loop, "SAVE_EVERY", -1)
    save, calls = loop.save_state, []

    def killed(*arguments):
        save(*arguments)
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", killed)
    part = Part(MODEL, TRAINING)
    with pytest.raises(KeyboardInterrupt):
        train_prior("codegan", cohort, folder / "vqvae", tmp_path / "gan", part, progress=False)
    train_prior("codegan", cohort, folder / "vqvae", tmp_path / "gan", part, progress=False)
    whole, resumed = weights(folder / "gan"), weights(tmp_path / "gan")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("grid", [(8, 8), (6, 11), (32, 32), (3, 5)])
def test_generator_and_discriminator_fit_any_grid(grid):
    start, fresh, slice_index = torch.randn(2, 5, *grid), torch.randn(2, FRESH, *grid), torch.tensor([0, -1])
    made = Generator(5, 8, 6, slice_indices=3)(start, torch.randn(2, 6), fresh, slice_index, slice_index)
    assert made.shape == (2, 5, *grid)
    logits = Discriminator(5, 8, slice_indices=3)(made, start, slice_index, slice_index)
    assert logits.dim() == 2 and len(logits) == 2 and torch.isfinite(logits).all()


def test_the_linear_start_is_mean_and_components_at_each_slice_index():
    generator = torch.Generator().manual_seed(0)
    scores, direction = torch.randn(200, 1, 1, 1, generator=generator), torch.randn(5, 2, 3, 3, generator=generator)
    slice_index = torch.arange(5).repeat(200)
    maps = direction[slice_index] * scores.repeat_interleave(5, 0) + slice_index[:, None, None, None]
    start = LinearStart(4, knots=5, slice_indices=5, channels=2, grid=(3, 3))
    start.fit(maps, slice_index, torch.arange(200).repeat_interleave(5))
    expected = slice_index[:5, None, None, None] + scores.mean() * direction
    torch.testing.assert_close(start.expected(slice_index[:5]), expected, rtol=0, atol=1e-4)
    noise = torch.zeros(5, 4)
    noise[:, 0] = 1  # one standard deviation along the first component
    moved = start(noise, slice_index[:5]) - start.expected(slice_index[:5])
    torch.testing.assert_close(
        moved.abs(), (scores.std(unbiased=False) * direction).abs(), rtol=0.01, atol=0.012
    )  # kept in bytes
    noise = torch.zeros(5, 4)
    noise[:, 1:] = 1  # there is no second one
    torch.testing.assert_close(start(noise, slice_index[:5]), start.expected(slice_index[:5]), rtol=0, atol=2e-3)


def test_a_gan_takes_temperature_and_no_cuts_and_fills_nothing_in(trained):
    gan = load(trained[1] / "gan")
    slice_index = torch.full((20,), 2)

    def apart_at(temperature: float) -> float:
        drawn = gan.sample(
            20, slice_index=slice_index, temperature=temperature, generator=torch.Generator().manual_seed(2)
        )
        return float((gan.vectors[drawn] - gan.vectors[drawn.roll(1, 0)]).square().mean())

    assert apart_at(0.2) < apart_at(1.0)
    with pytest.raises(ValueError, match="a codegan prior has no logits"):
        gan.sample(2, top_k=3)
    assert len(gan.sample(2, top_p=1.0)) == 2, "as panels ask: nothing is cut"
    assert not hasattr(gan, "fill")


def test_histograms_are_compared_region_by_region():
    codes = torch.zeros(2, 8, 8, dtype=torch.int64)
    codes[:, :4] = 1
    turned = codes.flip(1)
    assert apart(codes, turned, 2) == 0 and apart(in_regions(codes, 2), in_regions(turned, 2), 32) == 1


def test_words_are_said_when_a_side_wins_or_samples_collapse_or_ignore_their_slice_index():
    fine = {"accuracy": 0.75, "diversity": 0.9, "slice_index_within_one": 0.6}
    assert verdicts(fine, 0.7) == []
    assert "the discriminator wins" in verdicts(fine | {"accuracy": 0.99}, 0.7)[0]
    assert "the generator wins" in verdicts(fine | {"accuracy": 0.5}, 0.7)[0]
    assert "samples collapse: they differ 0.10 times as much" in verdicts(fine | {"diversity": 0.1}, 0.7)[0]
    assert "samples ignore their slice index" in verdicts(fine | {"slice_index_within_one": 0.1}, 0.7)[0]


def test_both_networks_are_drawn_from_their_layers(tmp_path):
    gan = CodeGAN(MODEL, grid=(16, 12), codebook_size=16, slice_indices=3)
    shape = {"grid": [16, 12], "codebook_size": 16, "slice_indices": 3, "cdrs": 0}
    save_model(tmp_path, gan.state_dict(), {"kind": "codegan", "model": as_dict(MODEL)} | shape)
    listing, about = layers(tmp_path)
    weighted = [module for module in gan.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    assert len([row for row in listing if row[1] in ("Conv2d", "Linear")]) == len(weighted)
    drawn = [text.get_text() for text in diagrams.gan(listing).axes[0].texts]
    main = [row for row in listing if not {"style", "noise", "labels"} & set(row[0].split("."))]
    blocks = [re.fullmatch(r"(\d+) x\n(?:Conv2d|Linear)\n\d+(x\d+)*", text) for text in drawn]
    counts = [int(block[1]) for block in blocks if block]
    assert sum(counts) == len([row for row in main if row[1] in ("Conv2d", "Linear")]), "every layer is in a block"
    assert "discriminator" in drawn
