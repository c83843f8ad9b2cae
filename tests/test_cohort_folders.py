"""Folders of images: every layout that subjects have, read back with known values."""

from __future__ import annotations

import numpy as np
import pytest
from cohort_files import flat_splits, head, save

from oasis_lib.cohort import CohortError, prepare
from oasis_lib.cohort.source import centred, parse_name


def make(source, tmp_path, **options):
    return prepare(source, tmp_path / "out", size=32, progress=False, **options)


def test_flat_split_folders_keep_splits_values_and_participants(tmp_path):
    source = flat_splits(tmp_path / "in")
    (source / "participants.tsv").write_text("participant_id\tage\tcdr\nsub-001\t70\t0.5\nsub-002\t30\t0\n")
    cohort = make(source, tmp_path)
    assert cohort.info["counts"] == {"train": 12, "validate": 6, "test": 6}
    train = cohort["train"]
    assert list(train.table["slice_index"][:4]) == [0, 1, 2, 0] and cohort.slice_indices == 3
    np.testing.assert_array_equal(train.images[1], centred(head(value=16), 32))
    assert train.table["cdr"][0] == 0.5 and np.isnan(train.table["cdr"].iloc[-1]) and cohort.cdrs == [0.0, 0.5]
    assert isinstance(train.images, np.memmap) and train.images.dtype == np.uint8
    assert not cohort.synthetic and cohort.info["warnings"] == []
    assert set(cohort.subjects["split"]) == {"train", "validate", "test"}
    assert "test" in cohort and "lesion" not in cohort
    with pytest.raises(KeyError, match="has no split 'lesion'; it has train, validate, test"):
        cohort["lesion"]


def test_course_layout_gives_the_same_arrays_and_its_masks(tmp_path):
    flat = make(flat_splits(tmp_path / "flat"), tmp_path)
    course = tmp_path / "course" / "keras_png_slices_data"
    for split in ("train", "validate", "test"):
        table = flat[split].table
        for image, subject, slice_index in zip(flat[split].images, table["subject"], table["slice_index"]):
            number = int(subject[4:])
            save(
                course / f"keras_png_slices_{split}" / f"case_{number:03d}_slice_{slice_index}.nii.png",
                np.asarray(image),
            )
            mask = (np.arange(32 * 32).reshape(32, 32) % 4 * 85).astype(np.uint8)
            save(course / f"keras_png_slices_seg_{split}" / f"seg_{number:03d}_slice_{slice_index}.nii.png", mask)
    cohort = prepare(tmp_path / "course", tmp_path / "again", size=32, progress=False)
    for split in flat.splits:
        np.testing.assert_array_equal(flat[split].images, cohort[split].images)
        np.testing.assert_array_equal(flat[split].slice_indices, cohort[split].slice_indices)
        np.testing.assert_array_equal(cohort[split].tissue[0].ravel()[:8], [0, 1, 2, 3, 0, 1, 2, 3])
    assert flat["train"].tissue is None


def test_the_course_set_itself_has_9664_1120_and_544_slices(tmp_path):
    """The counts of the published course set, here with tiny images under its names."""
    subject = 0
    for split, subjects in (("train", 302), ("validate", 35), ("test", 17)):
        for _ in range(subjects):
            subject += 1
            for slice_index in range(32):
                path = tmp_path / "in" / f"keras_png_slices_{split}" / f"case_{subject:03d}_slice_{slice_index}.nii.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(TINY)
    cohort = prepare(tmp_path / "in", tmp_path / "out", size=16, progress=False)
    assert cohort.info["counts"] == {"train": 9664, "validate": 1120, "test": 544} and cohort.slice_indices == 32
    parts = [set(cohort[s].subjects) for s in cohort.splits]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 354


def _tiny() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save(file, "png")
    return file.getvalue()


TINY = _tiny()


