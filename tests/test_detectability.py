"""Detectors on small synthetic slices: what they must see, and what must be hidden from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from oasis_lib.evaluation.detectability import (
    SIDE,
    Recipe,
    Result,
    crops_of,
    detectability,
    folds_of,
    prepare,
    roc_area,
    without_cues,
)
from oasis_lib.evaluation.features import Samples
from oasis_lib.evaluation.instrument import Report
from oasis_lib.training.data import content_box

QUICK = Recipe(steps=50, draws=200, crops=2)


def slices(subjects: int, seed: int, slice_indices: int = 4) -> Samples:
    """Discs of smooth texture, brightness and size differing by subject."""
    rng, images = np.random.default_rng(seed), []
    y, x = np.mgrid[-1:1:80j, -1:1:80j]
    for _ in range(subjects):
        wide, bright = rng.uniform(0.7, 0.85), rng.uniform(110, 130)
        for slice_index in range(slice_indices):
            texture = gaussian_filter(rng.normal(0, 60, (80, 80)), 1.2)
            images.append(np.where(np.hypot(x, y) < wide - 0.05 * slice_index, bright + texture, 0).clip(0, 255))
    names = np.repeat([f"{seed}-{i}" for i in range(subjects)], slice_indices)
    return Samples(np.stack(images).astype(np.uint8), np.tile(np.arange(slice_indices), subjects), names)


@pytest.fixture(scope="module")
def real() -> list[Samples]:
    return [slices(16, seed) for seed in (1, 2, 3)]


def compared(real: list[Samples], change=lambda images: images, recipe=QUICK) -> Result:
    """The third set, changed, against the others, at full resolution."""
    box, changed = content_box(real[0].images, 2, 8), replace(real[2], images=change(real[2].images))
    fit, held, ready = (prepare(side, box, (1,)) for side in (*real[:2], changed))
    return detectability(fit, held, {"changed": ready}, recipe)["changed"][1]


def test_auc_with_weights_is_scikit_learns():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(0, 1, 30).round(1), rng.normal(0.5, 1, 20).round(1)
    weights = rng.integers(1, 4, (2, 30)).astype(float), rng.integers(1, 4, (2, 20)).astype(float)
    found = roc_area(real, generated, *weights)
    for draw in range(2):
        truth, scores = np.repeat([0, 1], [30, 20]), np.concatenate([real, generated])
        expected = roc_auc_score(truth, scores, sample_weight=np.concatenate([w[draw] for w in weights]))
        assert found[draw] == pytest.approx(expected)


def test_folds_keep_subjects_whole_and_slice_indices_even():
    slice_indices, alone = np.repeat(np.arange(5), 12), np.arange(60)
    fold = folds_of(slice_indices, alone, 3, np.random.default_rng(0))
    assert all((np.bincount(slice_indices[fold == f]) == 4).all() for f in range(3))
    subjects = np.repeat(np.arange(9), 4)
    fold = folds_of(np.tile(np.arange(4), 9), subjects, 3, np.random.default_rng(0)).reshape(9, 4)
    assert (fold == fold[:, :1]).all() and sorted(np.bincount(fold[:, 0])) == [3, 3, 3]


def test_a_grey_background_and_specks_in_it_are_removed(real):
    images = real[0].images[:4]
    dirty = np.where(images == 0, 6, images)
    dirty[:, 2, 2] = 60
    assert (without_cues(images)[:, :8] == 0).all()
    assert (without_cues(dirty) == without_cues(images)).mean() > 0.999


def test_crops_lie_inside_the_brain_and_have_one_size(real):
    images = np.zeros((2, 160, 160), np.uint8)
    images[:, 90:150, 90:150] = 100  # brain in one corner
    ready = prepare(Samples(images, np.zeros(2)), (slice(0, 160), slice(0, 160)), (1, 8))
    assert ready.scales[8].shape == (2, SIDE, SIDE)
    weight = ready.inside[1]
    places = torch.multinomial(weight, 20, replacement=True)
    crops = crops_of(ready.scales[1], torch.arange(2).repeat_interleave(20), places.flatten())
    assert crops.shape == (40, 1, SIDE, SIDE) and float((crops > 0).float().mean((1, 2, 3)).min()) > 0.45


def test_subjects_that_are_learned_on_may_not_be_tested(real):
    ready = prepare(real[0], content_box(real[0].images, 2, 8), (1,))
    with pytest.raises(ValueError, match="tested as well"):
        detectability(ready, ready, {"same": ready}, QUICK)


def test_other_real_subjects_are_not_detected_and_blur_is(real):
    same = compared(real)
    assert same.low <= 0.5 <= same.high
    mild = compared(real, lambda images: np.stack([gaussian_filter(image, 0.5) for image in images]))
    strong = compared(real, lambda images: np.stack([gaussian_filter(image, 1.2) for image in images]))
    assert same.auc < mild.auc <= strong.auc + 1e-6 and strong.auc > 0.98
    assert same.high < strong.low


def test_the_finest_scale_passed_needs_all_coarser_ones():
    def result(auc: float) -> Result:
        return Result(auc, auc - 0.05, auc + 0.05, 0.5)

    sets = {
        "real-vs-real": {2: result(0.5), 4: result(0.4), 8: result(0.5)},
        "good": {2: result(0.9), 4: result(0.49), 8: result(0.54)},
        "uneven": {2: result(0.5), 4: result(0.8), 8: result(0.5)},
        "bad": {2: result(0.5), 4: result(0.5), 8: result(0.9)},
    }
    summary = Report(sets, "mm").summary()
    assert list(summary.columns) == ["2 mm", "4 mm", "8 mm", "mean", "finest_passed"]
    finest = summary["finest_passed"]
    assert finest.iloc[:3].tolist() == [2.0, 4.0, 8.0] and np.isnan(finest["bad"])


def test_faint_texture_of_a_decoder_is_seen(real):
    """A grid of 6 grey levels amid texture of 60: detectors without a high-pass channel missed it."""
    faint = compared(real, lambda images: gridded(images, 6), Recipe(steps=150, draws=200, crops=2))
    assert faint.auc > 0.9 and faint.low > 0.75


def noisy(images: np.ndarray, strength: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, strength, images.shape)
    return np.where(images > 0, images + noise, 0).clip(0, 255).astype(np.uint8)


def gridded(images: np.ndarray, strength: float) -> np.ndarray:
    lines = (np.indices(images.shape[1:]) % 4 == 0).any(0)
    return np.where(images > 0, images + strength * lines, 0).clip(0, 255).astype(np.uint8)


def swapped(images: np.ndarray, count: float) -> np.ndarray:
    """So many patches of 16 x 16 pixels from the same place of another subject."""
    rng, changed = np.random.default_rng(0), images.copy()
    for row in range(len(images)):
        for _ in range(int(count)):
            top, left = rng.integers(16, 48, 2)
            other = images[(row + 4 * rng.integers(1, 16)) % len(images)]
            changed[row, top : top + 16, left : left + 16] = other[top : top + 16, left : left + 16]
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("spoil, strengths", [(noisy, (0.7, 20)), (gridded, (3, 14)), (swapped, (1, 12))])
def test_spoiled_slices_are_detected_the_more_the_stronger(real, spoil, strengths):
    mild, strong = (compared(real, lambda images: spoil(images, strength)) for strength in strengths)  # noqa: B023
    assert strong.low > 0.5 and strong.auc > mild.auc, (mild.auc, strong.auc)


def test_two_generated_slices_make_two_folds_and_one_is_refused(real):
    """Of three folds one would be empty, and its scores not a number."""
    box = content_box(real[0].images, 2, 8)
    fit, held = (prepare(side, box, (1,)) for side in real[:2])
    pair, alone = (prepare(real[2].some(np.arange(count) * 4), box, (1,)) for count in (2, 1))
    few = replace(QUICK, steps=2)
    found = detectability(fit, held, {"pair": pair}, few)["pair"][1]
    assert np.isfinite([found.auc, found.accuracy]).all()
    with pytest.raises(ValueError, match="at least two subjects"):
        detectability(fit, held, {"alone": alone}, few)


def test_sets_are_judged_alike_alone_and_beside_others_and_none_more_often_than_needed(real):
    """What one network finds without fail, no second is asked to confirm; all others are judged by three."""
    box, trained = content_box(real[0].images, 2, 8), []
    blurred = replace(real[2], images=np.stack([gaussian_filter(image, 1.5) for image in real[2].images]))
    fit, held, same, blurred = (prepare(side, box, (1,)) for side in (*real[:2], real[2], blurred))
    both = detectability(fit, held, {"same": same, "blurred": blurred}, QUICK, trained.append)
    assert both["same"] == detectability(fit, held, {"same": same}, QUICK)["same"]
    assert both["blurred"][1].auc >= QUICK.sure > both["same"][1].auc
    assert sum(trained) == 2 * QUICK.folds and trained.count(1) == 1 + QUICK.folds, "a skipped network counts as done"
