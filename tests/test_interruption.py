"""Killed at random moments, a command that is given again ends with the same files as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT

from oasis_lib.storage import read_json

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
            value = {name: np.asarray(array).tobytes() for name, array in np.load(path).items()}
        elif path.suffix == ".json":
            value = read_json(path)
            if "weights" in value:  # and the hash of those they replaced, which the kills decide
                value["weights"] = value["weights"][0]
            value = json.dumps(value).replace(str(root), "ROOT")
        else:
            value = path.read_bytes()
        found[str(path.relative_to(root))] = value
    return found


def test_each_command_killed_at_random_moments_ends_alike(ask: Ask, tmp_path: Path):
    draw, killed = random.Random(0), 0
    for name, text in COMMANDS.items():
        code, whole = ask(text.format(root=tmp_path / "whole").split())
        assert code == 0, name
        words = text.format(root=tmp_path / "broken").split()
        for _ in range(KILLS):
            killed += ask(words, draw.uniform(0.05, 0.95) * whole)[0] == -signal.SIGKILL
        code, seconds = ask(words)
        assert code == 0, name
        print(f"{name}: {whole:.1f} s whole, {seconds:.1f} s after {KILLS} kills")
    assert killed >= len(COMMANDS), "the kills came too late to mean anything"
    one, two = (content(tmp_path / name) for name in ("whole", "broken"))
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def numbers(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Every number of nested metrics, by its path; times are not compared."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(inner, f"{name}/{key}")
    elif "second" not in name and "minutes" not in name:
        yield name, value


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not STUDY_KILLS, reason="takes minutes; OASIS_KILLS=20 asks for it")
def test_a_smoke_study_killed_at_random_moments_ends_with_the_same_metrics(tmp_path: Path):
    """SIGKILL to the whole process group; notebooks' kernels, in sessions of their own, must end by themselves."""
    draw, env = random.Random(0), os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}

    def study(name: str, patience: float | None = None) -> float:
        words = [sys.executable, "-m", "oasis_lib", "study", "--profile", "smoke", "--run", str(tmp_path / name), "--quiet"]
        begun = time.perf_counter()
        running = subprocess.Popen(
            words,
            cwd=tmp_path,
            start_new_session=True,
            env=env | {"OASIS_DATA": str(tmp_path / f"data-{name}")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            said = running.communicate(timeout=patience)[0]
            assert running.returncode == 0, said
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
        return time.perf_counter() - begun

    whole, times = study("whole"), []
    for _ in range(STUDY_KILLS):
        times.append(study("broken", draw.uniform(0.05, 0.5) * whole))
        manifest = tmp_path / "broken/run.json"
        stages = read_json(manifest)["stages"] if manifest.is_file() else {}
        print(f"killed after {times[-1]:.0f} s: {[(name, stage['status']) for name, stage in stages.items()]}", flush=True)
    last = study("broken")
    print(f"{whole:.0f} s unbroken; {sum(times):.0f} s in {STUDY_KILLS} broken tries, then {last:.0f} s")
    one, two = (dict(numbers(read_json(tmp_path / name / "metrics.json"))) for name in ("whole", "broken"))
    assert one.keys() == two.keys() and len(one) > 100
    assert {name: (one[name], two[name]) for name in one if one[name] != two[name]} == {}
