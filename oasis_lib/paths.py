"""Where things live."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from oasis_lib.storage import content_hash

PROJECT = Path(__file__).resolve().parent.parent
# Nothing a notebook computes depends on these: how stages are run and shown.
ABOVE = {"__main__.py", "commands.py", "study.py", "manifest.py", "kernel.py", "report.py", "check.py"}


def project_path(path: str | Path) -> Path:
    """A path as subjects write it: absolute, from home, or relative to the project (not to wherever a kernel started)."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else PROJECT / path


def user_path(path: str | Path) -> Path:
    """A path as subjects type it in a shell: relative to where they stand, else (when nothing is there) to the project."""
    here = Path(path).expanduser().absolute()
    return here if here.exists() or Path(path).is_absolute() else project_path(path)


def data_home() -> Path:
    """The folder of prepared cohorts: $OASIS_DATA, else `data/` of the project."""
    return project_path(os.environ.get("OASIS_DATA", "data"))


def overwriting() -> bool:
    """Whether finished results may be replaced: `--overwrite` sets $OASIS_OVERWRITE, which notebooks inherit."""
    return os.environ.get("OASIS_OVERWRITE", "0") not in ("", "0")


@cache
def library_digest() -> str:
    """The library's own text, but for what only runs and shows the stages."""
    files = sorted(path for path in (PROJECT / "oasis_lib").rglob("*.py") if path.name not in ABOVE)
    return content_hash(*files)[:24]
