"""Volumes of every kind, in every orientation, come out alike.

Anterior up, right on the right, slice indices bottom to top.
"""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from cohort_files import analyze, brain, nifti

from oasis_lib.cohort import CohortError, prepare
from oasis_lib.cohort.volumes import LEVELS

SIZE = 40


def make(tmp_path, **options):
    return prepare(tmp_path / "in", tmp_path / "out", size=SIZE, progress=False, **options)


def check_orientation(images: np.ndarray) -> None:
    """`brain`: brighter to the top, 20 more on the right, 60 more in front."""
    middle = images[LEVELS // 2].astype(int)
    rows, columns = np.nonzero(middle)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (9, 30, 12, 27)  # 22 x 16 voxels, centred
    front, back, left, right = middle[10, 15], middle[29, 15], middle[29, 13], middle[29, 26]
    assert front > back and right > left
    means = [image[image > 0].mean() for image in images]
    assert np.all(np.diff(means) >= 0) and means[-1] > means[0]


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "PIR", "ASL", "LIA"])
def test_nifti_in_any_orientation(tmp_path, axes):
    for subject in range(3):
        nifti(tmp_path / "in" / f"sub-{subject}_T1w.nii.gz", brain(), axes)
    cohort = make(tmp_path)
    assert cohort.slice_indices == LEVELS and cohort.info["mm"] == 1.0 and cohort.info["left_right"] == "columns"
    check_orientation(cohort["train"].images)


def test_values_are_windowed_by_percentile(tmp_path):
    for subject in range(3):
        nifti(tmp_path / "in" / f"sub-{subject}.nii", 7.5 * brain())
    images = make(tmp_path)["train"].images
    high = np.percentile(brain()[brain() > 0], 99.5)
    planes = np.round(2 + np.linspace(0.44, 0.74, LEVELS) * 35).astype(int)
    wanted = np.clip(brain()[:, :, planes[5]].T[::-1] / high, 0, 1) * 255
    np.testing.assert_allclose(images[5][5:35, 8:32], wanted, atol=1)


@pytest.mark.parametrize("suffix, kind", [(".mgz", nib.MGHImage), (".mgh", nib.MGHImage), (".nii", nib.Nifti1Image)])
def test_freesurfer_folders(tmp_path, suffix, kind):
    for subject in ("anna", "bert", "carl"):
        folder = tmp_path / "in" / subject / "mri"
        nifti(folder / f"brain{suffix}", brain(), "LIA", kind=kind)
        nifti(folder / f"aseg{suffix}", brain(), "LIA", kind=kind)
    cohort = make(tmp_path)
    check_orientation(cohort["train"].images)
    assert sorted(cohort.subjects["subject"]) == ["anna", "bert", "carl"]
    assert not any("leak" in warning for warning in cohort.info["warnings"])


@pytest.mark.parametrize("code, axes", [(0, "LAS"), (1, "LSA"), (2, "ASL")])
@pytest.mark.parametrize("big_endian", [True, False])
def test_analyze_with_its_orient_field(tmp_path, big_endian, code, axes):
    for subject in range(3):
        analyze(tmp_path / "in" / f"sub-{subject}.img", brain(), big_endian, axes, code)
    check_orientation(make(tmp_path)["train"].images)


def oasis1_disc(root, subjects=4):
    for subject in range(1, subjects + 1):
        for session in ("MR1", "MR2") if subject == 1 else ("MR1",):
            name = f"OAS1_{subject:04d}_{session}"
            folder = root / "disc1" / name
            stem = f"{name}_mpr_n4_anon_111_t88_masked_gfc"
            analyze(folder / "PROCESSED" / "MPRAGE" / "T88_111" / f"{stem}.img", brain()[..., None])
            analyze(folder / "PROCESSED" / "MPRAGE" / "FSL_SEG" / "x.img", brain())
            analyze(folder / "RAW" / f"{name}_mpr-1_anon.img", brain(), axes="ASL", code=2)
            labels = np.where(brain() > 60, 3, (brain() > 0) * 1).astype(np.float32)
            shutil.rmtree(folder / "PROCESSED" / "MPRAGE" / "FSL_SEG")
            analyze(folder / "PROCESSED" / "MPRAGE" / "FSL_SEG" / f"{stem}_fseg.img", labels)
    sheet = {
        "ID": [f"OAS1_{p:04d}_MR1" for p in range(1, subjects + 1)],
        "M/F": "F",
        "Age": [70, 20, 81, 45],
        "CDR": [0.5, None, 1, 0],
    }
    return pd.DataFrame(sheet)


