"""Shared by all tests: no display, and one smoke study that many of them look at."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # workers share the cores: threads of both on each would only wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"
PROJECT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(optionalhook=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of minutes run when they are asked for: all others must end within ten minutes on two cores."""
    if not os.environ.get("OASIS_LONG"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; OASIS_LONG=1 asks for it"))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers, modules that look at the smoke study go to the one that makes it; others stay whole.

    Not by groups: pytest 9.2 takes no notice of the names that xdist 3.8 gives to grouped tests, and every worker made a study.
    """
    from xdist.scheduler import LoadScopeScheduling

    looking = {
        path.name
        for path in (PROJECT / "tests").glob("test_*.py")
        if re.search(r"def \w+\(.*\bsmoke\b", path.read_text())
    }

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = Path(nodeid.partition("::")[0]).name
            return "smoke" if module in looking else module

    return Together(config, log)


@dataclass(frozen=True)
class Smoke:
    """A finished smoke study: its folder, its prepared cohorts, what it printed, and how long it took."""

    folder: Path
    data: Path
    printed: str
    seconds: float

    @property
    def cohort(self) -> Path:
        return next(p.parent for p in sorted(self.data.glob("*/cohort.json")))


def oasis(*words: object, data: Path | None = None, cwd: Path = PROJECT, expect: int = 0) -> str:
    """The command line in a process of its own, as subjects call it."""
    env = os.environ | ({"OASIS_DATA": str(data)} if data else {})
    command = [sys.executable, "-m", "oasis_lib", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == expect, f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """Run from another folder than the project's, as somebody might."""
    root = tmp_path_factory.mktemp("smoke")
    begun = time.time()
    printed = oasis("study", "--profile", "smoke", "--run", root / "run", data=root / "data", cwd=root)
    return Smoke(root / "run", root / "data", printed, time.time() - begun)