def test_class_folders_without_subjects_warn_of_leaks_and_are_stratified(tmp_path):
    for group, count in (("MildDemented", 20), ("NonDemented", 40)):
        for i in range(count):
            save(tmp_path / "in" / group / f"{group[:4]} ({i}).png", head(value=20 + i))
    cohort = make(tmp_path / "in", tmp_path)
    assert "leak" in cohort.info["warnings"][0] and cohort.slice_indices == 0
    assert (cohort["train"].slice_indices == -1).all()
    for split, count in (("train", 48), ("validate", 6), ("test", 6)):
        assert len(cohort[split]) == count
        assert (cohort[split].table["group"] == "MildDemented").sum() == count // 3


def test_class_folders_with_subjects_are_split_by_subject(tmp_path):
    for i in range(10):
        for slice_index in (80, 81, 82):
            save(
                tmp_path / "in" / ("AD" if i % 2 else "NC") / f"OAS1_{i:04d}_MR1_mpr-1_{slice_index}.jpg",
                head(value=60),
            )
    cohort = make(tmp_path / "in", tmp_path)
    assert cohort.slice_indices == 3 and cohort["train"].table["session"].eq("MR1").all()
    parts = [set(cohort[s].subjects) for s in cohort.splits]
    assert sum(map(len, parts)) == 10 and all(parts)
    assert set(cohort["train"].table["group"]) == {"AD", "NC"}


def test_image_folder_inside_given_splits_with_bare_numbers(tmp_path):
    for subject in range(6):
        for slice_index in (70, 71):
            split = ("train", "val", "test")[subject % 3]
            save(tmp_path / "in" / split / "AD" / f"{1000 + subject}_{slice_index}.jpeg", head(value=80))
    cohort = make(tmp_path / "in", tmp_path)
    assert cohort.info["counts"] == {"train": 4, "validate": 4, "test": 4}
    assert list(cohort["train"].table["slice_index"]) == [0, 1, 0, 1] and cohort["train"].subjects[0] == "1000"


def test_colour_is_turned_grey_and_says_so(tmp_path):
    source = flat_splits(tmp_path / "in", slice_indices=1)
    first = sorted((source / "train").iterdir())[0]
    save(first, np.repeat(head(value=90)[..., None], 3, axis=2))
    cohort = make(source, tmp_path)
    np.testing.assert_array_equal(cohort["train"].images[0], centred(head(value=90), 32))
    assert "turned grey" in cohort.info["warnings"][0]


def test_16_bit_images_are_windowed_by_subject(tmp_path):
    for split in ("train", "validate", "test"):
        for slice_index in (1, 2):
            image = head(value=1000 * slice_index, dtype=np.uint16)
            save(tmp_path / "in" / split / f"sub-{split}_slice-{slice_index}.png", image)
    cohort = make(tmp_path / "in", tmp_path)
    first, second = cohort["train"].images
    assert second.max() == 255 and abs(int(first.max()) - 127) <= 1 and first[0, 0] == 0
    assert "16-bit" in cohort.info["intensity"]


@pytest.mark.parametrize(
    "path, expected",
    [
        ("train/sub-007_slice-05.jpg", ("sub-007", "", 5)),
        ("case_402_slice_31.nii.png", ("case_402", "", 31)),
        ("sub-AB12_ses-02_slice-3.png", ("sub-AB12", "ses-02", 3)),
        ("Non Demented/OAS1_0001_MR2_mpr-1_100.jpg", ("OAS1_0001", "MR2", 100)),
        ("sub-3/slice_12.png", ("sub-3", "", 12)),
        ("sub-3_level-12_T1.png", ("sub-3", "", 12)),
        ("26 (19).jpg", ("", "", -1)),
    ],
)
def test_names(path, expected):
    from pathlib import Path

    assert parse_name(Path(path)) == expected


def test_a_subject_in_two_splits_is_refused_by_name(tmp_path):
    source = flat_splits(tmp_path / "in")
    save(source / "test" / "sub-001_slice-09.png", head())
    with pytest.raises(CohortError, match="two splits.*sub-001"):
        make(source, tmp_path)
