"""What notebooks 05 and 06 leave behind, and the panels over a run that has priors."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from oasis_lib import sampling
from oasis_lib.cohort import Cohort, open_cohort
from oasis_lib.config import PRIORS, profile
from oasis_lib.evaluation import features
from oasis_lib.evaluation.evaluator import Evaluator
from oasis_lib.evaluation.features import Samples
from oasis_lib.evaluation.generation import SETTINGS
from oasis_lib.explore import Generator, Painter
from oasis_lib.models import load
from oasis_lib.run import Run


@pytest.fixture(scope="module")
def run(smoke) -> Run:
    return Run(smoke.folder, profile("smoke"), smoke.cohort)


def test_every_prior_has_samples_of_every_slice_index(run):
    drawn = sampling.read_all(run)
    assert set(drawn) == set(PRIORS)
    for one in drawn.values():
        assert one["images"].dtype == np.uint8 and one["images"].shape[1:] == (64, 64)
        assert one["codes"].dtype == np.int16 and set(one["slice_index"]) == set(range(32))


def test_a_cut_that_was_chosen_is_not_asked_of_a_prior_without_probabilities(run, tmp_path):
    shutil.copytree(run.path("codegan"), tmp_path / "codegan")
    shutil.copytree(run.path("transformer"), tmp_path / "transformer")
    other = dataclasses.replace(run, folder=tmp_path)
    drawn = sampling.draw_all(
        other, sampling.trained_priors(other), load(run.path("vqvae")), temperature=0.9, top_p=0.9
    )
    assert set(drawn) == {"transformer", "codegan"}


def test_the_account_has_baseline_controls_and_verdict(run):
    account = json.loads(run.path("metrics.json").read_text())
    table = account["generation"]["table"]
    for row in (
        "real-vs-real",
        "positional tokens",
        "unigram tokens",
        "blur",
        "mean image",
    ):
        assert table[row]["frechet"] is not None
    verdicts = account["generation"]["verdict"]
    assert set(verdicts["real-vs-real"]) == set(verdicts["transformer"]) and "recall" in verdicts["transformer"]
    assert all(one["verdict"] != "missed" for one in verdicts["real-vs-real"].values()), "real subjects never miss"
    sets = {row["set"] for row in account["generation"]["detectability"]}
    assert sets >= {"real-vs-real", "reconstructions, faithful", "transformer", "positional tokens", "blur"}
    assert account["generation"]["anomaly"]["surprisal"]["roc_area"] is not None
    settings = account["generation settings"]
    assert settings["chosen"] in SETTINGS and set(settings["tried"]) == set(SETTINGS)
    assert account["reconstruction"]["black image"]["ssim_brain"] < 0.1


def test_the_trained_features_are_kept_and_not_trained_twice(run, monkeypatch):
    monkeypatch.setattr(Evaluator, "_train_network", lambda self: pytest.fail("trained again"))
    Evaluator(run.cohort, run.profile.evaluation, cache=run.path("evaluation"))


def test_filling_a_box_leaves_the_rest(run):
    codes = np.load(run.path("codes", "test.npy"))[20]
    filled, mask = sampling.fill_box(load(run.path("transformer")), codes, 20)
    assert (filled[:, ~mask] == codes[~mask]).all() and (filled[:, mask] != codes[mask]).any()


def test_a_head_of_kept_codes_is_one_map(run):
    """Where every code stays, nothing is left to draw."""
    prior = load(run.path("transformer"))
    head = sampling.whole_brain(prior, np.ones((2, *prior.grid)), seed=3)
    assert head.shape == (1, 3, *prior.grid) and (head[:, 1:] == head[:, :1]).all()


def test_the_generator_draws_what_is_asked_for_and_again_the_same(run):
    panel = Generator(run)
    values = {name: control.value for name, control in panel.controls().items()}
    assert set(values) == {"prior", "slice_index", "temperature", "top_p", "guidance", "seed", "cdr"}
    assert "press Draw" in panel.tiles(values | {"seed": 7})[1]
    first = [tile for _, tile in panel.tiles(values, work=True)[0]]
    panel.done.clear()
    assert all((a == b).all() for a, (_, b) in zip(first, panel.tiles(values, work=True)[0]))


def test_the_painter_changes_nothing_outside_its_box(run):
    panel = Painter(run)
    values = panel.examples()[0]
    tiles, words = panel.tiles(values, work=True)
    assert "0 outside it" in words and len(tiles) == 4


def test_both_panels_have_a_twin(run):
    for panel in (Generator(run), Painter(run)):
        assert len(panel.twin_png) > 10_000


def test_what_is_known_of_subjects_is_kept_and_only_while_it_holds(smoke, run, tmp_path, monkeypatch):
    cohort, vqvae = open_cohort(smoke.cohort), load(run.path("vqvae"))
    vqvae.folder = None  # it is to be changed, and the run's own codes are not
    settings = profile("smoke", ["evaluation.feature_steps=2"]).evaluation
    first = Evaluator(cohort, settings, cache=tmp_path, vqvae=vqvae)
    (bank, lines), looked, extract = first.audit, [], features.extract
    monkeypatch.setattr(features, "extract", lambda *given: looked.append(given) or extract(*given))
    again = Evaluator(cohort, settings, cache=tmp_path, vqvae=vqvae)
    np.testing.assert_array_equal(again.audit[0]["features"], bank["features"])
    assert again.audit[1]["pixels"].line == lines["pixels"].line and not looked
    with torch.no_grad():
        vqvae.quantizer.codebook.add_(0.1)
    assert Evaluator(cohort, settings, cache=tmp_path, vqvae=vqvae).audit
    assert len(looked) == 3, "other tokens: the subjects of three splits are looked at anew, and no more"


def test_a_cohort_without_slice_indices_can_be_judged(smoke, run):
    """Folders of loose images know no slice index: all measures but those of slice indices still hold."""
    from oasis_lib.cohort import Split

    whole = open_cohort(smoke.cohort)
    splits = {
        name: Split(name, whole[name].images, whole[name].table.assign(slice_index=-1))
        for name in ("train", "validate", "test")
    }
    flat = Cohort(whole.folder, whole.info | {"slice_indices": 0, "hash": "flat"}, splits)
    evaluator = Evaluator(flat, profile("smoke", ["evaluation.feature_steps=2"]).evaluation)
    found = evaluator.measure(Samples(np.asarray(whole["test"].images), np.full(len(whole["test"]), -1)))
    assert "slice_index_error" not in found and np.isfinite(found["frechet"])
