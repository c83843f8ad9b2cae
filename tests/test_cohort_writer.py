"""Writing: what is killed goes on, what is finished is given back, and nothing else is taken for a cohort."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from cohort_files import brain, flat_splits, nifti

from oasis_lib.cohort import CohortError, open_cohort, prepare
from oasis_lib.cohort import writer as writing
from oasis_lib.cohort.volumes import LEVELS


def test_an_interrupted_prepare_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    source = flat_splits(tmp_path / "in", people=(6, 2, 2))
    whole = prepare(source, tmp_path / "whole", size=32, progress=False)
    real = writing._each
    monkeypatch.setattr(writing, "_each", lambda work, items, *_: (killed(i) or work(item) for i, item in enumerate(items)))
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", size=32, progress=False)
    assert not (tmp_path / "out").exists()
    items = tmp_path / ".out.part" / "items"
    assert sorted(f.name for f in items.iterdir()) == [f"{i}.npz" for i in range(5)]
    (items / "1.npz").write_bytes((items / "1.npz").read_bytes()[:-50])  # as a disk without power leaves it
    damaged = bytearray((items / "2.npz").read_bytes())
    damaged[len(damaged) // 3] ^= 1
    (items / "2.npz").write_bytes(damaged)
    rest = []
    monkeypatch.setattr(writing, "_each", lambda work, items, *of: (rest.extend(i for i, _ in items), real(work, items, *of))[1])
    assert prepare(source, tmp_path / "out", size=32, progress=False).hash == whole.hash
    assert rest == [1, 2, 5, 6, 7, 8, 9] and not (tmp_path / ".out.part").exists()
    for file in whole.folder.glob("*.npy"):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


def killed(number):
    if number == 5:
        raise KeyboardInterrupt


PREPARE = """import sys; from oasis_lib.cohort import prepare
print("begun", flush=True)
prepare(sys.argv[1], sys.argv[2], size=int(sys.argv[3]), progress=False, processes=2)"""


def started(source, out, size):
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARE, source, out, str(size)], stdout=subprocess.PIPE, start_new_session=True
    )
    process.stdout.readline()
    return process


def test_a_prepare_killed_at_any_moment_ends_with_the_same_bytes(tmp_path):
    """SIGKILL after 0.05 seconds, 0.1, 0.15 and so on, until one run has the time to finish."""
    source = flat_splits(tmp_path / "in", people=(20, 5, 5), levels=8)
    whole = prepare(source, tmp_path / "whole", size=64, progress=False)
    begun, kills = time.monotonic(), 0
    while not (tmp_path / "out").exists():
        assert time.monotonic() - begun < 120
        process = started(source, tmp_path / "out", 64)
        time.sleep(0.05 * (kills + 1))
        process.kill()
        process.wait()
        kills += 1
    assert kills > 1, "the first run finished before it was killed: nothing was tested"
    assert prepare(source, tmp_path / "out", size=64, progress=False).hash == whole.hash
    assert not (tmp_path / ".out.part").exists()


def test_killed_workers_do_not_linger_and_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    for i in range(24):
        nifti(tmp_path / "in" / f"sub-{i}.nii.gz", brain((120, 120, 120)))  # several processes read volumes
    process = started(tmp_path / "in", tmp_path / "out", 32)
    items = tmp_path / ".out.part" / "items"
    wait_for(lambda: items.is_dir() and any(items.iterdir()))
    with pytest.raises(ValueError, match=f"process {process.pid} on .* is preparing .*out"):
        prepare(tmp_path / "in", tmp_path / "out", size=32, progress=False)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers and not (tmp_path / "out").exists()
    process.kill()
    process.wait()
    wait_for(lambda: not any(w.is_running() and w.status() != "zombie" for w in workers))
    assert str(process.pid) in (items.parent / "lock").read_text()
    assert len(prepare(tmp_path / "in", tmp_path / "out", size=32, progress=False)["train"]) == 20 * LEVELS


def wait_for(what):
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < 60
        time.sleep(0.01)


def test_a_finished_cohort_is_given_back_and_another_request_is_refused(tmp_path, monkeypatch):
    source = flat_splits(tmp_path / "in")
    cohort = prepare(source, tmp_path / "out", size=32, progress=False)
    monkeypatch.setattr(writing, "_read_items", None)
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


def test_progress_says_what_was_understood(tmp_path, capsys):
    prepare(flat_splits(tmp_path / "in"), tmp_path / "out", size=32)
    said, bar = capsys.readouterr()
    assert "24/24" in bar
    assert "24 images of 16 x 20 pixels" in said and "train 12 slices of 4 people" in said


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
