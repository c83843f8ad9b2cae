"""Weights that come with the repository are used where they fit, never instead of the user's own, and never when altered."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import PROJECT
from test_loop import TRAINING, made_cohort

from oasis_lib import pretrained
from oasis_lib.config import PROFILES, Part, TransformerConfig, VQVAEConfig
from oasis_lib.figures.style import new_figure
from oasis_lib.run import JUDGED, Run
from oasis_lib.storage import WEIGHTS, content_hash, write_json
from oasis_lib.training import train_prior, train_vqvae

sys.path.insert(0, str(PROJECT / "benchmarks"))
from pretrained import rounded

VQVAE = Part(VQVAEConfig(codebook_size=16, hidden=8, blocks=1, autoencoder_steps=2), replace(TRAINING, epochs=1))
PRIOR = Part(TransformerConfig(width=16, layers=1, heads=2, knots=2), replace(TRAINING, epochs=1))


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> Run:
    """A run of a profile whose models are in a repository of their own, trained for four times as long."""
    laptop = replace(PROFILES["laptop"], vqvae=VQVAE, transformer=PRIOR)
    monkeypatch.setattr(pretrained, "PROFILES", {"laptop": laptop})
    monkeypatch.setattr(pretrained, "HOME", tmp_path / "home")
    cohort = made_cohort(tmp_path)
    longer = [Part(part.model, replace(part.training, epochs=4)) for part in (VQVAE, PRIOR)]
    train_vqvae(cohort, tmp_path / "work" / "vqvae", longer[0], progress=False)
    rounded(tmp_path / "work" / "vqvae", tmp_path / "home" / "vqvae")
    train_prior(
        "transformer", cohort, tmp_path / "home" / "vqvae", tmp_path / "work" / "transformer", longer[1], progress=False
    )
    rounded(tmp_path / "work" / "transformer", tmp_path / "home" / "transformer")
    files = {
        str(p.relative_to(tmp_path / "home")): content_hash(p) for p in (tmp_path / "home").rglob("*") if p.is_file()
    }
    write_json(tmp_path / "home" / "manifest.json", {"cohort": cohort.info.get("request"), "files": files})
    run = Run(tmp_path / "run", laptop, cohort.folder)
    vars(run)["cohort"] = cohort  # it is in memory alone
    return run


def steps(history: pd.DataFrame) -> int:
    return int(history["step"].iloc[-1])


def test_what_fits_is_taken_and_what_was_taken_gives_way_to_other_settings(run: Run, tmp_path: Path, capsys):
    taken = [steps(pretrained.trained(run, kind)) for kind in ("vqvae", "transformer")]
    assert "scratch=true trains anew" in capsys.readouterr().out
    assert pretrained.taken(run.path("vqvae")) and pretrained.taken(run.path("transformer"))
    assert steps(pretrained.live(run)) == taken[0] // 4, "trained beside it for as long as the profile says"
    own = [steps(pretrained.trained(run, kind, scratch=True)) for kind in ("vqvae", "transformer")]
    assert (
        own == [one // 4 for one in taken] and not pretrained.taken(run.path("vqvae")) and pretrained.live(run) is None
    )
    other = replace(run, profile=replace(run.profile, vqvae=Part(replace(VQVAE.model, hidden=16), VQVAE.training)))
    vars(other)["cohort"] = run.cohort
    with pytest.raises(ValueError, match="trained otherwise: model.hidden 8, now 16"):
        pretrained.trained(other, "vqvae")


def test_a_model_that_was_trained_here_is_never_replaced(run: Run):
    pretrained.trained(run, "vqvae", scratch=True)
    before = content_hash(run.path("vqvae", WEIGHTS))
    with pytest.raises(ValueError, match="holds a model that was trained here"):
        pretrained.trained(run, "vqvae")
    assert content_hash(run.path("vqvae", WEIGHTS)) == before


def test_a_copy_that_was_cut_short_is_made_again(run: Run, monkeypatch):
    def killed(source: Path, target: Path) -> None:
        target.mkdir(parents=True)
        shutil.copy(source / WEIGHTS, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrained.trained(run, "vqvae")
    assert not run.path("vqvae").exists()
    pretrained.trained(run, "vqvae")
    assert pretrained.taken(run.path("vqvae")) and run.path("vqvae", "history.csv").is_file()


def test_an_altered_or_missing_file_is_named_and_the_model_trained(run: Run, capsys):
    path = pretrained.HOME / "vqvae" / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert pretrained.misfit(run, "vqvae") == f"{path} is missing or was altered"
    pretrained.trained(run, "vqvae")
    assert f"{path} is missing or was altered; vqvae is trained instead" in capsys.readouterr().out
    path.unlink()
    assert f"{path} is missing" in pretrained.misfit(run, "transformer")
    (pretrained.HOME / pretrained.MANIFEST).unlink()
    assert "manifest.json" in pretrained.misfit(run, "transformer")


def test_other_subjects_and_other_tokens_are_trained(run: Run):
    pretrained.trained(run, "vqvae", scratch=True)
    assert pretrained.misfit(run, "transformer") == "other tokens"
    run.cohort.info["request"] = {"source": "elsewhere"}
    assert pretrained.misfit(run, "vqvae") == "other subjects"


def test_figures_say_which_models_were_hardly_trained(run: Run):
    pretrained.trained(run, "vqvae", scratch=True)
    figure, _ = new_figure()
    run.figure("02_any", figure, "A caption.")
    assert f"steps of {JUDGED} needed: vqvae {run.hardly_trained()['vqvae']})" in figure.texts[-1].get_text()
    history = pd.read_csv(run.path("vqvae", "history.csv"))
    history.assign(step=JUDGED).to_csv(run.path("vqvae", "history.csv"), index=False)
    assert run.hardly_trained() == {}
