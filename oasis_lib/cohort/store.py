"""What a cohort is: as a plan to be written, and on disk (a uint8 array per split, a table of slices, hashes)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oasis_lib.paths import project_path
from oasis_lib.storage import content_hash, read_json

SPLITS = ("train", "validate", "test")
SUFFIXES = {"images": "", "tissue": "_tissue", "lesion": "_lesion"}  # of a split's arrays: train_tissue.npy


class CohortError(ValueError):
    """A source that can't be taken as it is. One line: the path, what is wrong, what to do."""


@dataclass(frozen=True)
class Options:
    """How to prepare. `subjects` and `lesions` concern the phantom; `mm`, `fractions` and `skip_bad` all else."""

    size: int = 256  # pixels per side
    seed: int = 0  # of the phantom, and of a split that is made here
    subjects: int = 60  # subjects
    lesions: int = 8  # test subjects who are copied with a lesion
    mm: float | None = None  # pixel size of volumes; None is the most frequent of their own
    fractions: tuple[float, float] = (0.1, 0.1)  # of the subjects, in validate and test
    skip_bad: bool = False  # leave out files that can't be read, and list them

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 4096 or self.size != int(self.size):
            raise CohortError(f"size={self.size} must be a whole number of pixels from 16 to 4096")
        if self.seed < 0:
            raise CohortError(f"seed={self.seed} must be 0 or more")
        if self.mm is not None and not 0 < self.mm < math.inf:
            raise CohortError(f"mm={self.mm} must be a pixel size above 0, in mm")
        if len(self.fractions) != 2 or min(self.fractions) <= 0 or not sum(self.fractions) < 1:
            raise CohortError(f"fractions={self.fractions} must be two shares above 0 and below 1 together")


@dataclass(frozen=True)
class Item:
    """What is read in one step: the slices of one session of one subject, from inferior to superior."""

    split: str
    subject: str
    files: tuple[str, ...]  # relative to the source: one per slice, or one volume for all of them
    slice_indices: tuple[int, ...]  # slice indices; -1 where unknown
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
    """What was understood of a source. `read` must be picklable where `parallel`: several processes then call it."""

    items: list[Item]
    subjects: pd.DataFrame  # subject, split, and what is known of them
    read: Callable[[Item], Slices]
    info: dict[str, Any]  # into cohort.json: synthetic, intensity, licence, mm ...
    summary: list[str]  # printed before anything long starts
    tissue: tuple[str, ...] = ()  # the splits with tissue maps
    lesion: tuple[str, ...] = ()  # the splits with planted lesions
    warnings: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    parallel: bool = False
    warm: Callable[[], Any] = lambda: None  # called before processes are forked: they share what it loads


@dataclass(frozen=True)
class Split:
    """`images`, `table` and the maps go row by row. `tissue`: 0 background, 1 CSF, 2 grey matter, 3 white matter."""

    name: str
    images: np.ndarray  # (N, H, W) uint8, memory-mapped
    table: pd.DataFrame  # subject, slice index (0-based slice index), file, and the columns of participants.tsv
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
        """What figures and tables call a split's subjects: never real where they were grown from a template."""
        return f"{'synthetic' if self.synthetic else 'real'} {'training' if split == 'train' else split} subjects"

    @property
    def subjects(self) -> pd.DataFrame:
        """participants.tsv: one row per subject, with a column `split`."""
        return pd.read_csv(self.folder / "participants.tsv", sep="\t", dtype={"subject": str})


def open_cohort(folder: str | Path, full: bool = False) -> Cohort:
    """A prepared cohort; arrays stay on disk until indexed. Files are checked by size and a sample, or in `full`."""
    folder = project_path(folder)
    if not (folder / "cohort.json").is_file():
        raise FileNotFoundError(f"{folder} is not a prepared cohort (no cohort.json); make it with `oasis prepare`")
    info = read_json(folder / "cohort.json")
    if lacking := [k for k in ("hash", "size", "slice_indices", "splits", "synthetic") if k not in info]:
        raise ValueError(f"{folder / 'cohort.json'}: lacks {', '.join(lacking)}; delete {folder} and prepare it again")
    for name, known in info.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            raise _altered(path, "is missing")
        if any(known[k] != found for k, found in digests(path, full).items()):
            raise _altered(path, f"has other bytes than the {known['bytes']:,} that were prepared")
    subjects = pd.read_csv(folder / "participants.tsv", sep="\t", dtype={"subject": str}).drop(columns="split")
    table = pd.read_csv(folder / "slices.csv", dtype={"subject": str, "session": str})
    table = table.merge(subjects, on="subject", how="left")
    splits = {}
    for name in info["splits"]:
        rows = table[table["split"] == name].drop(columns="split").reset_index(drop=True)
        paths = {key: folder / f"{name}{suffix}.npy" for key, suffix in SUFFIXES.items()}
        shape = (len(rows), info["size"], info["size"])
        arrays = {key: _array(path, shape) for key, path in paths.items() if key == "images" or path.is_file()}
        splits[name] = Split(name, table=rows, **arrays)
    return Cohort(folder, info, splits)


