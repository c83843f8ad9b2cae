"""Every measure in use must rank real people, reconstructions, samples and nonsense, and worsen as blur grows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from oasis_lib import config, sampling
from oasis_lib.cohort import open_cohort, prepare
from oasis_lib.config import TransformerConfig
from oasis_lib.evaluation import memorisation, samples
from oasis_lib.evaluation.evaluator import Evaluator, Samples, pick_rows
from oasis_lib.evaluation.generation import compare
from oasis_lib.models import build, load
from oasis_lib.training import encode_cohort, train_prior, train_vqvae

LADDER = ["synthetic training people", "reconstructed training people", "transformer", "unigram codes"]
HIGHER_IS_WORSE = [f"{name}_{space}" for name in ("frechet", "kernel") for space in ("trained", "fixed")]
HIGHER_IS_WORSE += ["two_sample", "ms_ssim_gap", "tissue_distance", "ventricle_distance", "spectrum_db"]
LOWER_IS_WORSE = [f"{name}_{space}" for name in ("precision", "density", "coverage") for space in ("trained", "fixed")]
# Recall is reported but not ranked by: scattered samples have wide neighbourhoods, and take in every real slice.
BLURS = (0.0, 0.7, 1.5)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ladder(tmp_path_factory) -> pd.DataFrame:
    root = tmp_path_factory.mktemp("ranks")
    prepare("phantom", root / "cohort", size=64, people=24, lesions=2, seed=0, progress=False)
    cohort = open_cohort(root / "cohort")
    settings = ["vqvae.epochs=16", "vqvae.entries=128", "transformer.epochs=5", "transformer.width=64"]
    settings += ["evaluation.feature_steps=150", "evaluation.draws=3"]
    profile = config.profile("smoke", settings)
    train_vqvae(cohort, root / "vqvae", profile.vqvae, progress=False)
    encode_cohort(root / "vqvae", cohort)
    train_prior("transformer", cohort, root / "vqvae", root / "transformer", profile.transformer, progress=False)
    few = config.profile("smoke", [*settings, "vqvae.epochs=2", "vqvae.entries=2", "vqvae.warm=4"])
    train_vqvae(cohort, root / "few" / "vqvae", few.vqvae, progress=False)
    train_prior("transformer", cohort, root / "few" / "vqvae", root / "few" / "transformer", few.transformer, progress=False)
    return measure(cohort, root, profile.evaluation)


def measure(cohort, root, settings) -> pd.DataFrame:
    vqvae, prior = load(root / "vqvae"), load(root / "transformer")
    evaluator = Evaluator(cohort, settings, cache=root / "evaluation", vqvae=vqvae)
    sets = {"transformer": samples.as_samples(sampling.draw(prior, vqvae, sampling.even_levels(128, cohort.levels)))}
    few = load(root / "few" / "transformer"), load(root / "few" / "vqvae")
    sets["two codes"] = samples.as_samples(sampling.draw(*few, sampling.even_levels(128, cohort.levels)))
    used = np.unique(np.load(root / "codes" / "train.npy"))
    assert len(used) >= 64, "the trained codebook is to be put to use"
    learned = by_heart(cohort, root / "codes", vqvae.config.entries)
    sets["by heart"] = samples.as_samples(sampling.draw(learned, vqvae, sampling.even_levels(128, cohort.levels)))
    sets |= samples.references(evaluator, vqvae)
    floor = evaluator.floor
    rows = pick_rows(floor.levels, evaluator.counts(floor.levels), np.random.default_rng(0))
    for sigma in BLURS:
        images = samples.blurred(np.asarray(floor.images[rows]), sigma)
        sets[f"blur {sigma}"] = Samples(images, floor.levels[rows], floor.people[rows])
    return compare(evaluator, sets)


def by_heart(cohort, codes, entries):
    """A prior overfitted on purpose: it knows one training person, and nobody else."""
    train = cohort["train"]
    own = train.subjects == train.subjects[0]
    maps, level = torch.from_numpy(np.load(codes / "train.npy")[own]).long(), torch.from_numpy(train.levels[own]).long()
    torch.manual_seed(0)
    config = TransformerConfig(width=64, layers=2, heads=2, dropout=0.0, hide=0.0)
    prior = build("transformer", config, grid=maps.shape[1:], entries=entries, levels=cohort.levels)
    prior.start(maps)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(120):
        loss = F.cross_entropy(prior(maps, level).flatten(0, -2), prior.targets(maps).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prior.eval()


@pytest.mark.parametrize("measure", [*HIGHER_IS_WORSE, *LOWER_IS_WORSE, "level_error"])
def test_it_ranks_real_people_reconstructions_samples_and_nonsense(ladder, measure):
    sign = -1 if measure in LOWER_IS_WORSE else 1
    values = sign * ladder.loc[LADDER, measure].to_numpy(float)
    slack = 0.05 * (values[-1] - values[0])  # neighbours on the ladder may tie
    assert slack > 0 and (np.diff(values) >= -slack).all(), f"{measure}: {dict(zip(LADDER, sign * values))}"


@pytest.mark.parametrize("measure", HIGHER_IS_WORSE + LOWER_IS_WORSE)
def test_it_worsens_as_blur_grows(ladder, measure):
    sign = 1 if measure in HIGHER_IS_WORSE else -1
    values = sign * ladder.loc[[f"blur {sigma}" for sigma in BLURS], measure].to_numpy(float)
    assert (np.diff(values) >= 0).all() and values[0] < values[-1], f"{measure}: {sign * values}"


def test_the_interval_of_a_ratio_holds_it(ladder):
    """Drawing people with replacement made intervals that left out their own middle."""
    drawn = ladder.drop(index="synthetic training people")
    for space in ("trained", "fixed"):
        low, ratio, high = (drawn[f"frechet_{space}_ratio{end}"].astype(float) for end in ("_low", "", "_high"))
        assert (low <= ratio).all() and (ratio <= high).all()  # equal where a set is the baseline itself
        wide = high / low
        assert wide["blur 0.0"] < wide["transformer"], "the floor's own people, left out of both sides together"
        assert low["unigram codes"] > 1, "nonsense is farther, whoever is left out"


@pytest.mark.parametrize("where", ["pixels", "trained"])
def test_a_prior_that_learned_a_person_by_heart_is_caught(ladder, where):
    caught = ladder[f"memorised_{where}"].astype(float)
    assert caught["by heart"] > 0.5
    assert caught[["synthetic training people", "transformer"]].max() < 0.2


def test_samples_do_not_get_worse_as_epochs_and_used_codes_grow(ladder):
    """An earlier project had to stop after two epochs, when two codes were in use, or its samples fell to pieces.

    Areas of tissue are not asked: two greys alone have nearly the right ones.
    """
    for measure in ("frechet_trained", "frechet_fixed", "two_sample"):
        assert ladder.loc["transformer", measure] <= ladder.loc["two codes", measure], measure
    assert ladder.loc["transformer", "frechet_fixed"] < 0.7 * ladder.loc["two codes", "frechet_fixed"]


def test_level_agreement_is_about_obedience_not_sharpness(ladder):
    """A mean image is at the right level, and a little blur calms the reader: no ladder of blur is asked of this measure."""
    assert ladder.loc["mean image", "level_error"] < ladder.loc["unigram codes", "level_error"]


def test_the_seeds_count_does_not_rank_and_is_in_no_verdict(ladder):
    count = ladder["seeds_count"].astype(float)
    assert count["mean image"] >= count["reconstructed training people"], "the rule prefers one grey average to true copies"
    assert memorisation.SEEDS_LINE == 0.6
