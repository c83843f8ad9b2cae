"""Every measure in use must rank real subjects, reconstructions, samples and nonsense, and worsen as blur grows."""

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
from oasis_lib.evaluation.detectability import Recipe
from oasis_lib.evaluation.evaluator import Evaluator, Samples, pick_rows
from oasis_lib.evaluation.generation import compare
from oasis_lib.evaluation.instrument import Instrument, Report
from oasis_lib.models import build, load
from oasis_lib.training import encode_cohort, train_prior, train_vqvae

LADDER = ["real-vs-real", "reconstructions, faithful", "transformer", "unigram tokens"]
HIGHER_IS_WORSE = ["frechet", "ms_ssim_gap", "tissue_distance", "ventricle_distance"]
LOWER_IS_WORSE = ["precision"]
# Recall is reported but not ranked by: scattered samples have wide neighbourhoods, and take in every real slice.
BLURS = (0.0, 0.7, 1.5)
DETECTED = ["reconstructions, faithful", "transformer", "positional tokens", "unigram tokens"]  # the order asked for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[pd.DataFrame, Report]:
    root = tmp_path_factory.mktemp("ranks")
    prepare("phantom", root / "cohort", size=64, subjects=24, lesions=2, seed=0, progress=False)
    cohort = open_cohort(root / "cohort")
    settings = ["vqvae.epochs=16", "vqvae.codebook_size=128", "transformer.epochs=5", "transformer.width=64"]
    settings += ["evaluation.feature_steps=150", "evaluation.detector_steps=120"]
    profile = config.profile("smoke", settings)
    train_vqvae(cohort, root / "vqvae", profile.vqvae, progress=False)
    encode_cohort(root / "vqvae", cohort)
    train_prior("transformer", cohort, root / "vqvae", root / "transformer", profile.transformer, progress=False)
    few = config.profile("smoke", [*settings, "vqvae.epochs=2", "vqvae.codebook_size=2", "vqvae.autoencoder_steps=4"])
    train_vqvae(cohort, root / "few" / "vqvae", few.vqvae, progress=False)
    train_prior("transformer", cohort, root / "few" / "vqvae", root / "few" / "transformer", few.transformer, progress=False)
    return measure(cohort, root, profile.evaluation)


@pytest.fixture(scope="module")
def ladder(measured) -> pd.DataFrame:
    return measured[0]


def measure(cohort, root, settings) -> tuple[pd.DataFrame, Report]:
    vqvae, prior = load(root / "vqvae"), load(root / "transformer")
    evaluator = Evaluator(cohort, settings, cache=root / "evaluation", vqvae=vqvae)
    sets = {"transformer": samples.as_samples(sampling.draw(prior, vqvae, sampling.even_slice_indices(128, cohort.slice_indices)))}
    few = load(root / "few" / "transformer"), load(root / "few" / "vqvae")
    sets["two codes"] = samples.as_samples(sampling.draw(*few, sampling.even_slice_indices(128, cohort.slice_indices)))
    used = np.unique(np.load(root / "codes" / "train.npy"))
    assert len(used) >= 64, "the trained codebook is to be put to use"
    learned = by_heart(cohort, root / "codes", vqvae.config.codebook_size)
    sets["by heart"] = samples.as_samples(sampling.draw(learned, vqvae, sampling.even_slice_indices(128, cohort.slice_indices)))
    sets |= samples.references(evaluator, vqvae)
    baseline = evaluator.baseline
    rows = pick_rows(baseline.slice_indices, evaluator.counts(baseline.slice_indices), np.random.default_rng(0))
    for sigma in BLURS:
        images = samples.blurred(np.asarray(baseline.images[rows]), sigma)
        sets[f"blur {sigma}"] = Samples(images, baseline.slice_indices[rows], baseline.subjects[rows])
    config = Recipe(steps=settings.detector_steps, seed=settings.seed)
    instrument = Instrument(cohort, split="test", recipe=config, scales=(1, 2, 4))
    detected = {name: sets[name].given for name in sets if name in DETECTED}
    return compare(evaluator, sets), instrument.compare(detected)