@pytest.mark.parametrize("kind", ["csv", "xlsx"])
def test_oasis1_discs_with_demographics_and_tissue(tmp_path, kind):
    sheet = oasis1_disc(tmp_path / "in")
    name = tmp_path / "in" / f"oasis_cross-sectional.{kind}"
    sheet.to_csv(name, index=False) if kind == "csv" else sheet.to_excel(name, index=False)
    cohort = make(tmp_path)
    assert (
        sum(cohort.info["counts"].values()) == 5 * LEVELS
    )  # the atlas images alone, both sessions of the first subject
    for split in cohort.splits:
        check_orientation(cohort[split].images[:LEVELS])
        np.testing.assert_array_equal(cohort[split].tissue > 0, cohort[split].images > 0)
    subjects = cohort.subjects.set_index("subject")
    assert (
        subjects.loc["OAS1_0001", "age"] == 70
        and subjects.loc["OAS1_0003", "cdr"] == 1
        and subjects.loc["OAS1_0001", "sex"] == "F"
    )
    mine = [s for s in cohort.splits if "OAS1_0001" in cohort[s].subjects]
    assert len(mine) == 1 and set(cohort[mine[0]].table.query("subject == 'OAS1_0001'")["session"]) == {"MR1", "MR2"}


def test_bids_trees_take_one_volume_a_session(tmp_path):
    for subject in ("01", "02", "03"):
        for session in ("1", "2"):
            folder = tmp_path / "in" / f"sub-{subject}" / f"ses-{session}" / "anat"
            nifti(folder / f"sub-{subject}_ses-{session}_T1w.nii.gz", brain())
            nifti(folder / f"sub-{subject}_ses-{session}_T2w.nii.gz", brain())
            nifti(folder / f"sub-{subject}_ses-{session}_run-2_T1w.nii.gz", brain())
    (tmp_path / "in" / "participants.tsv").write_text(
        "participant_id\tage\tsex\nsub-01\t61\tM\nsub-02\t62\tF\nsub-03\t63\tM\n"
    )
    cohort = make(tmp_path)
    assert {s: len(cohort[s]) for s in cohort.splits} == dict.fromkeys(cohort.splits, 2 * LEVELS)
    assert set(cohort["test"].table["age"]) < {61, 62, 63}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float64])
def test_volumes_of_every_number_type_come_out_alike(tmp_path, dtype):
    for name, kind in (("in", dtype), ("float", np.float32)):
        for subject in range(3):
            nifti(tmp_path / name / f"sub-{subject}.nii", brain().astype(kind))
    wanted = prepare(tmp_path / "float", tmp_path / "wanted", size=SIZE, progress=False)
    np.testing.assert_array_equal(make(tmp_path)["train"].images, wanted["train"].images)


def test_unequal_pixels_are_made_square_and_mm_can_be_chosen(tmp_path):
    for subject in range(3):
        nifti(tmp_path / "in" / f"sub-{subject}.nii", brain()[::2], zooms=(2.0, 1.0, 1.0))
    cohort = make(tmp_path)
    middle = cohort["train"].images[LEVELS // 2] > 20
    assert middle.any(0).sum() == pytest.approx(16, abs=2) and middle.any(1).sum() == 22
    coarse = prepare(tmp_path / "in", tmp_path / "coarse", size=SIZE, mm=2.0, progress=False)
    middle = coarse["train"].images[LEVELS // 2] > 20
    assert middle.any(0).sum() == pytest.approx(8, abs=1) and middle.any(1).sum() == pytest.approx(11, abs=1)


def test_a_size_that_cuts_heads_says_so(tmp_path):
    for subject in range(3):
        nifti(tmp_path / "in" / f"sub-{subject}.nii", brain())
    cohort = prepare(tmp_path / "in", tmp_path / "out", size=16, progress=False)
    assert "cut brains" in cohort.info["warnings"][0]


def flattened(file):
    """A header whose affine has no third axis, as broken converters write it."""
    header = nib.load(file).header
    header.set_qform(None, 0)
    header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), 1)
    nib.Nifti1Image(brain(), None, header).to_filename(file)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: nifti(f, np.stack([brain()] * 2, axis=-1)[..., None, :]), "4-D|5-D"),
        (lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]), "can't be read"),
        (lambda f: f.write_text("not a volume"), "can't be read"),
        (lambda f: nifti(f, 0 * brain()), "all black"),
        (flattened, "without a direction"),
        (lambda f: nifti(f, brain().astype(np.complex64)), "colour or complex"),
        (lambda f: nifti(f, brain() * np.float32("nan")), "all black"),
        (lambda f: f.with_suffix("").with_suffix(".img").write_bytes(b"0" * 348), "sub-0.img: can't be read"),
    ],
)
def test_bad_volumes_are_named_and_can_be_skipped(tmp_path, spoil, message):
    files = [nifti(tmp_path / "in" / f"sub-{subject}.nii.gz", brain()) for subject in range(5)]
    spoil(files[0])
    with pytest.raises(CohortError, match=message) as error:
        make(tmp_path)
    assert "sub-0" in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "out").exists()
    cohort = make(tmp_path, skip_bad=True)
    assert len(cohort.info["left_out"]) == 1 and "sub-0" in cohort.info["left_out"][0]
