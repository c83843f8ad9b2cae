"""The embedded population: the same seed gives the same bytes, warps never fold, and subjects differ as subjects do."""

from __future__ import annotations

import numpy as np
import pytest

from oasis_lib.cohort import CohortError, prepare
from oasis_lib.cohort.anatomy import LATTICE, SHAPE, grow_warp, integrate, jacobian, template
from oasis_lib.cohort.phantom import LEVELS, draw_subjects, plan_phantom
from oasis_lib.cohort.store import Options

OPTIONS = {"size": 32, "subjects": 8, "lesions": 1, "progress": False}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return prepare("phantom", tmp_path_factory.mktemp("phantom") / "p", processes=2, **OPTIONS)


def test_the_same_seed_gives_the_same_bytes_whatever_the_processes(cohort, tmp_path):
    again = prepare("phantom", tmp_path / "p", processes=1, **OPTIONS)
    assert again.hash == cohort.hash
    np.testing.assert_array_equal(again["train"].images, cohort["train"].images)
    other = plan_phantom(Options(size=32, subjects=8, lesions=0, seed=1))
    assert not np.array_equal(other.read(other.items[0]).images, cohort["train"].images[:LEVELS])


def test_it_is_a_whole_cohort(cohort):
    assert cohort.synthetic and cohort.slice_indices == LEVELS and cohort.size == 32 and cohort.info["mm"] == 8.0
    assert list(cohort.splits) == ["train", "validate", "test", "lesion"] and 0.0 in cohort.cdrs
    for split in cohort.splits.values():
        assert len(split.images) == len(split.tissue) == len(split.table) and set(np.unique(split.tissue)) <= {
            0,
            1,
            2,
            3,
        }
        np.testing.assert_array_equal(split.images > 0, split.tissue > 0)  # exactly 0 outside the head
        np.testing.assert_array_equal(split.slice_indices.reshape(-1, LEVELS), [range(LEVELS)] * (len(split) // LEVELS))
    assert {"age", "sex", "cdr", "atrophy"} <= set(cohort["train"].table)


def test_a_lesion_is_a_dark_spot_in_a_copy_of_a_test_subject(cohort):
    lesion, test = cohort["lesion"], cohort["test"]
    assert set(lesion.subjects) <= set(test.subjects) and lesion.lesion.any()
    original = test.images[test.subjects == lesion.subjects[0]]
    mask = lesion.lesion > 0
    assert lesion.images[mask].mean() < original[mask].mean() - 40
    # Beyond the rim, which a pixel of 8 mm shares with the lesion, nothing at all is changed.
    from scipy.ndimage import binary_dilation

    far = ~binary_dilation(mask, np.ones((3, 3, 3)), iterations=4)
    assert np.abs(lesion.images[far].astype(int) - original[far]).max() <= 1  # the blur of a scanner reaches that far


def test_tissues_are_ordered_and_plausible(cohort):
    train = cohort["train"]
    fluid, grey, white = (train.images[train.tissue == k].mean() for k in (1, 2, 3))
    assert fluid + 30 < grey < white - 20
    share = [(train.tissue == k).sum() / (train.tissue > 0).sum() for k in (1, 2, 3)]
    assert 0.08 < share[0] < 0.35 and 0.25 < share[1] < 0.6 and 0.25 < share[2] < 0.6


def test_anterior_is_up_and_slice_indices_rise(cohort):
    """The brain is wider behind its middle than before it, and its top is smaller than its middle."""
    heads = np.mean(cohort["train"].tissue.reshape(-1, LEVELS, 32, 32) > 0, axis=0)
    assert heads[8, 20:24].sum() > heads[8, 8:12].sum() * 1.02
    areas = heads.sum((1, 2))
    assert areas[-1] < areas[8]


def test_subjects_of_one_slice_index_are_alike_yet_differ(cohort):
    subjects = cohort["train"].images.reshape(-1, LEVELS, 32 * 32)[:, 16].astype(float)
    alike = np.corrcoef(subjects)[np.triu_indices(len(subjects), 1)]
    assert 0.6 < alike.min() and alike.max() < 0.98


def test_cdrs_follow_the_atrophy_that_was_simulated():
    subjects = draw_subjects(300, seed=3)
    of = {r: np.mean([p.atrophy for p in subjects if p.cdr == r and p.age > 60]) for r in (0.0, 0.5, 1.0)}
    assert of[0.0] + 0.1 < of[0.5] < of[1.0] - 0.1
    healthy = [p for p in subjects if p.cdr == 0]
    assert np.corrcoef([p.age for p in healthy], [p.atrophy for p in healthy])[0, 1] > 0.8
    assert min(p.age for p in subjects if p.cdr) >= 60


def test_ventricles_grow_with_the_atrophy():
    template()
    plan = plan_phantom(Options(size=64, subjects=20, lesions=0, seed=0))
    by_loss = plan.subjects.sort_values("atrophy")["subject"].tolist()
    fluid = {}
    for item in plan.items:
        if item.subject in by_loss[:3] + by_loss[-3:]:
            tissue = plan.read(item).tissue[10:22]
            fluid[item.subject] = (tissue[:, 16:48, 22:42] == 1).sum()
    assert max(fluid[s] for s in by_loss[:3]) < min(fluid[s] for s in by_loss[-3:])


@pytest.mark.parametrize("seed", range(3))
def test_warps_never_fold(seed):
    random = np.random.default_rng(seed)
    pull = 10 * template().towards_ventricles
    displacement, smallest = grow_warp(random, {34.0: 4.0, 14.0: 3.0, 7.0: 2.8}, pull)
    assert smallest > 0.05 and jacobian(displacement).min() == pytest.approx(smallest)
    assert 2 < np.linalg.norm(displacement, axis=0).max() < 40


def test_a_warp_that_would_fold_is_grown_gentler_or_refused():
    displacement, smallest = grow_warp(np.random.default_rng(0), {7.0: 18.0}, 0.0)
    assert smallest > 0.05
    with pytest.raises(ValueError, match="folds"):
        grow_warp(np.random.default_rng(0), {4.0: 4000.0}, 0.0)


def test_the_jacobian_and_the_integral_of_known_fields():
    x = LATTICE * np.arange(SHAPE[0])[:, None, None] * np.ones(SHAPE)
    stretch = np.stack([0.5 * x, np.zeros(SHAPE), np.zeros(SHAPE)])
    np.testing.assert_allclose(jacobian(stretch), 1.5)
    shift = np.stack([np.full(SHAPE, 3.0), np.zeros(SHAPE), np.zeros(SHAPE)])
    np.testing.assert_allclose(integrate(shift), shift)


def test_requests_that_make_no_sense_are_refused():
    with pytest.raises(CohortError, match="subjects=3"):
        plan_phantom(Options(size=32, subjects=3, lesions=0, seed=0))
    with pytest.raises(CohortError, match="lesions=9"):
        plan_phantom(Options(size=32, subjects=10, lesions=9, seed=0))
