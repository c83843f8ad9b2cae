"""Two processes train as one does, the cluster's script passes on what SLURM says, and one process alone writes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT, oasis
from safetensors.torch import load_file

from oasis_lib.storage import STATE, read_json, read_state

TESTS = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("processes")
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{PROJECT}{os.pathsep}{TESTS}",
        "ACCELERATE_USE_CPU": "true",
    }
    for name, start in (("one", [sys.executable]), ("two", TORCHRUN)):
        (root / name).mkdir()
        words = [*start, str(TESTS / "two.py"), str(root / name)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.slow  # grain: two equal vectors have no nearest entry that rounding could not change
@pytest.mark.parametrize("model", ["vqvae", "vqvae/crisp", "transformer"])
def test_two_processes_equal_one_on_the_same_global_batch(model: str, trained: Path):
    one, two = (load_file(trained / name / model / "model.safetensors") for name in ("one", "two"))
    different = {key: float((one[key].float() - two[key].float()).abs().max()) for key in one}
    assert max(different.values()) < 1e-4, different
    curves = [pd.read_csv(trained / name / model / "history.csv") for name in ("one", "two")]
    curves = [curve.drop(columns=["seconds", "images_per_second"]) for curve in curves]
    assert list(curves[0]) == list(curves[1]) and len(curves[0]) >= 2
    np.testing.assert_allclose(*(curve.to_numpy(float) for curve in curves), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_ranks_hold_the_same_weights_and_the_first_alone_writes(trained: Path):
    first, second = (read_json(trained / f"two-{rank}.json") for rank in (0, 1))
    assert len(first["held"]) == 3 and first["held"] == second["held"]
    assert len(first["written"]) > 10 and second["written"] == []


def sbatch(script: Path, submitted: Path, given_up: Path) -> tuple[int, str]:
    """What SLURM does with a batch script: runs it as asked in its #SBATCH lines, and signals it before its time is over.

    Here the time is over when `given_up` is there. `B:` is a signal to the batch shell alone, and not to its children.
    """
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script.read_text(), re.M))
    before = re.fullmatch(r"B:(\w+)@\d+", asked["signal"])[1]
    env = {
        "SLURM_SUBMIT_DIR": str(submitted),
        "SLURM_JOB_NAME": asked["job-name"],
        "PROFILE": "smoke",
        "OMP_NUM_THREADS": "1",
    }
    log = submitted / asked["output"].replace("%j", "7")
    with log.open("w") as file:
        options = {"cwd": "/", "env": os.environ | env, "stdout": file, "stderr": file, "start_new_session": True}
        job = subprocess.Popen(["/bin/bash", str(script)], **options)
        until = time.monotonic() + 300
        while job.poll() is None and time.monotonic() < until and not given_up.is_file():
            time.sleep(0.1)
        job.send_signal(getattr(signal, f"SIG{before}"))
        code = job.wait(60)
    return code, log.read_text()


@pytest.mark.slow
def test_the_clusters_script_saves_the_training_when_slurm_signals(tmp_path: Path):
    """In the place of the study, which takes minutes, its Python trains one model: the signal's way is the same."""
    oasis("prepare", "phantom", tmp_path / "cohort", "--size", 32, "--subjects", 6, "--lesions", 0, "--quiet")
    train = "train vqvae --profile smoke --cohort cohort --out runs/oasis/vqvae --quiet --set vqvae.batch=8"
    train += " --set vqvae.epochs=0 --set vqvae.steps=1000000 --set vqvae.validate_every=4"
    python, model = tmp_path / ".venv/bin/python", tmp_path / "runs/oasis/vqvae"
    python.parent.mkdir(parents=True)
    instead = f'check) exit;; study) shift 2; echo asked: "$@"; set -- -m oasis_lib {train};;'
    real = f'export PYTHONPATH="{PROJECT}"; case "$3" in {instead} esac'
    python.write_text(f'#!/bin/sh\n{real}\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    steps = []
    for _ in range(2):
        (model / "history.csv").unlink(missing_ok=True)
        code, said = sbatch(PROJECT / "docs/slurm.sh", tmp_path, model / "history.csv")
        steps.append(read_state(model)["step"])
        assert code == 130 and f"stopped after step {steps[-1]}; the same command goes on" in said, said
        assert "asked: study --profile smoke --cohort phantom --run runs/oasis" in said and (model / STATE).is_file()
    assert steps[1] > steps[0] > 0
