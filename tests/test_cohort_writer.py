"""Writing: what is killed goes on, what is finished is given back, and nothing else is taken for a cohort."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import psutil
import pytest
from cohort_files import brain, flat_splits, nifti

from oasis_lib.cohort import CohortError, open_cohort, prepare
from oasis_lib.cohort import writer as writing
from oasis_lib.cohort.volumes import LEVELS


def test_an_interrupted_prepare_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    source = flat_splits(tmp_path / "in", subjects=(6, 2, 2))
    whole = prepare(source, tmp_path / "whole", size=32, progress=False)
    real = writing._each
    interrupted = lambda work, items, *_: (killed(i) or work(item) for i, item in enumerate(items))  # noqa: E731
    monkeypatch.setattr(writing, "_each", interrupted)
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
    watched = lambda work, items, *of: (rest.extend(i for i, _ in items), real(work, items, *of))[1]  # noqa: E731
    monkeypatch.setattr(writing, "_each", watched)
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
    """SIGKILL as it opens, makes, renames or removes its file number 0, 7, 14 and so on, until it has no more to do."""
    source = flat_splits(tmp_path / "in", subjects=(3, 1, 1), slice_indices=2)
    whole = prepare(source, tmp_path / "whole", size=32, progress=False)
    stages = set()
    for event in range(0, 1000, 7):
        out = tmp_path / f"out{event}"
        survived = ends_before(event, source, out)
        stages.add(tuple(sorted(f.name for f in (tmp_path / f".out{event}.part").glob("*"))))
        assert prepare(source, out, size=32, progress=False).hash == whole.hash
        assert not (tmp_path / f".out{event}.part").exists()
        if survived:
            break
    assert survived and len(stages) >= 4, "killed before, as items are read, as arrays are written, and not at all"


def ends_before(event, source, out):
    """Whether a prepare in a process of its own ended before that many changes of the file system."""
    child = os.fork()
    if not child:
        left = [event]

        def hook(name, _):
            if name in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.lockf"):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            prepare(source, out, size=32, progress=False)
        finally:
            os._exit(left[0] < 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_killed_workers_do_not_linger_and_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    for i in range(24):
        nifti(tmp_path / "in" / f"sub-{i}.nii.gz", brain((120, 120, 120)))  # several processes read volumes
    process = started(tmp_path / "in", tmp_path / "out", 32)
    items = tmp_path / ".out.part" / "items"
    wait_for(lambda: items.is_dir() and any(items.iterdir()))
    process.send_signal(signal.SIGSTOP)  # it must not end before the second has been refused
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
    assert "24 images in" in said and "train 12 slices of 4 subjects" in said


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    return root / "in", prepare(flat_splits(root / "in", (30, 2, 2), 12), root / "out", size=64, progress=False).folder


def flip(place):
    def spoil(file):
        data = bytearray(file.read_bytes())
        data[int(place * (len(data) - 1))] ^= 1
        file.write_bytes(data)

    return spoil


@pytest.mark.parametrize(
    "name, spoil, message",
    [
        ("train.npy", lambda f: f.write_bytes(f.read_bytes()[:-9]), "other bytes"),
        ("train.npy", lambda f: f.write_bytes(b""), "other bytes"),
        ("train.npy", flip(0), "other bytes"),
        ("train.npy", flip(1), "other bytes"),
        ("test.npy", lambda f: np.save(f, np.zeros((3, 32, 32), np.uint8)), "other bytes"),
        ("test.npy", lambda f: f.unlink(), "is missing"),
        ("slices.csv", flip(0.7), "other bytes"),
        ("participants.tsv", lambda f: f.write_text(f.read_text() + "sub-9\ttrain\n"), "other bytes"),
        ("cohort.json", lambda f: f.write_text('{"size": 64}'), "lacks hash, slice_indices, splits, synthetic, files"),
        ("cohort.json", lambda f: f.write_text(f.read_text()[:-99]), "not valid JSON"),
    ],
)
def test_an_altered_file_is_named_when_the_cohort_is_opened(prepared, tmp_path, name, spoil, message):
    folder = shutil.copytree(prepared[1], tmp_path / "copy")
    assert open_cohort(folder).hash == open_cohort(folder, full=True).hash
    spoil(folder / name)
    with pytest.raises(ValueError, match=message) as error:
        open_cohort(folder)
    assert str(folder / name) in str(error.value) and "again" in str(error.value)


def test_one_changed_pixel_is_found_where_the_file_was_touched_by_a_full_check_and_by_preparing_again(
    prepared, tmp_path
):
    source, folder = prepared[0], shutil.copytree(prepared[1], tmp_path / "copy")
    data = bytearray((folder / "train.npy").read_bytes())
    data[128 + 64 * 64 * 100 + 2000] ^= 1  # between the blocks of the sample
    (folder / "train.npy").write_bytes(data)
    with pytest.raises(ValueError, match="train.npy: has other bytes"):
        open_cohort(folder)
    os.utime(folder / "train.npy", (0, 0))
    open_cohort(folder)
    for check in (partial(open_cohort, folder, full=True), partial(prepare, source, folder, size=64, progress=False)):
        with pytest.raises(ValueError, match="train.npy: has other bytes"):
            check()


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    """Twelve times the slices take no more memory, arrays included."""
    peaks = []
    for subjects in (10, 120):
        source = flat_splits(tmp_path / f"in{subjects}", subjects=(subjects, 2, 2), slice_indices=8)
        code = (
            "import resource, sys; from oasis_lib.cohort import prepare\n"
            "prepare(sys.argv[1], sys.argv[2], size=256, progress=False)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, source, tmp_path / f"out{subjects}"],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 20  # MB, where the larger cohort's arrays have 65
