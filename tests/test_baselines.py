"""The earlier recipes, layer for layer.

They live in benchmarks/, are built from the library's blocks, and still train.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from conftest import PROJECT
from test_loop import TRAINING, made_cohort
from torch import nn

from oasis_lib.config import Part, VQVAEConfig
from oasis_lib.models import build, load
from oasis_lib.training import train_prior, train_vqvae

sys.path.insert(0, str(PROJECT / "benchmarks"))
import baselines
import dcgan

COUNTED = {
    "seed-000": 547_267,
    "seed-002": 330_433,
    "seed-003": 222_465,
}  # parameters, counted in the recipes' own code
GAN = dcgan.DCGANConfig(hidden=8, noise=8, code_dim=4)
WAYS = [
    ("one-hot", "quantile"),
    ("latent", "quantile"),
    ("index", "uniform"),
    ("index", "quantile"),
    ("index", "learned"),
]


def convolutions(model: nn.Module) -> list[tuple[int, int, int, int]]:
    """(in, out, kernel, stride) of each, in order."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return [
        (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for m in model.modules() if isinstance(m, kinds)
    ]


def test_the_papers_layers_and_its_grid():
    model = build("baseline", baselines.VQVAES["paper"].model).eval()
    block = [(256, 256, 3, 1), (256, 256, 1, 1)]
    assert convolutions(model.encoder) == [(1, 256, 4, 2), (256, 256, 4, 2), *block, *block, (256, 64, 1, 1)]
    assert convolutions(model.decoder) == [(64, 256, 3, 1), *block, *block, (256, 256, 4, 2), (256, 1, 4, 2)]
    assert model.quantizer.codebook.shape == (512, 64)
    with torch.no_grad():
        assert model.encode(torch.rand(1, 1, 256, 256)).shape == (1, 64, 64), "256 x 256 pixels in 64 x 64 tokens"


@pytest.mark.parametrize("name", COUNTED)
def test_a_recipe_has_the_parameters_that_were_counted(name: str):
    model = build("baseline", baselines.VQVAES[name].model)
    assert sum(p.numel() for p in model.parameters()) == COUNTED[name]


@pytest.mark.parametrize("name", baselines.VQVAES)
def test_every_recipe_encodes_decodes_and_shares_no_weights(name: str):
    config = baselines.VQVAES[name].model
    model = build("baseline", config).eval()
    images = torch.rand(2, config.channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.decode(model.encode(images)), model(images).images)
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
    assert (
        config.codebook == "gradient"
        and config.loss == "l2"
        and config.dead_code_threshold == 0
        and config.autoencoder_steps == 0
    )
    assert (config.codebook_size, config.code_dim, config.factor) == (512, 64, 4)


def test_every_codebook_gets_a_gradient():
    """The fault that is not repeated: entries of seed-003 never moved."""
    model = build("baseline", baselines.VQVAES["seed-003"].model)
    out = model(torch.rand(2, 1, 32, 32))
    (out.images.square().mean() + out.commitment).backward()
    assert model.quantizer.codebook.grad.abs().sum() > 0


def test_recipes_train_and_are_loaded_again(tmp_path):
    cohort, steps = made_cohort(tmp_path), replace(TRAINING, steps=4)
    part = baselines.VQVAES["seed-002"]
    train_vqvae(
        cohort, tmp_path / "vqvae", Part(replace(part.model, codebook_size=16), steps), kind="baseline", progress=False
    )
    assert load(tmp_path / "vqvae").config.recipe == "seed-002"
    for name, part in baselines.PIXELCNNS.items():
        train_prior(
            name,
            cohort,
            tmp_path / "vqvae",
            tmp_path / name,
            Part(replace(part.model, hidden=8), steps),
            progress=False,
        )
        assert load(tmp_path / name).sample(2, generator=torch.Generator().manual_seed(0)).shape == (2, 8, 8)


def test_the_recipes_pixelcnn_has_its_size_and_sees_only_so_far():
    part = baselines.PIXELCNNS["pixelcnn-002"]
    prior = build("pixelcnn-002", part.model, grid=(64, 64), codebook_size=512)
    count = sum(weight.numel() for weight in prior.parameters() if weight.requires_grad)
    assert count == pytest.approx(1.39e6, rel=0.06)  # masked taps are not stored
    assert (
        build(
            "pixelcnn-004", baselines.PIXELCNNS["pixelcnn-004"].model, grid=(64, 64), codebook_size=512
        ).receptive_field
        == 17
    )
    torch.manual_seed(0)
    prior = build("pixelcnn-002", replace(part.model, hidden=8), grid=(24, 24), codebook_size=7).eval()
    assert prior.receptive_field == 12
    codes = torch.zeros(1, 24, 24, dtype=torch.int64)
    with torch.no_grad():
        for weight in prior.parameters():
            weight.mul_(1.5)
        before = prior(codes)[0, 20, 12]
        for row, seen in ((8, True), (7, False)):
            other = codes.clone()
            other[0, row, 12] = 1
            assert bool((prior(other)[0, 20, 12] != before).any()) is seen, f"row {row}"


