"""The CodeGAN: three ways to codes, bins that fit, balance, and words when there is none."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from test_loop import made_cohort

from oasis_lib.check import layers
from oasis_lib.checkpoint import save_model
from oasis_lib.config import CodeGANConfig, Part, TrainingConfig, VQVAEConfig, as_dict
from oasis_lib.figures import diagram
from oasis_lib.models import CodeGAN, Discriminator, Generator, load
from oasis_lib.training import train_prior, train_vqvae
from oasis_lib.training.gan import apart, learn_bins, prepare, verdicts

MODEL = CodeGANConfig(hidden=8, noise=8, code_dim=4)
TRAINING = TrainingConfig(steps=60, batch=8, lr=2e-3, beta1=0.5, shift=1, precision="no", validate_every=60, weight_decay=0.0)
WAYS = [("one-hot", "quantile"), ("latent", "quantile"), ("index", "uniform"), ("index", "quantile"), ("index", "learned")]


@pytest.mark.parametrize("grid", [(8, 8), (6, 11), (32, 32), (3, 5)])
def test_generator_and_discriminator_fit_any_grid(grid):
    made = Generator(8, 8, 5, grid, levels=3)(torch.randn(2, 8), torch.tensor([0, -1]))
    assert made.shape == (2, 5, *grid)
    assert Discriminator(5, 8, grid, levels=3)(made, torch.tensor([0, -1])).shape == (2,)


@pytest.mark.parametrize("codes, bins", WAYS)
def test_every_way_leads_to_codes_and_a_gradient_leads_back(codes, bins):
    torch.manual_seed(0)
    gan = CodeGAN(replace(MODEL, codes=codes, bins=bins), grid=(8, 8), entries=16, levels=3)
    prepare(gan, torch.randn(16, 4), torch.randint(16, (50, 8, 8)))
    raw = gan.generator(torch.randn(4, 8))
    maps = gan.maps(raw)
    assert maps.shape == gan.real_maps(torch.randint(16, (4, 8, 8))).shape
    gan.discriminator(maps).sum().backward()
    assert float(gan.generator.first.weight.grad.abs().sum()) > 0
    drawn = gan.sample(4, level=1, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (4, 8, 8) and 0 <= int(drawn.min()) and int(drawn.max()) < 16


def test_one_hot_codes_come_as_often_as_their_logits_say_and_learn_as_their_mean_does():
    torch.manual_seed(0)
    gan = CodeGAN(MODEL, grid=(100, 100), entries=4)
    gan.vectors.copy_(torch.eye(4))
    raw = torch.tensor([1.0, 0.0, -1.0, 2.0]).view(1, 4, 1, 1).repeat(1, 1, 100, 100).requires_grad_()
    maps = gan.maps(raw)
    assert sorted(maps.unique().round(decimals=5).tolist()) == [0.0, 1.0], "one code a place, not a mixture"
    torch.testing.assert_close(maps.detach().mean((0, 2, 3)), raw[0, :, 0, 0].softmax(0).detach(), rtol=0, atol=0.02)
    maps[:, 3].sum().backward()
    assert (raw.grad[:, 3] > 0).all() and (raw.grad[:, :3] < 0).all()
    with torch.no_grad():
        torch.testing.assert_close(gan.maps(raw).mean((0, 2, 3)), maps.mean((0, 2, 3)), rtol=0, atol=0.02)


@pytest.mark.parametrize("bins", ["uniform", "quantile"])
def test_real_codes_survive_their_bins(bins):
    gan = CodeGAN(replace(MODEL, codes="index", bins=bins), grid=(8, 8), entries=16)
    codes = torch.randint(3, 9, (50, 8, 8))  # most entries are never used
    prepare(gan, torch.randn(16, 4), codes)
    values = gan.real_maps(codes)
    assert float(values.min()) >= -1 and float(values.max()) <= 1
    back = torch.bucketize(values[:, 0], gan.edges[1:-1].contiguous(), right=True)
    assert (back == codes).float().mean() > 0.999


def test_learned_bins_give_codes_their_frequencies():
    torch.manual_seed(0)
    gan = CodeGAN(replace(MODEL, codes="index", bins="learned"), grid=(8, 8), entries=6)
    codes = torch.multinomial(torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05]), 6400, replacement=True).view(-1, 8, 8)
    prepare(gan, torch.randn(6, 4), codes)
    made = torch.randn(100, 1, 8, 8).mul(0.2).tanh()  # a generator that keeps to the middle

    def off() -> float:
        return apart(codes, torch.bucketize(made, gan.edges[1:-1].contiguous(), right=True), 6)

    before = off()
    for _ in range(300):
        learn_bins(gan, made)
    assert before > 0.2 and off() < 0.02


@pytest.mark.parametrize("codes", ["one-hot", "latent", "index"])
def test_trained_samples_use_many_codes_and_differ(codes, tmp_path):
    cohort = made_cohort(tmp_path, grain=40)
    vqvae = VQVAEConfig(entries=32, code_dim=4, hidden=16, blocks=1, warm=5)
    train_vqvae(cohort, tmp_path / "vqvae", Part(vqvae, TRAINING), progress=False)
    part = Part(replace(MODEL, codes=codes), TRAINING)
    history = train_prior("codegan", cohort, tmp_path / "vqvae", tmp_path / "gan", part, progress=False)
    wanted = {"train_generator", "train_discriminator", "train_real_score", "train_fake_score", "train_accuracy", "diversity"}
    assert wanted <= set(history.columns)
    drawn = load(tmp_path / "gan").sample(16, level=torch.arange(16) % 4, generator=torch.Generator().manual_seed(0))
    assert len(drawn.unique()) > 4 and len(drawn.flatten(1).unique(dim=0)) > 8


@pytest.mark.parametrize("stabiliser", ["spectral", "r1", "none"])
def test_every_stabiliser_trains(stabiliser, tmp_path):
    cohort = made_cohort(tmp_path)
    vqvae = VQVAEConfig(entries=16, code_dim=4, hidden=16, blocks=1, warm=5)
    train_vqvae(cohort, tmp_path / "vqvae", Part(vqvae, replace(TRAINING, steps=10)), progress=False)
    part = Part(replace(MODEL, stabiliser=stabiliser), replace(TRAINING, steps=10, validate_every=5))
    history = train_prior("codegan", cohort, tmp_path / "vqvae", tmp_path / "gan", part, progress=False)
    assert len(history) == 2 and history["train_accuracy"].between(0, 1).all()


def test_words_are_said_when_a_side_wins_or_samples_collapse():
    fine = {"accuracy": 0.75, "codes_used": 100, "diversity": 0.9}
    assert verdicts(fine, 120) == []
    assert "the discriminator wins" in verdicts(fine | {"accuracy": 0.99}, 120)[0]
    assert "the generator wins" in verdicts(fine | {"accuracy": 0.5}, 120)[0]
    assert "samples collapse: 2 codes in use where people use 120" in verdicts(fine | {"codes_used": 2}, 120)[0]
    assert "samples collapse" in verdicts(fine | {"diversity": 0.1}, 120)[0]


def test_both_players_are_drawn_from_their_layers(tmp_path):
    gan = CodeGAN(MODEL, grid=(16, 12), entries=16, levels=3)
    shape = {"grid": [16, 12], "entries": 16, "levels": 3, "ratings": 0}
    save_model(tmp_path, gan.state_dict(), {"kind": "codegan", "model": as_dict(MODEL)} | shape)
    listing, about = layers(tmp_path)
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear)
    weighted = [module for module in gan.modules() if isinstance(module, kinds)]
    assert len([row for row in listing if row[1].startswith(("Conv", "Linear"))]) == len(weighted)
    labels = sum(p.numel() for name, p in gan.named_parameters() if ".labels." in name)
    assert sum(row[3] for row in listing) == about["parameters"] - labels
    drawn = [text.get_text() for text in diagram.gan(listing).axes[0].texts]
    blocks = [text for text in drawn if re.fullmatch(r"[\dx ]+", text)]
    assert len(blocks) == len(weighted) and {"16 x 16 x 12", "16 x 8 x 6", "1"} <= set(blocks)
    assert "ConvTranspose2d\nGroupNorm\nReLU" in drawn and "discriminator" in drawn
