"""What is trained where nothing is said: the same on every machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from oasis_lib.commands import evaluate, train
from oasis_lib.config import PROFILES, Part


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What `oasis train vqvae` would train."""

    def call(**given) -> Part:
        parts: list[Part] = []
        words = {
            "device": "auto",
            "kind": "vqvae",
            "vqvae": "",
            "begin": None,
            "profile": None,
            "minutes": None,
            "quiet": True,
        }
        with pytest.raises(KeyboardInterrupt):
            monkeypatch.setattr("oasis_lib.training.train_vqvae", lambda cohort, out, part, **_: stop(parts, part))
            train.callback(**words | {"cohort": tmp_path, "out": tmp_path, "settings": []} | given)
        return parts[0]

    def stop(parts, part):
        parts.append(part)
        raise KeyboardInterrupt

    monkeypatch.setattr("oasis_lib.cohort.open_cohort", lambda folder: None)
    return call


def test_minutes_on_the_command_line_take_the_place_of_other_limits(asked):
    training = asked(profile="smoke", minutes=2.0, settings=["vqvae.lr=2e-4"]).training
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
    monkeypatch.setattr(
        "oasis_lib.config.PROFILES", PROFILES | {"full": replaced("full", 7), "laptop": replaced("laptop", 9)}
    )
    with pytest.raises(KeyboardInterrupt):
        evaluate.callback(
            device="auto", quiet=True, settings=[], cohort=tmp_path, vqvae=tmp_path, split="test", out="x"
        )
    assert repeats == [9]


def replaced(name: str, bootstrap: int):
    return dataclasses.replace(
        PROFILES[name], evaluation=dataclasses.replace(PROFILES[name].evaluation, bootstrap=bootstrap)
    )


def test_smoke_leaves_the_codebook_time_to_start():
    """The first steps have no codebook; a profile must not end before it has one."""
    part = PROFILES["smoke"].vqvae
    steps = part.training.epochs * (10 * 32 * 6 // 10) // part.training.batch
    assert part.model.autoencoder_steps < steps / 2
