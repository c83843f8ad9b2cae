"""Who is in a cohort: the participants' sheet in its many spellings, and splits that never share a person."""

from __future__ import annotations

import re
from collections import defaultdict
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
SHEETS = (
    "participants.tsv",
    "participants.csv",
    *(f"*{n}*{e}" for n in ("cross-sectional", "demographic") for e in (".xlsx", ".csv")),
)
# Class folders whose names are ratings, however they are spelt.
CLASS_RATINGS = {"nondemented": 0.0, "verymilddemented": 0.5, "milddemented": 1.0, "moderatedemented": 2.0}
CLASS_RATINGS |= {"verymilddementia": 0.5, "milddementia": 1.0, "moderatedementia": 2.0}


def find_sheet(*folders: Path) -> Path | None:
    """The first participants' sheet in these folders."""
    return next((path for folder in folders for pattern in SHEETS for path in sorted(folder.glob(pattern))), None)


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


def assign_splits(
    root: Path,
    splits: dict[str, list[Path]],
    subject_of: dict[Path, str],
    sheet: Path | None,
    seed: int,
    fractions: tuple[float, float],
    groups: dict[str, str] | None = None,
) -> tuple[pd.DataFrame, dict[str, list[Path]], str]:
    """The people with what is known of them, files under their split, and how that split came about.

    Given splits are kept, but nobody may be in two of them; files under "" are split here.
    """
    where = defaultdict(set)
    for split, files in splits.items():
        for file in files:
            where[subject_of[file]].add(split)
    if shared := sorted((subject for subject, found in where.items() if len(found) > 1), key=natural):
        raise CohortError(
            f"{root}: people stand in two splits ({' and '.join(sorted(where[shared[0]]))}): {examples(shared, 5)}; move each"
            " person into one split, or put all slices into one folder and they are split by person"
        )
    people = pd.DataFrame({"subject": sorted(where, key=natural)})
    people["split"] = [next(iter(where[s])) for s in people["subject"]]
    if groups:
        people["group"] = people["subject"].map(groups)
        ratings = [CLASS_RATINGS.get(re.sub(r"[^a-z]", "", str(g).lower())) for g in people["group"]]
        if None not in ratings:
            people["cdr"] = ratings
    if sheet:
        people = join_people(people, read_sheet(sheet))
    if set(splits) != {""}:
        return people, splits, "as given"
    chosen = split_people(people, seed, fractions)
    people["split"] = people["subject"].map(chosen)
    made = {name: [f for f in splits[""] if chosen[subject_of[f]] == name] for name in SPLITS}
    return people, made, f"made here by person, seed {seed}"


def describe_splits(people: pd.DataFrame, splits: dict[str, list[Path]], slices_a_file: int = 1) -> str:
    count = people["split"].value_counts()
    return ", ".join(f"{s} {len(splits[s]) * slices_a_file:,} slices of {count.get(s, 0):,} people" for s in SPLITS)


def natural(text: str) -> tuple:
    """A sort key that puts slice 2 before slice 10."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", text))


def split_people(people: pd.DataFrame, seed: int, fractions: tuple[float, float]) -> dict[str, str]:
    """A seeded split of people, stratified by rating (or group) where there is one; every split gets somebody."""
    subjects = people["subject"].to_numpy()
    if len(subjects) < 3:
        raise CohortError(
            f"{len(subjects)} people can't be split into train, validate and test; at least 3 are needed ({examples([*subjects])})"
        )
    column = next((c for c in ("cdr", "group") if c in people), None)
    rating = people[column].map(str).to_numpy() if column else np.full(len(subjects), "")
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
