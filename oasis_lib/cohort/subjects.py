"""Subjects: the participants' sheet in its many spellings, and splits that never share a subject."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from oasis_lib.cohort.source import examples, natural
from oasis_lib.cohort.store import SPLITS, CohortError, Item

# Column names in BIDS, in OASIS-1's and OASIS-2's spreadsheets and in OASIS-3's export.
SPELLINGS = {
    "subject": ("participant_id", "subject", "subject id", "subject_id", "oasisid", "id", "mri id"),
    "age": ("age", "age at visit", "ageatentry", "age_at_scan"),
    "sex": ("sex", "m/f", "gender"),
    "cdr": ("cdr", "cdrtot", "cdr_global"),
}
SHEETS = ["participants.tsv", "participants.csv"]
SHEETS += [f"*{name}*{suffix}" for name in ("cross-sectional", "demographic") for suffix in (".xlsx", ".csv")]
HELD_OUT = (0.1, 0.1)  # of the subjects, in validate and test


def find_sheet(*folders: Path) -> Path | None:
    """The first participants' sheet in these folders."""
    return next((path for folder in folders for pattern in SHEETS for path in sorted(folder.glob(pattern))), None)


def read_sheet(path: Path) -> pd.DataFrame:
    """subject, then those of age, sex and cdr that exist, then the sheet's other columns under their own names."""
    try:
        if path.suffix == ".xlsx":
            table = pd.read_excel(path, dtype=object)
        else:
            table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=object)
    except (OSError, ValueError) as error:
        raise CohortError(f"{path}: this participants' sheet can't be read ({error}); repair or remove it") from error
    table.columns = [str(column).strip() for column in table.columns]
    lower = {column.lower(): column for column in table.columns}
    for name, spellings in SPELLINGS.items():
        if found := [lower[s] for s in spellings if s in lower]:
            table = table.rename(columns={found[0]: name})
    if "subject" not in table:
        has = examples(list(table.columns), 8)
        raise CohortError(f"{path}: no column says whose row it is; call it participant_id (it has {has})")
    table = table.dropna(subset="subject")
    table["subject"] = table["subject"].astype(str).str.strip()
    table = table[[*[n for n in SPELLINGS if n in table], *[c for c in table.columns if c not in SPELLINGS]]]
    for column in table.columns[1:]:
        with suppress(ValueError, TypeError):  # else it is text
            table[column] = pd.to_numeric(table[column])
    return table.drop(columns=["split", "slice_index", "file", "session"], errors="ignore")


def subject_key(name: str) -> str:
    """One key for the names that files and sheets use: sub-007, case_007 and 7; OAS1_0007_MR2 and OAS1_0007."""
    name = re.sub(r"^(sub-|case_)", "", re.sub(r"_MR\d+.*$", "", str(name).strip()))
    return str(int(name)) if name.isdigit() else name.lower()


def join_subjects(subjects: pd.DataFrame, sheet: pd.DataFrame) -> pd.DataFrame:
    """Adds the sheet's columns; of a subject's several rows (OASIS-1's repeat sessions) the first counts."""
    sheet = sheet.assign(_key=sheet["subject"].map(subject_key)).drop_duplicates("_key")
    sheet = sheet.drop(columns=[c for c in sheet if c in subjects])
    joined = subjects.assign(_key=subjects["subject"].map(subject_key)).merge(sheet, on="_key", how="left")
    return joined.drop(columns="_key").dropna(axis="columns", how="all")


def assign_splits(root: Path, table: pd.DataFrame, sheet: Path | None, seed: int) -> tuple[pd.DataFrame, list, str]:
    """Table of subjects, items, and how they were split: as the table of files has it, else here."""
    splits = table.groupby("subject")["split"].unique()
    if shared := sorted(splits.index[splits.map(len) > 1], key=natural):
        both = " and ".join(sorted(splits[shared[0]]))
        raise CohortError(
            f"{root}: subjects are in two splits ({both}): {examples(shared, 5)}; move each into one split, or put all"
            " slices into one folder to have them split by subject"
        )
    subjects, told = pd.DataFrame({"subject": sorted(splits.index, key=natural)}), "split as given"
    subjects["split"] = subjects["subject"].map(splits.str[0])
    if "group" in table:
        subjects["group"] = subjects["subject"].map(table.groupby("subject")["group"].first())
    if sheet:
        subjects = join_subjects(subjects, read_sheet(sheet))
    if (table["split"] == "").all():
        chosen, told = split_subjects(subjects, seed, HELD_OUT), f"split here by subject, seed {seed}"
        subjects["split"], table = subjects["subject"].map(chosen), table.assign(split=table["subject"].map(chosen))
    return subjects, items_of(table), told


def items_of(table: pd.DataFrame) -> list[Item]:
    """An item for every session, in the order of splits, subjects and sessions; its files in the order of slices."""

    def place(row) -> tuple:
        where = SPLITS.index(row.split), natural(row.subject), natural(row.session)
        return *where, row.slice_index, natural(Path(row.file).name)

    ordered = table.loc[[row.Index for row in sorted(table.itertuples(), key=place)]]
    sessions = ordered.groupby(["split", "subject", "session"], sort=False)
    return [Item(*key[:2], tuple(own["file"]), tuple(own["slice_index"].tolist()), key[2]) for key, own in sessions]


def split_subjects(subjects: pd.DataFrame, seed: int, fractions: tuple[float, float]) -> dict[str, str]:
    """A seeded split of subjects, stratified by CDR (or group) where known; every split gets at least one subject."""
    names = subjects["subject"].to_numpy()
    count = len(names)
    if count < 3:
        raise CohortError(f"{count} subjects can't be split into train, validate and test; at least 3 are needed")
    column = next((c for c in ("cdr", "group") if c in subjects), None)
    stratum = subjects[column].map(str).to_numpy() if column else np.full(count, "")
    # Subjects in line stratum by stratum, in random order within each; those held out are taken at even distances.
    random = np.random.default_rng(seed).permutation(count)
    order = sorted(range(count), key=lambda i: (stratum[i], random[i]))
    chosen = dict.fromkeys(names, "train")
    held = [max(1, round(f * count)) for f in fractions]
    total = sum(held)
    for i in range(total):
        to_validate = (i * held[0]) // total != ((i + 1) * held[0]) // total
        chosen[names[order[int((i + 0.5) * count / total)]]] = "validate" if to_validate else "test"
    return chosen
