"""Where things live, and how files are written: beside, then renamed, so that nobody ever reads half a file."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
# Nothing a notebook computes depends on these: how stages are run and shown.
ABOVE = {"__main__.py", "commands.py", "study.py", "manifest.py", "kernel.py", "report.py", "check.py"}


def project_path(path: str | Path) -> Path:
    """A path as people write it: absolute, from home, or relative to the project (not to wherever a kernel started)."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else PROJECT / path


def user_path(path: str | Path) -> Path:
    """A path as people type it in a shell: relative to where they stand, else (when nothing is there) to the project."""
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
    return hashlib.blake2b("".join(path.read_text() for path in files).encode(), digest_size=12).hexdigest()


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Write to the path given back; it takes the real name only when the block ended well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def only_one(lock: Path, doing: str) -> Iterator[None]:
    """Hold the file `lock`, which names this process. A second process is refused; a dead one's lock is taken over.

    A record lock of the system: it ends with its process, however that ends, and forked workers do not hold it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(f"{lock.parent}: process {file.read()} is {doing}; wait for it or end it") from error
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


def write_json(path: str | Path, value: object) -> None:
    with atomic(path) as beside:
        beside.write_text(json.dumps(value, indent=2, default=_plain) + "\n")


def read_json(path: str | Path) -> dict:
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and make it again") from error


def _plain(value: object) -> object:
    """NumPy scalars and paths, as JSON knows them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} can't be written as JSON")