def _array(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise _altered(path, f"can't be read ({error})") from error
    if array.shape != shape or array.dtype != np.uint8:
        raise _altered(path, f"is {array.dtype} of shape {array.shape} where slices.csv asks for uint8 of {shape}")
    return array


def _altered(path: Path, what: str) -> ValueError:
    return ValueError(f"{path}: {what}; delete {path.parent} and prepare it again")


def digests(path: Path, full: bool) -> dict[str, Any]:
    """Size, a hash of 64 blocks of 4 KiB from the first to the last, and in `full` a hash of every byte."""
    size, sample = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        for start in np.linspace(0, max(0, size - 4096), 64).astype(int):
            file.seek(start)
            sample.update(file.read(4096))
    every = {"sha256": content_hash(path)} if full else {}
    return {"bytes": size, "sample": sample.hexdigest()[:16]} | every


# What notebook 01 shows of a cohort.


def some_slice_indices(cohort: Cohort, count: int) -> list[int]:
    """Evenly spaced slice indices, inferior to superior; [-1] where they are unknown."""
    return _spread(list(range(cohort.slice_indices)), count) if cohort.slice_indices else [-1]


def brains(split: Split, subjects: int, slice_indices: list[int]) -> tuple[np.ndarray, list[str]]:
    """(subjects, slice indices, H, W) and the subjects' names. Where one lacks a slice index, the nearest is taken."""
    chosen = _spread(list(dict.fromkeys(split.subjects)), subjects)
    rows = [np.flatnonzero(split.subjects == subject) for subject in chosen]
    nearest = [[r[np.abs(split.slice_indices[r] - slice_index).argmin()] for slice_index in slice_indices] for r in rows]
    return split.images[np.array(nearest)], chosen


def mean_and_spread(split: Split, slice_indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over at most 120 subjects, pixel by pixel: (slice indices, H, W) each, in [0, 1]."""
    rows = [_spread(np.flatnonzero(split.slice_indices == slice_index).tolist(), 120) for slice_index in slice_indices]
    images = [split.images[r] / np.float32(255) for r in rows]
    return np.stack([i.mean(0) for i in images]), np.stack([i.std(0) for i in images])


def histograms(split: Split, subjects: int = 40, bins: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Foreground intensities, one density per subject: (bins + 1,) edges and (subjects, bins)."""
    edges = np.linspace(1, 256, bins + 1)
    chosen = _spread(list(dict.fromkeys(split.subjects)), subjects)
    found = [split.images[np.flatnonzero(split.subjects == subject)] for subject in chosen]
    return edges, np.stack([np.histogram(v[v > 0], edges, density=True)[0] for v in found])


def tissue_greys(split: Split, bins: int = 64) -> dict[str, np.ndarray]:
    """Densities of the intensities of CSF, grey and white matter; empty where tissue is unknown."""
    if split.tissue is None:
        return {}
    rows, edges = _spread(list(range(len(split))), 400), np.linspace(1, 256, bins + 1)
    images, tissue = split.images[rows], split.tissue[rows]
    counts = {name: np.histogram(images[tissue == k], edges)[0] for k, name in enumerate(("CSF", "grey matter", "white matter"), 1)}
    total = sum(counts.values()).sum() * np.diff(edges)
    return {name: count / total for name, count in counts.items()}


def shared_subjects(cohort: Cohort) -> list[str]:
    """Subjects in more than one of train, validate and test: there must be none."""
    where = pd.concat([s.table[["subject"]].assign(split=n) for n, s in cohort.splits.items() if n != "lesion"])
    count = where.drop_duplicates()["subject"].value_counts()
    return sorted(count[count > 1].index)


def _spread(values: list, count: int) -> list:
    """At most `count` of them, evenly spaced."""
    return [values[i] for i in np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)]
