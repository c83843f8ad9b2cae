"""Measures of generated brains: right in known cases, fair to real subjects, and deaf to what should not matter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter

from oasis_lib.cohort import Cohort, Split
from oasis_lib.evaluation import anomaly, distances
from oasis_lib.evaluation.anatomy import Mixture, SliceIndexRegressor, area_distance
from oasis_lib.evaluation.evaluator import Evaluator, parted, pick_rows
from oasis_lib.evaluation.features import Samples, Space, shared_counts, train_network
from oasis_lib.evaluation.generation import COPIES, TARGETS, UNKNOWN, beside_real, bounds, state, verdict
from oasis_lib.evaluation.likelihood import by_position
from oasis_lib.sampling import even_slice_indices, inpaint, kept_between_slices


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def heads(
    subjects: int, slice_indices: int = 4, size: int = 64, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Discs with a dark middle, bigger at higher slice indices, textured by subject."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2
    images, slice_index_of, subject_of = [], [], []
    for subject in range(subjects):
        texture = 30 * gaussian_filter(rng.normal(0, 3, (size, size)), 2)  # folds, not noise
        squash, hole = rng.uniform(0.85, 1.15), rng.uniform(4, 7)
        for slice_index in range(slice_indices):
            radius = np.sqrt((x * squash) ** 2 + y**2)
            image = np.where(radius < 16 + 3 * slice_index, 150 + texture, 0)
            images.append(np.where(radius < hole, 40, image).clip(0, 255))
            slice_index_of.append(slice_index)
            subject_of.append(f"p{subject}")
    return np.array(images).astype(np.uint8), np.array(slice_index_of), np.array(subject_of)


@pytest.mark.parametrize("synthetic, who", [(True, "synthetic"), (False, "real")])
def test_subjects_are_called_what_they_are(synthetic, who):
    images, slice_indices, subjects = heads(1)
    test = Split("test", images, pd.DataFrame({"subject": subjects, "slice_index": slice_indices}))
    cohort = Cohort(Path("nowhere"), {"synthetic": synthetic}, {"test": test})
    rows, _ = beside_real(cohort, {"transformer": {"images": images, "slice_index": slice_indices}})
    assert list(rows) == [f"{who} test subjects", "transformer"] and cohort.who("train") == f"{who} training subjects"


def test_frechet_of_two_normals_is_the_formula(rng):
    a, b = rng.normal(0, 1, (20_000, 3)), rng.normal(0, 2, (20_000, 3)) + np.array([1, 0, 0])
    assert distances.frechet(a, b) == pytest.approx(1 + 3 * (1 + 4 - 2 * 2), abs=0.15)
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_equals_the_textbook_matrix_root(rng):
    from scipy.linalg import sqrtm

    a, b = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(90, 5))
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    plain = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + other - 2 * sqrtm(one @ other).real)
    assert distances.frechet(a, b) == pytest.approx(plain, rel=1e-6)


def test_manifold_finds_dropped_modes_and_made_up_ones(rng):
    subjects = np.arange(200)
    real = np.concatenate([rng.normal(0, 1, (100, 2)), rng.normal(20, 1, (100, 2))])
    half, strange = rng.normal(0, 1, (200, 2)), rng.normal(100, 1, (200, 2))
    good = np.concatenate([rng.normal(0, 1, (100, 2)), rng.normal(20, 1, (100, 2))])
    good = distances.manifold(real, good, subjects, subjects)
    assert min(good.values()) > 0.8
    dropped = distances.manifold(real, half, subjects, subjects)
    assert dropped["precision"] > 0.8 and dropped["recall"] < 0.6
    assert max(distances.manifold(real, strange, subjects, subjects).values()) == 0


def test_subjects_are_left_out_of_all_sides_together(rng):
    real, copies, others = np.repeat(["a", "b", "c", "d"], 3), np.array(["d", "a", "c", "b"]), np.arange(10)
    parts = parted([copies, real, others], 4, rng)
    assert dict(zip(copies, parts[0])) == dict(zip(real, parts[1])) and sorted(parts[0]) == [0, 1, 2, 3]
    assert sorted(np.bincount(parts[2])) == [2, 2, 3, 3], "as equal as ten subjects can be shared out among four"


def test_slices_of_one_head_do_not_shrink_its_neighbourhood(rng):
    centres = rng.normal(0, 5, (20, 2))
    real = np.repeat(centres, 30, axis=0) + rng.normal(0, 1e-3, (600, 2))  # thirty near-copies a subject
    fake = centres[rng.integers(20, size=600)] + rng.normal(0, 0.5, (600, 2))
    subjects, alone = np.repeat(np.arange(20), 30), np.arange(600)
    assert distances.manifold(real, fake, subjects, alone)["precision"] > 0.8
    assert distances.manifold(real, fake, alone, alone)["precision"] < 0.2, "counting by slice calls it a failure"


def test_a_planted_copy_is_caught_even_shifted_mirrored_and_darker(rng):
    train, _, subjects = heads(12, seed=1)
    held, slice_indices, _ = heads(12, seed=2)
    bank = distances.thumbnails(train)
    line = distances.Calibration(distances.nearest(distances.thumbnails(held), bank, subjects), slice_indices)
    copies = np.roll(train[:, :, ::-1], (3, -2), axis=(1, 2)) * 0.9
    copies = copies + rng.normal(0, 4, copies.shape) * (copies > 0)
    points = distances.thumbnails(copies.clip(0, 255).astype(np.uint8))
    found = distances.nearest(points, bank, subjects, distances.mirrored(points))
    assert (line.relative(found, slice_indices) < line.line).mean() > 0.9
    others, other_slice_indices, _ = heads(12, seed=3)
    found = distances.nearest(distances.thumbnails(others), bank, subjects)
    assert (line.relative(found, other_slice_indices) < line.line).mean() <= 0.1, "new subjects are not copies"


def test_real_training_subjects_are_not_compared_with_themselves():
    train, _, subjects = heads(5)
    bank = distances.thumbnails(train)
    found = distances.nearest(bank, bank, subjects, own=subjects)
    assert (subjects[found.index] != subjects).all() and found.distance.min() > 0.01


def test_the_seeds_count_takes_black_for_a_brain():
    """Why that count appears in no verdict: small heads in a big frame."""
    images, _, _ = heads(3, slice_indices=1, size=128)
    best, index = distances.best_ssim(np.zeros_like(images[:1]), images, distances.shrink(images))
    assert best[0] > distances.SEEDS_LINE
    best, index = distances.best_ssim(images, images, distances.shrink(images))
    assert (index == np.arange(len(images))).all() and np.allclose(best, 1, atol=1e-4)


def test_a_space_is_white_on_what_it_was_fitted_on(rng):
    features = rng.normal(size=(200, 10)) @ rng.normal(size=(10, 30))
    points = Space.fit(features.astype(np.float32), 6).project(features)
    assert points.shape == (200, 6)
    np.testing.assert_allclose(np.cov(points, rowvar=False), np.eye(6), atol=0.05)


def test_the_feature_network_is_the_same_for_the_same_seed():
    images, slice_indices, subjects = heads(3)
    nets = [train_network(Samples(images, slice_indices, subjects), steps=3, seed=1) for _ in range(2)]
    for a, b in zip(nets[0].parameters(), nets[1].parameters()):
        assert torch.equal(a, b)


def test_the_slice_index_reader_reads_subjects_it_has_not_seen():
    images, slice_indices, subjects = heads(12)
    reader = SliceIndexRegressor(distances.shrink(images), slice_indices, subjects)
    new, new_slice_indices, _ = heads(6, seed=9)
    assert (np.abs(reader.read(distances.shrink(new)) - new_slice_indices) < 1.5).mean() > 0.95
    features = distances.shrink(images)
    known, unseen = (np.abs(reader.read(features, who) - slice_indices).mean() for who in (None, subjects))
    assert unseen > known, "a training subject is read by the model that has not seen it"


def test_the_mixture_finds_three_tissues_whatever_the_gain(rng):
    size = 64
    truth = np.zeros((6, size, size), np.uint8)
    truth[:, 8:56, 8:56], truth[:, 16:48, 16:48], truth[:, 28:36, 28:36] = 2, 3, 1
    images = np.choose(truth, [0, 50, 130, 200]) * rng.uniform(0.8, 1.2, (6, 1, 1))
    images += rng.normal(0, 5, truth.shape) * (truth > 0)
    found = Mixture.fit(images.clip(0, 255).astype(np.uint8)).segment(images.clip(0, 255).astype(np.uint8))
    assert (found == truth).mean() > 0.95


def test_area_distance_punishes_one_average_head(rng):
    slice_indices = np.repeat([0, 1], 50)
    real, other = rng.normal(10, 2, (2, 100, 4))
    average = np.full((100, 4), 10.0)
    assert (
        area_distance(average, slice_indices, real, slice_indices).min()
        > 2 * area_distance(other, slice_indices, real, slice_indices).max()
    )


def test_pairs_are_of_different_subjects():
    images, slice_indices, subjects = heads(2, slice_indices=2)
    alike = distances.pairwise_similarity(images, slice_indices, subjects)
    assert set(alike["slice_index"]) == {0, 1} and alike["ms_ssim"].max() < 0.999
    assert (subjects[alike["first"]] != subjects[alike["second"]]).all()
    assert distances.pairwise_similarity(images[:2], slice_indices[:2], subjects[:2]).empty


def test_a_map_that_shows_the_planted_lesion_scores_one(tmp_path, monkeypatch, rng):
    images, slice_indices, subjects = heads(3)
    table, mask = pd.DataFrame({"subject": subjects, "slice_index": slice_indices}), np.zeros(images.shape, np.uint8)
    mask[:6, 40:44, 30:34] = 1
    splits = {"lesion": Split("lesion", images, table, lesion=mask), "validate": Split("validate", images, table)}
    run = SimpleNamespace(cohort=Cohort(tmp_path, {}, splits), path=lambda *parts: tmp_path / parts[-1])
    for name in splits:
        np.save(tmp_path / f"{name}.npy", np.zeros((len(images), 8, 8)))
    prior = SimpleNamespace(log_probs=len, nll=len)

    def maps(split: Split, codes, prior, vqvae, rows) -> dict:
        noise = rng.random((len(rows), 64, 64))
        return {"blind": noise, "sees": noise + 5 * (mask[rows] if split.name == "lesion" else 0)}

    monkeypatch.setattr(anomaly, "maps", maps)
    scores, shown = anomaly.against_lesions(run, prior, None)
    assert len(shown["truth"]) == 6 and scores.loc["sees", "roc_area"] == 1 and scores.loc["sees", "dice"] > 0.5
    assert abs(scores.loc["blind", "roc_area"] - 0.5) < 0.2 and set(scores.index) >= {"sees, relative"}
    assert anomaly.against_lesions(run, SimpleNamespace(), None)[0].empty, "a prior without likelihood has no surprisal"


def test_rows_are_matched_by_slice_index(rng):
    slice_indices = np.repeat([0, 1, 2], [50, 5, 20])
    assert shared_counts(slice_indices, np.array([0, 0, 2, 3])) == {0: 2, 2: 1}
    with pytest.raises(ValueError, match="no slice index in common"):
        shared_counts(slice_indices, np.full(4, -1))
    rows = pick_rows(slice_indices, {0: 5, 1: 5, 2: 10}, rng)
    assert np.bincount(slice_indices[rows]).tolist() == [5, 5, 10] and len(set(rows)) == len(rows)
    assert set(np.bincount(even_slice_indices(65, 32))) == {2, 3} and (even_slice_indices(4, 0) == -1).all()
    assert even_slice_indices(4, 32).tolist() == [4, 12, 20, 28] and even_slice_indices(3, 3).tolist() == [0, 1, 2]


def test_too_few_slices_to_compare_are_refused_in_words():
    """Samples of one slice index, beside two test subjects: their covariance would not be a number."""

    def at(*slice_indices: int) -> Samples:
        return Samples(np.zeros((len(slice_indices), 4, 4), np.uint8), np.array(slice_indices))

    here = SimpleNamespace(real=at(3, 3, 4, 4), baseline=at(3, 3, 4, 4), split="test")
    here.cohort = SimpleNamespace(who=lambda split: f"real {split} subjects")
    assert Evaluator.counts(here, at(3, 3, 4, 4)) == {3: 2, 4: 2}
    with pytest.raises(
        ValueError, match=r"2 slices .* 4 are needed: all are at slice indices \[3\], where real test subjects"
    ):
        Evaluator.counts(here, at(*[3] * 32))


def test_codes_kept_between_slice_indices_are_counted_by_subject():
    codes = np.array([[[1, 2]], [[1, 3]], [[1, 2]], [[4, 2]]])
    kept = kept_between_slices(codes, np.array(["a", "a", "b", "b"]), np.array([0, 1, 0, 1]), 2)
    np.testing.assert_allclose(kept, [[[0.5, 0.5]]])


def test_a_prior_that_draws_whole_maps_says_which_ones_can_fill_in():
    gan = SimpleNamespace(kind="codegan")
    with pytest.raises(ValueError, match="codegan prior draws whole maps only; a transformer or"):
        inpaint(gan, np.zeros((1, 2, 2)), np.ones((2, 2), bool), 0)


def judged(**controls: float) -> pd.DataFrame:
    """Real-vs-real, a generator, and one negative control, all measures 0.5 +- 0.1 unless said otherwise."""
    table = pd.DataFrame(0.5, index=["real-vs-real", "samples", "unigram tokens"], columns=list(TARGETS))
    ends = {f"{name}_{end}": value for name in TARGETS for end, value in (("low", 0.4), ("high", 0.6))}
    table = table.assign(**ends, slices=96.0)
    table[list(COPIES)] = 0.0
    for name, value in controls.items():
        table.loc["unigram tokens", name] = value
    return table


def test_a_target_that_a_negative_control_meets_is_not_measurable():
    table = judged(frechet=0.9)
    assert verdict(table, None, "samples")["frechet"]["verdict"] == "met"
    assert verdict(table, None, "unigram tokens")["frechet"]["verdict"] == "missed"
    assert verdict(table, None, "samples")["tissue_distance"]["verdict"] == UNKNOWN, "the control would pass it as well"


def test_a_target_that_real_subjects_miss_or_one_slice_decides_is_not_measurable():
    table = judged()
    line = bounds(table).loc["memorised_pixels", "bound"]
    assert line == pytest.approx(3 / 96), "1 % of 96 by construction, 3 by chance"
    for count, wanted in ((0, "met"), (3, UNKNOWN), (4, UNKNOWN), (5, "missed"), (9, "missed")):
        table.loc["samples", "memorised_pixels"] = count / 96
        assert verdict(table, None, "samples")["memorised_pixels"]["verdict"] == wanted, count
    table.loc["real-vs-real", "memorised_pixels"] = 9 / 96
    assert verdict(table, None, "samples")["memorised_pixels"]["verdict"] == UNKNOWN, "real subjects miss it as well"
    assert state(float("nan"), "<=", 1.0, True) == UNKNOWN, "what was not measured is neither"


def test_positional_tokens_keep_frequencies_and_break_what_goes_together(rng):
    codes = np.repeat(np.arange(4), 50)[:, None, None] + np.zeros((1, 3, 3), int)  # constant maps
    drawn = by_position(codes, np.zeros(200, int), np.zeros(500, int), rng)
    np.testing.assert_allclose([(drawn == token).mean(0) for token in range(4)], 0.25, atol=0.08)
    assert (drawn.min((1, 2)) != drawn.max((1, 2))).mean() > 0.95
