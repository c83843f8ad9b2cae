"""The earlier recipes, layer for layer, and the one setting that switches to them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from oasis_lib.commands import evaluate, train
from oasis_lib.config import PRESETS, PROFILES, Part, VQVAEConfig, apply_settings, from_dict, profile
from oasis_lib.models import VQVAE
from oasis_lib.models.presets import RECIPES

COUNTED = {"seed-000": 547_267, "seed-002": 330_433, "seed-003": 222_465}  # parameters, counted in the recipes' own code


def convolutions(model: nn.Module) -> list[tuple[int, int, int, int]]:
    """(in, out, kernel, stride) of each, in order."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for m in model.modules() if isinstance(m, kinds)]


def test_the_papers_layers_and_its_grid():
    model = VQVAE(PRESETS["paper"].model).eval()
    block = [(256, 256, 3, 1), (256, 256, 1, 1)]
    assert convolutions(model.encoder) == [(1, 256, 4, 2), (256, 256, 4, 2), *block, *block, (256, 64, 1, 1)]
    assert convolutions(model.decoder) == [(64, 256, 3, 1), *block, *block, (256, 256, 4, 2), (256, 1, 4, 2)]
    assert model.quantizer.codebook.shape == (512, 64)
    with torch.no_grad():
        assert model.encode(torch.rand(1, 1, 256, 256)).shape == (1, 64, 64), "256 x 256 pixels in 64 x 64 codes"


@pytest.mark.parametrize("name", COUNTED)
def test_a_recipe_has_the_parameters_that_were_counted(name: str):
    model = VQVAE(PRESETS[name].model)
    assert sum(p.numel() for p in model.parameters()) == COUNTED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_encodes_decodes_and_shares_no_weights(name: str):
    config = PRESETS[name].model
    model = VQVAE(config).eval()
    images = torch.rand(2, config.channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.decode(model.encode(images)), model(images).images)
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
    assert config.codebook == "gradient" and config.loss == "l2" and config.revival == 0 and config.start == "uniform"
    assert (config.entries, config.code_dim, config.factor) == (512, 64, 4)


def test_presets_and_recipes_are_the_same_names():
    assert PRESETS.keys() == RECIPES.keys()


def test_a_preset_replaces_the_whole_part_and_other_settings_stay_on_top():
    settings = ["vqvae.minutes=3", "vqvae.entries=128", "vqvae.preset=seed-002"]
    part = profile("laptop", settings).vqvae
    assert part.model == dataclasses.replace(PRESETS["seed-002"].model, entries=128)
    assert part.training == dataclasses.replace(PRESETS["seed-002"].training, minutes=3.0)
    assert apply_settings(PROFILES["laptop"].vqvae, "vqvae", ["vqvae.preset=seed-003"]) == PRESETS["seed-003"]
    assert profile("laptop", ["vqvae.preset="]).vqvae == PROFILES["laptop"].vqvae


def test_an_unknown_preset_is_refused_by_name():
    with pytest.raises(ValueError, match="did you mean 'seed-003'"):
        profile("laptop", ["vqvae.preset=seed-0003"])


def test_every_codebook_gets_a_gradient():
    """The fault that is not repeated: entries of seed-003 never moved."""
    model = VQVAE(PRESETS["seed-003"].model)
    out = model(torch.rand(2, 1, 32, 32))
    (out.images.square().mean() + out.commitment).backward()
    assert model.quantizer.codebook.grad.abs().sum() > 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What `oasis train vqvae` would train."""

    def call(**given) -> Part:
        parts: list[Part] = []
        words = {"device": "auto", "kind": "vqvae", "vqvae": "", "begin": None, "profile": None, "minutes": None, "quiet": True}
        with pytest.raises(KeyboardInterrupt):
            monkeypatch.setattr("oasis_lib.training.train_vqvae", lambda cohort, out, part, progress: stop(parts, part))
            train.callback(**words | {"cohort": tmp_path, "out": tmp_path, "settings": []} | given)
        return parts[0]

    def stop(parts, part):
        parts.append(part)
        raise KeyboardInterrupt

    monkeypatch.setattr("oasis_lib.cohort.open_cohort", lambda folder: None)
    return call


def test_minutes_on_the_command_line_outlive_a_preset(asked):
    training = asked(profile="smoke", minutes=2.0, settings=["vqvae.preset=seed-001"]).training
    assert (training.minutes, training.epochs, training.steps, training.lr) == (2.0, 0, 0, 2e-4)


@pytest.mark.parametrize("gpu", [False, True])
def test_defaults_are_the_same_on_every_machine(gpu, asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert asked() == PROFILES["laptop"].vqvae
    repeats = []

    def summary(tables, bootstrap):
        repeats.append(bootstrap)
        raise KeyboardInterrupt

    monkeypatch.setattr("oasis_lib.models.load", lambda folder: None)
    monkeypatch.setattr("oasis_lib.evaluation.reconstruction.decoders", lambda *given: {})
    monkeypatch.setattr("oasis_lib.evaluation.reconstruction.baselines", lambda *given: {})
    monkeypatch.setattr("oasis_lib.evaluation.reconstruction.summary", summary)
    monkeypatch.setattr("oasis_lib.cohort.open_cohort", lambda folder: {"test": None})
    monkeypatch.setattr("oasis_lib.config.PROFILES", PROFILES | {"full": replaced("full", 7), "laptop": replaced("laptop", 9)})
    with pytest.raises(KeyboardInterrupt):
        evaluate.callback(device="auto", quiet=True, settings=[], cohort=tmp_path, vqvae=tmp_path, split="test", out="x")
    assert repeats == [9]


def replaced(name: str, bootstrap: int):
    return dataclasses.replace(PROFILES[name], evaluation=dataclasses.replace(PROFILES[name].evaluation, bootstrap=bootstrap))


def test_smoke_leaves_the_codebook_time_to_start():
    """The first steps have no codebook; a profile must not end before it has one."""
    part = PROFILES["smoke"].vqvae
    steps = part.training.epochs * (10 * 32 * 6 // 10) // part.training.batch
    assert part.model.warm < steps / 2


def test_a_model_saved_with_a_retired_setting_loads_if_it_had_the_surviving_value():
    old = {"entries": 16, "distance": "euclidean", "gradient": "straight-through"}
    assert from_dict(VQVAEConfig, old) == VQVAEConfig(entries=16)
    with pytest.raises(ValueError, match="no setting 'distance'"):
        from_dict(VQVAEConfig, old | {"distance": "cosine"})
