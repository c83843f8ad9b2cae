"""Killed at random moments, a command that is given again ends with the same files; damaged files are named or made anew."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT

from oasis_lib import sampling
from oasis_lib.cohort import open_cohort
from oasis_lib.commands import trained_with
from oasis_lib.models import load
from oasis_lib.storage import CONFIG, WEIGHTS, read_json
from oasis_lib.training import codes_of, once, train_prior

KILLS = 3  # of each command
STUDY_KILLS = int(os.environ.get("OASIS_KILLS", "0"))  # of a smoke study: takes minutes, and is asked for
TIMING = ["seconds", "images_per_second"]
COHORT, VQVAE, PRIOR = "{root}/cohort", "{root}/vqvae", "{root}/transformer"
TINY = "--set {0}.epochs=0 --set {0}.steps=16 --set {0}.batch=8 --set {0}.validate_every=4"
COMMANDS = {
    "prepare": f"prepare phantom {COHORT} --size 32 --subjects 6 --lesions 1",
    "vqvae": f"train vqvae --profile smoke --cohort {COHORT} --out {VQVAE} {TINY.format('vqvae')} --set vqvae.autoencoder_steps=4",
    "transformer": f"train transformer --profile smoke --cohort {COHORT} --vqvae {VQVAE} --out {PRIOR} "
    + TINY.format("transformer"),
    "codegan": f"train codegan --profile smoke --cohort {COHORT} --vqvae {VQVAE} --out {{root}}/codegan {TINY.format('codegan')}",
    "sample": f"sample --prior {PRIOR} --vqvae {VQVAE} --out {{root}}/new --n 8",
    "evaluate": f"evaluate --cohort {COHORT} --vqvae {VQVAE} --samples {{root}}/new/samples.npz --out {{root}}/scores.json "
    "--set evaluation.feature_steps=4 --set evaluation.detector_steps=2 --set evaluation.bootstrap=20",
}  # fmt: skip
Ask = Callable[[list[str], float | None], tuple[int, float]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    command = [sys.executable, str(Path(__file__).with_name("forked.py"))]
    env = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as server:

        def one(words: list[str], patience: float | None = None) -> tuple[int, float]:
            print(json.dumps([words, patience]), file=server.stdin, flush=True)
            code, seconds = json.loads(server.stdout.readline())
            return code, seconds

        yield one
        server.stdin.close()


def content(root: Path) -> dict[str, object]:
    """What a command left, without times."""
    found = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name[0] != "."):
        if path.suffix == ".csv" and path.name == "history.csv":
            value = pd.read_csv(path).drop(columns=TIMING).to_csv()
        elif path.suffix == ".npz":
            value = {name: np.asarray(array).tobytes() for name, array in np.load(path).items() if name != "seconds"}
        elif path.suffix == ".json":
            value = read_json(path)
            value.pop("history", None)  # a hash of times too
            if "weights" in value:  # and the hash of those they replaced, which the kills decide
                value["weights"] = value["weights"][0]
            value = json.dumps(value).replace(str(root), "ROOT")
        else:
            value = path.read_bytes()
        found[str(path.relative_to(root))] = value
    return found


@pytest.fixture(scope="module")
def whole(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """What all commands leave, and the seconds that each took."""
    root, times = tmp_path_factory.mktemp("whole"), {}
    for name, text in COMMANDS.items():
        code, times[name] = ask(text.format(root=root).split())
        assert code == 0, name
    return root, times


def test_each_command_killed_at_random_moments_ends_alike(
    ask: Ask, whole: tuple[Path, dict[str, float]], tmp_path: Path
):
    draw, killed = random.Random(0), 0
    for name, text in COMMANDS.items():
        words = text.format(root=tmp_path).split()
        for _ in range(KILLS):
            killed += ask(words, draw.uniform(0.05, 0.95) * whole[1][name])[0] == -signal.SIGKILL
        code, seconds = ask(words)
        assert code == 0, name
        print(f"{name}: {whole[1][name]:.1f} s whole, {seconds:.1f} s after {KILLS} kills")
    assert killed >= len(COMMANDS), "the kills came too late to mean anything"
    one, two = content(whole[0]), content(tmp_path)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def damaged(data: bytes, draw: random.Random) -> Iterator[bytes]:
    """One bit here and there, a file's half, an empty file."""
    for _ in range(5):
        place = draw.randrange(len(data))
        yield data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
    yield data[: len(data) // 2]
    yield b""


def meaning(data: bytes) -> object:
    """A config.json without the hashes of its weights, one of which is of those before; all else as it is."""
    return {k: v for k, v in json.loads(data).items() if k != "weights"} if data.startswith(b'{\n  "kind"') else data


def test_a_damaged_file_is_named_or_made_anew_and_never_silently_used(
    whole: tuple[Path, dict[str, float]], tmp_path: Path
):
    root, draw, silent = shutil.copytree(whole[0], tmp_path / "run"), random.Random(0), []
    cohort, part = open_cohort(root / "cohort"), trained_with(root / "transformer", "transformer")
    readers = {f"cohort/{path.name}": open_cohort for path in (root / "cohort").iterdir()}
    for folder, inner in (("vqvae", ""), ("vqvae", "crisp/"), ("transformer", ""), ("codegan", "")):
        readers |= {
            f"{folder}/{inner}{name}": lambda path, folder=folder: load(root / folder) for name in (CONFIG, WEIGHTS)
        }
    readers["new/samples.npz"] = lambda path: sampling.read(root / "new/samples.npz")
    again = {"begin": "", "progress": False}
    for name in (once.HISTORY, once.REQUEST):
        readers[f"transformer/{name}"] = lambda path: train_prior(
            "transformer", cohort, root / "vqvae", root / "transformer", part, **again
        )
    for file, read in readers.items():
        good = (root / file).read_bytes()
        for case, data in enumerate(damaged(good, draw)):
            (root / file).write_bytes(data)
            try:
                read((root / file).parent)
                silent += [(file, case)] if meaning(data) != meaning(good) else []
            except (ValueError, FileNotFoundError) as error:
                assert str((root / file).parent) in str(error), error
        (root / file).write_bytes(good)
        read((root / file).parent)
    text = {"cohort/cohort.json", f"transformer/{once.REQUEST}"}  # what they say of a source or a version is not hashed
    assert [found for found in silent if found[0] not in text or found[1] > 4] == []


def test_damaged_tokens_are_found_again(whole: tuple[Path, dict[str, float]], tmp_path: Path):
    root = shutil.copytree(whole[0], tmp_path / "run")
    cohort, vqvae, draw = open_cohort(root / "cohort"), load(root / "vqvae"), random.Random(0)
    known = codes_of(vqvae, cohort, "train")
    for file in ("codes/train.npy", "codes/train.json"):
        good = (root / file).read_bytes()
        for data in damaged(good, draw):
            (root / file).write_bytes(data)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of another key nothing is said
                assert np.array_equal(codes_of(vqvae, cohort, "train"), known)
            assert (root / file).read_bytes() == good


def numbers(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Every number of nested metrics, by its path; times are not compared."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(inner, f"{name}/{key}")
    elif "second" not in name and "minutes" not in name:
        yield name, value


def killed_in(running: subprocess.Popen, manifest: Path, stage: str, seconds: float) -> bool:
    """SIGKILL to the process group, so long after this stage began; whether there was still something to kill."""
    begun = time.time()
    while running.poll() is None:
        stages = read_json(manifest)["stages"] if manifest.is_file() and manifest.stat().st_mtime > begun else {}
        if stages.get(stage, {}).get("status") == "running":
            time.sleep(seconds)
            break
        time.sleep(0.2)
    alive = running.poll() is None
    if alive:
        os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    return alive


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not STUDY_KILLS, reason="takes minutes; OASIS_KILLS=20 asks for it")
def test_a_smoke_study_killed_at_random_moments_ends_with_the_same_metrics(tmp_path: Path):
    """Moments are spread over all that an unbroken study does.

    Kernels, in sessions of their own, must end by themselves.
    """
    draw, killed = random.Random(0), []

    def study(name: str) -> subprocess.Popen:
        words = [
            sys.executable,
            "-m",
            "oasis_lib",
            "study",
            "--profile",
            "smoke",
            "--run",
            str(tmp_path / name),
            "--quiet",
        ]
        env = os.environ | {
            "PYTHONPATH": str(PROJECT),
            "OMP_NUM_THREADS": "1",
            "OASIS_DATA": str(tmp_path / f"data-{name}"),
        }
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(words, cwd=tmp_path, start_new_session=True, env=env, **out)

    def finish(name: str) -> float:
        begun, running = time.perf_counter(), study(name)
        said = running.communicate()[0]
        assert running.returncode == 0, said
        return time.perf_counter() - begun

    print(f"unbroken: {finish('whole'):.0f} s", flush=True)
    times = {name: stage["seconds"] for name, stage in read_json(tmp_path / "whole/run.json")["stages"].items()}
    ends = dict(zip(times, accumulate(times.values())))
    for moment in range(STUDY_KILLS):
        place = (moment + draw.random()) / STUDY_KILLS * sum(times.values())
        stage = next(name for name, end in ends.items() if place <= end)
        place -= ends[stage] - times[stage]
        killed.append(killed_in(study("broken"), tmp_path / "broken/run.json", stage, place))
        print(f"{stage} after {place:.0f} s: {'killed' if killed[-1] else 'was done'}", flush=True)
    print(f"after {sum(killed)} kills: {finish('broken'):.0f} s", flush=True)
    assert sum(killed) >= STUDY_KILLS // 2
    one, two = (dict(numbers(read_json(tmp_path / name / "metrics.json"))) for name in ("whole", "broken"))
    assert one.keys() == two.keys() and len(one) > 100
    assert {name: (one[name], two[name]) for name in one if one[name] != two[name]} == {}
