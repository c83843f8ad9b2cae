"""CONTRIBUTING.md, followed to the letter on a copy of the project.

A prior, a figure, a measure and a reader of one's own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT, Smoke

from oasis_lib.cohort import open_cohort

BLOCKS = re.findall(r"```(python|diff)\n# (\S+)\n(.*?)```", (PROJECT / "CONTRIBUTING.md").read_text(), re.S)


def patched(text: str, diff: str) -> str:
    """`text` with the lines that begin with + after the last one that doesn't; such lines must occur once."""
    at = ""
    for line in diff.splitlines():
        if line.startswith("+"):
            text = text.replace(at, f"{at}{line[1:]}\n", 1)
            at = f"{line[1:]}\n"
        else:
            at = f"{line[1:]}\n"
            assert len(re.findall(rf"^{re.escape(at)}", text, re.M)) == 1, (
                f"CONTRIBUTING.md speaks of another line: {line}"
            )
    return text


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with every block applied."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("oasis_lib", "notebooks", "images"):  # notebooks show diagrams that lie there
        shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for kind, path, text in BLOCKS:
        file = root / path
        assert file.is_file() == (kind == "diff"), path
        file.write_text(patched(file.read_text(), text) if kind == "diff" else text)
    return root


def python(root: Path, *words: object, data: Path | None = None) -> str:
    """A process that imports the copy."""
    env = os.environ | {"PYTHONPATH": str(root)} | ({"OASIS_DATA": str(data)} if data else {})
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_what_is_added_is_known_by_name_and_well_formed(copy: Path):
    assert {path for kind, path, _ in BLOCKS if kind == "python"} >= {
        "oasis_lib/models/frequencies.py",
        "oasis_lib/figures/brightness.py",
        "oasis_lib/evaluation/brightness.py",
        "oasis_lib/cohort/stacks.py",
    }
    subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", PROJECT / "pyproject.toml", "oasis_lib"],
        cwd=copy,
        check=True,
    )
    assert "frequencies" in python(copy, "-m", "oasis_lib", "train", "--help")


def test_the_figure_is_drawn(copy: Path, tmp_path: Path):
    code = "import numpy as np; from oasis_lib.figures.brightness import brightness; "
    code += f"brightness({{'a': np.eye(5)[None], 'b': np.ones((2, 5, 5))}}).savefig({str(tmp_path / 'a.png')!r})"
    python(copy, "-c", code)
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_the_reader_prepares_a_cohort(copy: Path, tmp_path: Path):
    (tmp_path / "stacks").mkdir()
    for number in range(4):
        np.save(tmp_path / "stacks" / f"sub-{number}.npy", np.full((3, 20, 20), 40 * number + 20, np.uint8))
    python(copy, "-m", "oasis_lib", "prepare", tmp_path / "stacks", tmp_path / "out", "--size", 16)
    cohort = open_cohort(tmp_path / "out")
    assert cohort.size == 16 and cohort.slice_indices == 3 and sum(map(len, cohort.splits.values())) == 12
    assert set(np.unique(np.concatenate([split.images for split in cohort.splits.values()]))) == {20, 60, 100, 140}


@pytest.mark.slow
@pytest.mark.long
def test_the_prior_runs_through_notebooks_04_to_06_and_the_measure_is_in_their_table(
    smoke: Smoke, copy: Path, tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(smoke.folder, run)
    for name in ("04_priors", "05_generation", "06_evaluation"):
        words = ["-p", "profile", "smoke", "-p", "run", run, "--no-progress-bar", "--cwd", copy / "notebooks"]
        python(
            copy,
            "-m",
            "papermill",
            copy / "notebooks" / f"{name}.ipynb",
            tmp_path / "out.ipynb",
            *words,
            data=smoke.data,
        )
    assert (run / "frequencies" / "model.safetensors").is_file() and (run / "samples" / "frequencies.npz").is_file()
    metrics = json.loads((run / "metrics.json").read_text())
    assert "frequencies" in metrics["generation"]["verdict"], list(metrics["generation"])
    assert {"brightness_gap", "frechet"} <= metrics["generation"]["verdict"]["frequencies"].keys()