def by_heart(cohort, codes, codebook_size):
    """A prior overfitted on purpose: it knows one training subject, and nobody else."""
    train = cohort["train"]
    own = train.subjects == train.subjects[0]
    maps, slice_index = (
        torch.from_numpy(np.load(codes / "train.npy")[own]).long(),
        torch.from_numpy(train.slice_indices[own]).long(),
    )
    torch.manual_seed(0)
    config = TransformerConfig(width=64, layers=2, heads=2, dropout=0.0, token_dropout=0.0)
    prior = build("transformer", config, grid=maps.shape[1:], codebook_size=codebook_size, slice_indices=cohort.slice_indices)
    prior.start(maps)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(120):
        loss = F.cross_entropy(prior(maps, slice_index).flatten(0, -2), prior.targets(maps).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prior.eval()


@pytest.mark.parametrize("measure", [*HIGHER_IS_WORSE, *LOWER_IS_WORSE, "slice_index_error"])
def test_it_ranks_real_subjects_reconstructions_samples_and_nonsense(ladder, measure):
    sign = -1 if measure in LOWER_IS_WORSE else 1
    values = sign * ladder.loc[LADDER, measure].to_numpy(float)
    slack = 0.05 * (values[-1] - values[0])  # neighbours on the ladder may tie
    assert slack > 0 and (np.diff(values) >= -slack).all(), f"{measure}: {dict(zip(LADDER, sign * values))}"


@pytest.mark.parametrize("measure", HIGHER_IS_WORSE + LOWER_IS_WORSE)
def test_it_worsens_as_blur_grows(ladder, measure):
    sign = 1 if measure in HIGHER_IS_WORSE else -1
    values = sign * ladder.loc[[f"blur {sigma}" for sigma in BLURS], measure].to_numpy(float)
    assert (np.diff(values) >= 0).all() and values[0] < values[-1], f"{measure}: {sign * values}"


def test_intervals_hold_their_values_and_leave_nonsense_out(ladder):
    """Drawing subjects with replacement made intervals that left out their own middle."""
    for measure in ("frechet", "precision", "tissue_distance"):
        low, value, high = (ladder[f"{measure}{end}"] for end in ("_low", "", "_high"))
        assert (low <= value).all() and (value <= high).all()
    assert ladder.loc["unigram tokens", "frechet_low"] > ladder.loc["real-vs-real", "frechet_high"]


@pytest.mark.parametrize("where", ["pixels", "features"])
def test_a_prior_that_learned_a_subject_by_heart_is_caught(ladder, where):
    caught = ladder[f"memorised_{where}"].astype(float)
    assert caught["by heart"] > 0.5
    assert caught[["real-vs-real", "transformer"]].max() < 0.2


def test_samples_do_not_get_worse_as_epochs_and_used_codes_grow(ladder):
    """An earlier project had to stop after two epochs, when two codes were in use, or its samples fell to pieces.

    Areas of tissue are not asked: two greys alone have nearly the right ones.
    """
    assert ladder.loc["transformer", "frechet"] < 0.7 * ladder.loc["two codes", "frechet"]


def test_slice_index_agreement_is_about_obedience_not_sharpness(ladder):
    """A mean image is at the right slice index, and a little blur calms the reader: no ladder of blur is asked of this measure."""
    assert ladder.loc["mean image", "slice_index_error"] < ladder.loc["unigram tokens", "slice_index_error"]


def test_the_seeds_count_does_not_rank_and_is_in_no_verdict(ladder):
    count = ladder["seeds_count"].astype(float)
    assert count["mean image"] >= count["reconstructions, faithful"], "the rule prefers one grey average to true copies"
    assert memorisation.SEEDS_LINE == 0.6


def test_detectability_ranks_real_reconstructions_prior_and_controls(measured):
    """Strictly in the mean AUC where it can be: once two sets are always detected at every scale, they tie at 1."""
    summary = measured[1].summary()
    mean = summary.loc[["real-vs-real", *DETECTED], "mean"].to_numpy(float)
    assert (np.diff(mean) > -0.01).all(), summary.to_string()
    assert mean[0] < mean[1] and mean[2] < mean[4], summary.to_string()
    table = measured[1].table().set_index(["set", "scale"])
    for coarse in sorted(table.index.get_level_values("scale").unique())[1:]:
        at = table.xs(coarse, slice_index="scale").loc[["real-vs-real", *DETECTED]]
        assert all(at["high"].iloc[i + 1 :].min() >= at["low"].iloc[i] for i in range(len(at) - 1)), "reversed beyond its interval"
