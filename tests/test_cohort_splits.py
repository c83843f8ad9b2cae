"""Properties of splits and of padding, for any subjects and any size."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from oasis_lib.cohort.source import centred, cut_note
from oasis_lib.cohort.subjects import join_subjects, split_subjects, subject_key


@given(st.integers(3, 200), st.integers(0, 99), st.sampled_from([(0.1, 0.1), (0.15, 0.15), (0.2, 0.1), (0.3, 0.3)]))
@settings(max_examples=60, deadline=None)
def test_everybody_is_in_one_split_and_every_split_has_somebody(count, seed, fractions):
    subjects = pd.DataFrame({"subject": [f"sub-{i}" for i in range(count)]})
    chosen = split_subjects(subjects, seed, fractions)
    assert list(chosen) and set(chosen) == set(subjects["subject"])
    sizes = pd.Series(chosen).value_counts()
    assert set(sizes.index) == {"train", "validate", "test"}
    for name, fraction in zip(("validate", "test"), fractions):
        assert abs(sizes[name] - max(1, round(fraction * count))) <= 1
    assert chosen == split_subjects(subjects, seed, fractions)


@given(st.integers(10, 60), st.integers(10, 60), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_cdrs_are_spread_over_the_splits(healthy, ill, seed):
    subjects = pd.DataFrame({"subject": [str(i) for i in range(healthy + ill)], "cdr": [0.0] * healthy + [1.0] * ill})
    subjects["split"] = subjects["subject"].map(split_subjects(subjects, seed, (0.2, 0.2)))
    share = ill / (healthy + ill)
    for _, group in subjects.groupby("split"):
        assert abs((group["cdr"] == 1).sum() - share * len(group)) <= 2


@given(st.integers(1, 60), st.integers(1, 60), st.integers(16, 64))
@settings(max_examples=80, deadline=None)
def test_padding_and_cropping_keep_pixels_and_the_centre(height, width, size):
    image = np.arange(1, height * width + 1).reshape(height, width)
    out = centred(image, size)
    assert out.shape == (size, size)
    kept = out[out > 0].reshape(min(height, size), min(width, size))
    top, left = max(0, (height - size) // 2), max(0, (width - size) // 2)
    np.testing.assert_array_equal(kept, image[top : top + size, left : left + size])
    rows, columns = np.nonzero(out)
    assert abs(rows.min() - (size - 1 - rows.max())) <= 1 and abs(columns.min() - (size - 1 - columns.max())) <= 1
    np.testing.assert_array_equal(centred(out, size), out)
    assert (cut_note([image > 0], size) == []) == (height <= size and width <= size)


def test_subjects_are_the_same_under_the_names_that_sheets_use():
    assert subject_key("sub-007") == subject_key("case_007") == subject_key("7") == "7"
    assert subject_key("OAS1_0007_MR2") == subject_key("OAS1_0007") == "oas1_0007"
    subjects = pd.DataFrame({"subject": ["sub-01", "sub-02"], "split": ["train", "test"]})
    joined = join_subjects(subjects, pd.DataFrame({"subject": ["2", "2", "3"], "age": [50, 51, 9]}))
    assert joined["age"].tolist()[1] == 50 and np.isnan(joined["age"][0]) and len(joined) == 2
