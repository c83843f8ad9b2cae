"""A cohort: as a plan to be written, and on disk (uint8 arrays by split, a table of slices, hashes)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oasis_lib.config import CohortConfig
from oasis_lib.paths import project_path
from oasis_lib.storage import content_hash, read_json

SPLITS = ("train", "validate", "test")
SUFFIXES = {"images": "", "tissue": "_tissue", "lesion": "_lesion"}  # of a split's arrays: train_tissue.npy


class CohortError(ValueError):
    """One line: the path, what is wrong, what to do."""


@dataclass(frozen=True)
class Options(CohortConfig):
    """`subjects` and `lesions` concern the phantom, `mm` and `skip_bad` all others; `seed` any split made here."""

    size: int = 256
    mm: float | None = None  # pixel size of volumes; None is the most frequent of their own
    skip_bad: bool = False  # leave out files that can't be read, and list them


@dataclass(frozen=True)
class Item:
    """The slices of one session of one subject, from inferior to superior: read in one step."""

    split: str
    subject: str
    files: tuple[str, ...]  # relative to the source: one per slice, or one volume for all of them
    slice_indices: tuple[int, ...]  # -1 where unknown
    session: str = ""


@dataclass
class Slices:
    """An item's slices: `kept` are their places in the item, `left_out` says why others are missing."""

    images: np.ndarray  # (n, H, W) uint8
    kept: list[int]
    tissue: np.ndarray | None = None
    lesion: np.ndarray | None = None
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """What was understood of a source. Where `parallel`, several processes call `read`."""

    items: list[Item]
    subjects: pd.DataFrame  # subject, split, and what is known of them
    read: Callable[[Item], Slices]
    info: dict[str, Any]  # into cohort.json: synthetic, intensity, licence, mm ...
    summary: list[str]  # printed before anything long starts
    warnings: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    parallel: bool = False


@dataclass(frozen=True)
class Split:
    """`images`, `table` and the maps go row by row. `tissue`: 0 background, 1 CSF, 2 grey matter, 3 white matter."""

    name: str
    images: np.ndarray  # (N, H, W) uint8, memory-mapped
    table: pd.DataFrame  # subject, slice_index (0-based), file, and the columns of participants.tsv
    tissue: np.ndarray | None = None
    lesion: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def subjects(self) -> np.ndarray:
        return self.table["subject"].to_numpy()

    @property
    def slice_indices(self) -> np.ndarray:
        return self.table["slice_index"].to_numpy()

    def rows(self, subjects: int, slice_indices: Sequence[int]) -> np.ndarray:
        """(subjects, slice indices): rows of evenly chosen subjects, nearest to these slice indices."""
        names = self.table["subject"].unique()
        chosen = names[np.linspace(0, len(names) - 1, min(subjects, len(names))).round().astype(int)]
        own = [np.flatnonzero(self.subjects == name) for name in chosen]
        return np.array([[r[np.abs(self.slice_indices[r] - index).argmin()] for index in slice_indices] for r in own])


@dataclass(frozen=True)
class Cohort:
    folder: Path
    info: dict[str, Any]  # cohort.json
    splits: dict[str, Split]

    def __getitem__(self, name: str) -> Split:
        if name not in self.splits:
            raise KeyError(f"{self.folder} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]

    def __contains__(self, name: str) -> bool:
        return name in self.splits

    @property
    def hash(self) -> str:
        return self.info["hash"]

    @property
    def size(self) -> int:
        return self.info["size"]

    @property
    def slice_indices(self) -> int:
        """Slices per brain; 0 where slice indices are unknown."""
        return self.info["slice_indices"]

    @property
    def cdrs(self) -> list[float]:
        """The CDR values of training subjects, in order; empty where there are none."""
        return self.info.get("cdrs", [])

    @property
    def synthetic(self) -> bool:
        return self.info["synthetic"]

    def who(self, split: str) -> str:
        """What figures and tables call a split's subjects: "synthetic test subjects"."""
        return f"{'synthetic' if self.synthetic else 'real'} {'training' if split == 'train' else split} subjects"

    @property
    def subjects(self) -> pd.DataFrame:
        """participants.tsv: one row per subject, with a column `split`."""
        return pd.read_csv(self.folder / "participants.tsv", sep="\t", dtype={"subject": str})


def open_cohort(folder: str | Path, full: bool = False) -> Cohort:
    """A prepared cohort; arrays stay on disk until indexed. Files are checked by size and a sample, or in `full`."""
    folder = project_path(folder)
    path = folder / "cohort.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a prepared cohort (no cohort.json); make it with `oasis prepare`")
    info, again = read_json(path), f"delete {folder} and prepare it again"
    if lacking := [k for k in ("hash", "size", "slice_indices", "splits", "synthetic", "files") if k not in info]:
        raise ValueError(f"{path}: lacks {', '.join(lacking)}; {again}")
    written = path.stat().st_mtime  # last of all: what was touched since is read in full
    for name, known in info["files"].items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: is missing; {again}")
        touched = (folder / name).stat().st_mtime > written
        if any(known[key] != found for key, found in digests(folder / name, full or touched).items()):
            raise ValueError(f"{folder / name}: has other bytes than those prepared; {again}")
    subjects = pd.read_csv(folder / "participants.tsv", sep="\t", dtype={"subject": str}).drop(columns="split")
    table = pd.read_csv(folder / "slices.csv", dtype={"subject": str, "session": str})
    table = table.merge(subjects, on="subject", how="left")
    splits = {}
    for name in info["splits"]:
        rows = table[table["split"] == name].drop(columns="split").reset_index(drop=True)
        paths = {key: folder / f"{name}{suffix}.npy" for key, suffix in SUFFIXES.items()}
        arrays = {key: np.load(path, mmap_mode="r") for key, path in paths.items() if path.name in info["files"]}
        splits[name] = Split(name, table=rows, **arrays)
    return Cohort(folder, info, splits)


def digests(path: Path, full: bool) -> dict[str, Any]:
    """Size, a hash of 64 blocks of 4 KiB from the first to the last, and in `full` a hash of every byte."""
    size, sample = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        for start in np.linspace(0, max(0, size - 4096), 64).astype(int):
            file.seek(start)
            sample.update(file.read(4096))
    every = {"sha256": content_hash(path)} if full else {}
    return {"bytes": size, "sample": sample.hexdigest()[:16]} | every