@pytest.mark.parametrize("codes, bins", WAYS)
def test_every_way_leads_to_tokens_and_a_gradient_leads_back(codes, bins):
    torch.manual_seed(0)
    gan = dcgan.DCGAN(replace(GAN, codes=codes, bins=bins), grid=(8, 8), codebook_size=16, slice_indices=3)
    dcgan.prepare(gan, torch.randn(16, 4), torch.randint(16, (50, 8, 8)))
    raw = gan.generator(torch.randn(4, 8))
    maps = gan.maps(raw)
    assert maps.shape == gan.real_maps(torch.randint(16, (4, 8, 8))).shape
    gan.discriminator(maps).sum().backward()
    assert float(gan.generator.first.weight.grad.abs().sum()) > 0
    drawn = gan.sample(4, slice_index=1, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (4, 8, 8) and 0 <= int(drawn.min()) and int(drawn.max()) < 16


def test_one_hot_codes_come_as_often_as_their_logits_say_and_learn_as_their_mean_does():
    torch.manual_seed(0)
    gan = dcgan.DCGAN(GAN, grid=(100, 100), codebook_size=4)
    gan.vectors.copy_(torch.eye(4))
    raw = torch.tensor([1.0, 0.0, -1.0, 2.0]).view(1, 4, 1, 1).repeat(1, 1, 100, 100).requires_grad_()
    maps = gan.maps(raw)
    assert sorted(maps.unique().round(decimals=5).tolist()) == [0.0, 1.0], "one token a place, not a mixture"
    torch.testing.assert_close(maps.detach().mean((0, 2, 3)), raw[0, :, 0, 0].softmax(0).detach(), rtol=0, atol=0.02)
    maps[:, 3].sum().backward()
    assert (raw.grad[:, 3] > 0).all() and (raw.grad[:, :3] < 0).all()


@pytest.mark.parametrize("bins", ["uniform", "quantile"])
def test_real_tokens_survive_their_bins(bins):
    gan = dcgan.DCGAN(replace(GAN, codes="index", bins=bins), grid=(8, 8), codebook_size=16)
    codes = torch.randint(3, 9, (50, 8, 8))  # most entries are never used
    dcgan.prepare(gan, torch.randn(16, 4), codes)
    values = gan.real_maps(codes)
    assert float(values.min()) >= -1 and float(values.max()) <= 1
    back = torch.bucketize(values[:, 0], gan.edges[1:-1].contiguous(), right=True)
    assert (back == codes).float().mean() > 0.999


def test_learned_bins_give_tokens_their_frequencies():
    torch.manual_seed(0)
    gan = dcgan.DCGAN(replace(GAN, codes="index", bins="learned"), grid=(8, 8), codebook_size=6)
    codes = torch.multinomial(torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05]), 6400, replacement=True).view(-1, 8, 8)
    dcgan.prepare(gan, torch.randn(6, 4), codes)
    made = torch.randn(100, 1, 8, 8).mul(0.2).tanh()  # a generator that keeps to the middle

    def off() -> float:
        return dcgan.apart(codes, torch.bucketize(made, gan.edges[1:-1].contiguous(), right=True), 6)

    before = off()
    for _ in range(300):
        dcgan.learn_bins(gan, made)
    assert before > 0.2 and off() < 0.02


@pytest.mark.parametrize("codes, stabiliser", [("one-hot", "spectral"), ("latent", "r1"), ("index", "none")])
def test_every_dcgan_trains(codes, stabiliser, tmp_path):
    cohort, training = made_cohort(tmp_path, grain=40), replace(TRAINING, steps=20, validate_every=10, lr=2e-3)
    vqvae = VQVAEConfig(codebook_size=32, code_dim=4, hidden=16, blocks=1, autoencoder_steps=5, adversarial=0.0)
    train_vqvae(cohort, tmp_path / "vqvae", Part(vqvae, training), progress=False)
    part = Part(replace(GAN, codes=codes, stabiliser=stabiliser, bins="learned"), training)
    history = train_prior("dcgan", cohort, tmp_path / "vqvae", tmp_path / "gan", part, progress=False)
    assert {"train_generator", "train_discriminator", "train_real_score", "train_fake_score"} <= set(history.columns)
    drawn = load(tmp_path / "gan").sample(
        16, slice_index=torch.arange(16) % 4, generator=torch.Generator().manual_seed(0)
    )
    assert len(drawn.flatten(1).unique(dim=0)) > 8
