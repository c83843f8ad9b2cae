"""Each kind of bad input gives one clear line that names the path; nothing half-written is left behind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from cohort_files import flat_splits, head, save

from oasis_lib.cohort import CohortError, open_cohort, prepare


def refuse(source, tmp_path, match, **options):
    with pytest.raises(CohortError, match=match) as error:
        prepare(source, tmp_path / "out", size=32, progress=False, **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    return str(error.value)


def first(source):
    return sorted((source / "train").iterdir())[1]


@pytest.mark.parametrize(
    "spoil, match",
    [
        (lambda f: f.write_bytes(f.read_bytes()[:-30]), "can't be read"),
        (lambda f: f.write_bytes(b""), "can't be read .cannot identify image"),
        (lambda f: f.write_text("a report"), "can't be read"),
        (lambda f: save(f, head() * 0), "all black"),
        (lambda f: save(f, head(30, 30)), "has .30, 30. pixels where others have .20, 16."),
        (lambda f: f.rename(f.with_name("overview.png")), "names? .*subject"),
    ],
)
def test_a_bad_image_is_named_and_can_be_skipped(tmp_path, spoil, match):
    source = flat_splits(tmp_path / "in", subjects=(8, 2, 2))
    spoil(first(source))
    assert "train" in refuse(source, tmp_path, match)
    cohort = prepare(source, tmp_path / "out", size=32, progress=False, skip_bad=True)
    assert cohort.info["counts"]["train"] == 23 and len(cohort["train"].images) == 23
    assert len(cohort.info["left_out"]) == 1 and str(source) in cohort.info["left_out"][0]
    np.testing.assert_array_equal(cohort["train"].table.query("subject == 'sub-001'")["slice_index"], [0, 2])


def test_sources_that_hold_nothing(tmp_path):
    refuse(tmp_path / "nowhere", tmp_path, "does not exist")
    (tmp_path / "in").mkdir()
    refuse(tmp_path / "in", tmp_path, "it is empty")
    (tmp_path / "in" / "notes.docx").write_text("")
    refuse(tmp_path / "in", tmp_path, "no images .* and no volumes .*notes.docx")


def test_a_split_that_is_missing_or_empty(tmp_path):
    source = flat_splits(tmp_path / "in")
    for file in (source / "validate").iterdir():
        file.unlink()
    refuse(source, tmp_path, "has files for test and train but none for validate")
    (source / "validate").rmdir()
    refuse(source, tmp_path, "none for validate")


def test_too_few_subjects(tmp_path):
    save(tmp_path / "in" / "sub-1_slice-1.png", head())
    refuse(tmp_path / "in", tmp_path, "1 subjects can't be split")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_no_permission_to_read_a_file(tmp_path):
    source = flat_splits(tmp_path / "in")
    first(source).chmod(0)
    refuse(source, tmp_path, "Permission denied")


def test_no_permission_is_one_line(tmp_path, monkeypatch):
    from oasis_lib.cohort import folders

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    source = flat_splits(tmp_path / "in")
    monkeypatch.setattr(folders.Image, "open", denied)
    refuse(source, tmp_path, "Permission denied")


def test_a_full_disk_is_told_and_the_prepare_goes_on_later(tmp_path):
    """A file-size limit of the process stands in for a full disk."""
    source = flat_splits(tmp_path / "in")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        "from oasis_lib.cohort import prepare\n"
        "prepare(sys.argv[1], sys.argv[2], size=32)"
    )
    done = subprocess.run([sys.executable, "-c", code, source, tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode and "disk is full" in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()
    assert prepare(source, tmp_path / "out", size=32, progress=False).info["counts"]["train"] == 12


def test_what_is_in_the_way_is_not_touched(tmp_path):
    source = flat_splits(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(CohortError, match="not a prepared cohort"):
        prepare(source, tmp_path / "out", size=32, progress=False)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"
    with pytest.raises(FileNotFoundError, match="not a prepared cohort"):
        open_cohort(tmp_path / "out")


def tar_of(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc"
            else:
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data or b""))
    return path


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/evil.png"])
def test_nothing_in_an_archive_lands_outside_its_folder(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "disc.zip", "w") as file:
        file.writestr(name, "x")
    refuse(tmp_path / "disc.zip", tmp_path, "disc.zip: no images")
    refuse(tar_of(tmp_path / "link.tgz", {"away": None}), tmp_path, "link.tgz: is damaged or unsafe .*absolute path")
    absolute = name.startswith("/")  # of a tar's absolute names the "data" filter takes the slash away
    tar = tar_of(tmp_path / "disc.tar.gz", {name: b"x"})
    refuse(tar, tmp_path, "1 subjects can't be split" if absolute else "disc.tar.gz.*outside")
    assert [f.parent.name for f in tmp_path.rglob("evil*")] == ["disc.tar.gz"] * absolute
    assert not (tmp_path.parent / "evil.png").exists()


def test_archives_are_unpacked_read_and_tidied_away(tmp_path):
    source = flat_splits(tmp_path / "in")
    members = {str(f.relative_to(source)): f.read_bytes() for f in source.rglob("*.png")}
    packed = prepare(tar_of(tmp_path / "set.tar.gz", members), tmp_path / "a", size=32, progress=False)
    plain = prepare(source, tmp_path / "b", size=32, progress=False)
    np.testing.assert_array_equal(packed["train"].images, plain["train"].images)
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "set.tar.gz").write_bytes((tmp_path / "set.tar.gz").read_bytes()[:200])
    refuse(tmp_path / "set.tar.gz", tmp_path, "damaged or unsafe")


@pytest.mark.parametrize(
    "options, match",
    [
        ({"size": 8}, "size=8 must be"),
        ({"size": 32.5}, "size=32.5 must be"),
        ({"seed": -1}, "seed=-1"),
        ({"mm": 0.0}, "mm=0.0 must be from 0.01 to 100"),
        ({"mm": float("nan")}, "mm=nan"),
    ],
)
def test_options_that_make_no_sense_are_quoted(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        prepare(flat_splits(tmp_path / "in"), tmp_path / "out", progress=False, **options)
    with pytest.raises(TypeError, match="colour"):
        prepare(tmp_path / "in", tmp_path / "out", progress=False, colour=True)


def test_pixels_that_are_no_numbers_count_as_background(tmp_path):
    spoilt, plain = head(dtype=np.float32), head(dtype=np.float32)
    spoilt[8, 8], spoilt[9, 9], spoilt[10, 10] = np.nan, np.inf, -np.inf
    plain[8, 8] = plain[9, 9] = plain[10, 10] = 0
    for name, image in (("spoilt", spoilt), ("plain", plain)):
        for i in range(3):
            save(tmp_path / name / f"sub-{i}_slice-1.tif", image)
    made = [prepare(tmp_path / name, tmp_path / f"{name}-out", size=32, progress=False) for name in ("spoilt", "plain")]
    np.testing.assert_array_equal(made[0]["train"].images, made[1]["train"].images)
    assert made[0]["train"].images.max() == 255
    for i in range(3):
        save(tmp_path / "none" / f"sub-{i}_slice-1.tif", np.full((9, 9), np.nan, np.float32))
    refuse(tmp_path / "none", tmp_path, "all black")
