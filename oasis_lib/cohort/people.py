"""Who is in a cohort: the participants' sheet in its many spellings, and splits that never share a person."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from oasis_lib.cohort.plan import CohortError, examples
from oasis_lib.cohort.store import SPLITS

# What sheets call things: BIDS, OASIS-1's and OASIS-2's spreadsheets, OASIS-3's export.
SPELLINGS = {
    "subject": ("participant_id", "subject", "subject id", "subject_id", "oasisid", "id", "mri id"),
    "age": ("age", "age at visit", "ageatentry", "age_at_scan"),
    "sex": ("sex", "m/f", "gender"),
    "cdr": ("cdr", "cdrtot", "cdr_global"),
}
SHEETS = ("participants.tsv", "participants.csv", "*cross-sectional*.xlsx", "*cross-sectional*.csv", "*demographic*.xlsx", "*demographic*.csv")  # fmt: skip


def find_sheet(root: Path) -> Path | None:
    """A participants' sheet in the source folder, or beside it."""
    for folder in (root, root.parent):
        for pattern in SHEETS:
            for path in sorted(folder.glob(pattern)):
                return path
    return None


def read_sheet(path: Path) -> pd.DataFrame:
    """subject, age, sex, cdr (those that are there), then the sheet's other columns under their own names."""
    try:
        if path.suffix == ".xlsx":
            table = pd.read_excel(path, dtype=object)
        else:
            table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=object)
    except (OSError, ValueError) as error:
        raise CohortError(f"{path}: this participants' sheet can't be read ({error}); repair or remove it") from error
    lower = {str(column).strip().lower(): column for column in table.columns}
    for name, spellings in SPELLINGS.items():
        found = next((lower[s] for s in spellings if s in lower), None)
        if found is not None:
            table = table.rename(columns={found: name})
    if "subject" not in table:
        raise CohortError(
            f"{path}: no column says whose row it is; call it participant_id (it has {examples(list(table.columns), 8)})"
        )
    table = table.dropna(subset="subject")
    table["subject"] = table["subject"].astype(str).str.strip()
    table = table[[*[n for n in SPELLINGS if n in table], *[c for c in table.columns if c not in SPELLINGS]]]
    for column in table.columns[1:]:
        numbers = pd.to_numeric(table[column], errors="coerce")
        if numbers.notna().sum() == table[column].notna().sum():
            table[column] = numbers
    table.columns = [str(c).strip() for c in table.columns]
    return table.drop(columns=[c for c in ("split", "level", "file", "session") if c in table])


def person_key(name: str) -> str:
    """The same person under the names that files and sheets use: sub-007, case_007, 7; OAS1_0007_MR2 and OAS1_0007."""
    name = re.sub(r"_MR\d+.*$", "", str(name).strip())
    name = re.sub(r"^(sub-|case_)", "", name)
    return str(int(name)) if name.isdigit() else name.lower()


def join_people(people: pd.DataFrame, sheet: pd.DataFrame) -> pd.DataFrame:
    """What the sheet knows of these people; its first row where a person has several (OASIS-1's repeat sessions)."""
    sheet = sheet.assign(_key=sheet["subject"].map(person_key)).drop_duplicates("_key").drop(columns="subject")
    sheet = sheet.drop(columns=[c for c in sheet if c in people])
    joined = people.assign(_key=people["subject"].map(person_key)).merge(sheet, on="_key", how="left")
    return joined.drop(columns="_key").dropna(axis="columns", how="all")


def refuse_shared(split_of: dict[str, set[str]], source: str) -> None:
    """Given splits are kept, but a person must not be in two of them."""
    shared = sorted(subject for subject, splits in split_of.items() if len(splits) > 1)
    if shared:
        where = " and ".join(sorted(split_of[shared[0]]))
        raise CohortError(
            f"{source}: people stand in two splits ({where}): {examples(shared, 5)}; move each person into one split,"
            " or put all slices into one folder and they are split by person"
        )


def split_people(people: pd.DataFrame, seed: int, fractions: tuple[float, float]) -> dict[str, str]:
    """A seeded split of people, stratified by rating (or group) where there is one; every split gets somebody."""
    subjects = people["subject"].to_numpy()
    if len(subjects) < 3:
        raise CohortError(
            f"{len(subjects)} people can't be split into train, validate and test; give at least 3 (these are {examples(list(subjects))})"
        )
    column = next((c for c in ("cdr", "group") if c in people), None)
    rating = people[column].astype(str).to_numpy() if column else np.full(len(subjects), "")
    # People stand in line stratum by stratum, in random order within each; those held out are taken at even distances.
    random = np.random.default_rng(seed).permutation(len(subjects))
    order = sorted(range(len(subjects)), key=lambda i: (rating[i], random[i]))
    held = [max(1, round(f * len(subjects))) for f in fractions]
    marks = _dealt(len(subjects), held)
    return {subjects[person]: SPLITS[mark] for person, mark in zip(order, marks)}


def _dealt(count: int, held: list[int]) -> list[int]:
    """0, 1 and 2 (train, validate, test) spread evenly over `count` places."""
    marks = [0] * count
    total = sum(held)
    places = [int((i + 0.5) * count / total) for i in range(total)]
    for i, place in enumerate(places):
        marks[place] = 1 if (i * held[0]) // total != ((i + 1) * held[0]) // total else 2
    return marks
