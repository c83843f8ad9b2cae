"""Writing: what is killed goes on, what is finished is given back, and nothing else is taken for a cohort."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from cohort_files import flat_splits

from oasis_lib.cohort import CohortError, open_cohort, prepare
from oasis_lib.cohort import writer as writing


def test_a_killed_prepare_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    source = flat_splits(tmp_path / "in", people=(6, 2, 2))
    whole = prepare(source, tmp_path / "whole", size=32, progress=False)
    monkeypatch.setattr(writing, "SAVE_EVERY", 0.0)
    reads = []

    def killed_after_five(plan, items, processes):
        for item in items:
            if len(reads) == 5:
                raise KeyboardInterrupt
            reads.append(item.subject)
            yield item, plan.read(item)

    real = writing._results
    monkeypatch.setattr(writing, "_results", killed_after_five)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", size=32, progress=False)
    assert not (tmp_path / "out").exists()
    with open(tmp_path / ".out.part" / "train.npy", "ab") as file:
        file.write(b"half a slice")
    rest = []
    monkeypatch.setattr(writing, "_results", lambda p, items, n: (rest.append(len(items)), real(p, items, n))[1])
    assert prepare(source, tmp_path / "out", size=32, progress=False).hash == whole.hash
    assert rest == [5] and not (tmp_path / ".out.part").exists()


def test_a_finished_cohort_is_given_back_and_another_request_is_refused(tmp_path, monkeypatch):
    source = flat_splits(tmp_path / "in")
    cohort = prepare(source, tmp_path / "out", size=32, progress=False)
    monkeypatch.setattr(writing, "_fill", None)
    assert prepare(source, tmp_path / "out", size=32, progress=False).hash == cohort.hash
    with pytest.raises(CohortError, match="size 32 .asked for 64"):
        prepare(source, tmp_path / "out", size=64, progress=False)
    next((source / "train").iterdir()).unlink()
    with pytest.raises(CohortError, match="fingerprint"):
        prepare(source, tmp_path / "out", size=32, progress=False)


def test_the_hash_follows_the_bytes(tmp_path):
    source = flat_splits(tmp_path / "in")
    first = prepare(source, tmp_path / "a", size=32, progress=False)
    (source / "participants.tsv").write_text("participant_id\tage\nsub-001\t50\n")
    second = prepare(source, tmp_path / "b", size=32, progress=False)
    assert first.hash != second.hash and json.loads((tmp_path / "a" / "cohort.json").read_text())["hash"] == first.hash


def test_two_prepares_never_write_into_one_folder(tmp_path):
    import fcntl

    source = flat_splits(tmp_path / "in")
    (tmp_path / ".out.part").mkdir()
    with open(tmp_path / ".out.part" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CohortError, match="another prepare is writing"):
            prepare(source, tmp_path / "out", size=32, progress=False)


def test_progress_says_what_was_understood(tmp_path, capsys):
    prepare(flat_splits(tmp_path / "in"), tmp_path / "out", size=32)
    said = capsys.readouterr().out
    assert "24 images of 16 x 20 pixels" in said and "train 12 slices of 4 people" in said and "minutes" in said


def test_a_table_that_does_not_fit_its_array_is_refused(tmp_path):
    folder = prepare(flat_splits(tmp_path / "in"), tmp_path / "out", size=32, progress=False).folder
    np.save(folder / "train.npy", np.zeros((3, 32, 32), np.uint8))
    with pytest.raises(ValueError, match="disagree"):
        open_cohort(folder)


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    """Twelve times the slices take no more memory, arrays included."""
    peaks = []
    for people in (10, 120):
        source = flat_splits(tmp_path / f"in{people}", people=(people, 2, 2), levels=8)
        code = (
            "import resource, sys; from oasis_lib.cohort import prepare\n"
            "prepare(sys.argv[1], sys.argv[2], size=256, progress=False)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, source, tmp_path / f"out{people}"], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 20  # MB, where the larger cohort's arrays have 65
