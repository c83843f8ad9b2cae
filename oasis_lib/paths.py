"""Where things live."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from oasis_lib.storage import content_hash

PROJECT = Path(__file__).resolve().parent.parent
# These run and show stages; nothing that a notebook computes depends on them.
ABOVE = {"__main__.py", "commands.py", "study.py", "kernel.py", "report.py", "check.py"}


def project_path(path: str | Path) -> Path:
    """Absolute, from home, or relative to the project (not to where a kernel started)."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else PROJECT / path


def user_path(path: str | Path) -> Path:
    """A path as typed in a shell: relative to the working directory or, where nothing is there, to the project."""
    here = Path(path).expanduser().absolute()
    return here if here.exists() or Path(path).is_absolute() else project_path(path)


def short(path: Path) -> str:
    """Relative to the project where it lies inside: `runs/latest`."""
    path = project_path(path)
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)


def data_home() -> Path:
    """The folder of prepared cohorts: $OASIS_DATA, else `data/` of the project."""
    return project_path(os.environ.get("OASIS_DATA", "data"))


def overwriting() -> bool:
    """Whether finished results may be replaced: `--overwrite` sets $OASIS_OVERWRITE, which notebooks inherit."""
    return os.environ.get("OASIS_OVERWRITE", "0") not in ("", "0")


@cache
def library_digest() -> str:
    """Hash of the library's source, but for what only runs and shows the stages."""
    files = sorted(path for path in (PROJECT / "oasis_lib").rglob("*.py") if path.name not in ABOVE)
    return content_hash(*files)[:24]
