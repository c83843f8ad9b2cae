"""The prepared form of a cohort: one memory-mapped uint8 array a split, a table of its slices, and what is known of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oasis_lib.paths import project_path, read_json

SPLITS = ("train", "validate", "test")


@dataclass(frozen=True)
class Split:
    """`images` and `table` go row by row together. `tissue` (0 air, 1 CSF, 2 grey, 3 white) and `lesion` may be None."""

    name: str
    images: np.ndarray  # (N, H, W) uint8, memory-mapped
    table: pd.DataFrame  # subject, level (0-based), file, and what participants.tsv gives
    tissue: np.ndarray | None = None
    lesion: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def subjects(self) -> np.ndarray:
        return self.table["subject"].to_numpy()

    @property
    def levels(self) -> np.ndarray:
        return self.table["level"].to_numpy()


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
    def levels(self) -> int:
        """How many levels a head has; 0 where they are not known."""
        return self.info["levels"]

    @property
    def ratings(self) -> list[float]:
        """The clinical ratings (cdr) that occur in training people, in order; empty where there are none."""
        return self.info.get("ratings", [])

    @property
    def synthetic(self) -> bool:
        return self.info["synthetic"]

    def who(self, split: str) -> str:
        """What figures and tables call the people of a split: never real where they were grown from a template."""
        return f"{'synthetic' if self.synthetic else 'real'} {'training' if split == 'train' else split} people"

    @property
    def people(self) -> pd.DataFrame:
        """participants.tsv: one row a person, with a column `split`."""
        return pd.read_csv(self.folder / "participants.tsv", sep="\t", dtype={"subject": str})


def open_cohort(folder: str | Path) -> Cohort:
    """A prepared cohort. The arrays stay on disk until they are indexed."""
    folder = project_path(folder)
    if not (folder / "cohort.json").is_file():
        raise FileNotFoundError(f"{folder} is not a prepared cohort: it has no cohort.json; make it with `oasis prepare`")
    info = read_json(folder / "cohort.json")
    people = pd.read_csv(folder / "participants.tsv", sep="\t", dtype={"subject": str}).drop(columns="split")
    table = pd.read_csv(folder / "slices.csv", dtype={"subject": str, "session": str}).merge(people, on="subject", how="left")
    splits = {}
    for name in info["splits"]:
        rows = table[table["split"] == name].drop(columns="split").reset_index(drop=True)
        arrays = {
            key: _array(folder / f"{name}{suffix}.npy")
            for key, suffix in (("images", ""), ("tissue", "_tissue"), ("lesion", "_lesion"))
        }
        if arrays["images"] is None or len(arrays["images"]) != len(rows):
            raise ValueError(f"{folder}: {name}.npy and slices.csv disagree; delete the folder and prepare it again")
        splits[name] = Split(name, table=rows, **arrays)
    return Cohort(folder, info, splits)


def _array(path: Path) -> np.ndarray | None:
    return np.load(path, mmap_mode="r") if path.is_file() else None
