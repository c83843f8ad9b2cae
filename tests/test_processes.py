"""Two processes train as one does, the cluster's script passes on what SLURM says, and one process alone writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT
from safetensors.torch import load_file

from oasis_lib.storage import read_json

TESTS = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("processes")
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{PROJECT}{os.pathsep}{TESTS}", "ACCELERATE_USE_CPU": "true"}
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
