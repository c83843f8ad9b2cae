"""Subjects of a cohort: the participants' sheet in its many spellings, and splits that never share a subject."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from oasis_lib.cohort.store import SPLITS, CohortError, Options

# Column names in BIDS, in OASIS-1's and OASIS-2's spreadsheets and in OASIS-3's export.
SPELLINGS = {
    "subject": ("participant_id", "subject", "subject id", "subject_id", "oasisid", "id", "mri id"),
    "age": ("age", "age at visit", "ageatentry", "age_at_scan"),
    "sex": ("sex", "m/f", "gender"),
    "cdr": ("cdr", "cdrtot", "cdr_global"),
}
SHEETS = ["participants.tsv", "participants.csv"]
SHEETS += [f"*{name}*{suffix}" for name in ("cross-sectional", "demographic") for suffix in (".xlsx", ".csv")]
# Class folders named after a CDR: verymilddemented, verymilddementia ...
CLASS_RATINGS = {"non": 0.0, "verymild": 0.5, "mild": 1.0, "moderate": 2.0}


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
    lower = {str(column).strip().lower(): column for column in table.columns}
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
        numbers = pd.to_numeric(table[column], errors="coerce")
        if numbers.notna().sum() == table[column].notna().sum():
            table[column] = numbers
    table.columns = [str(c).strip() for c in table.columns]
    return table.drop(columns=[c for c in ("split", "slice_index", "file", "session") if c in table])


def subject_key(name: str) -> str:
    """One key for the names that files and sheets use: sub-007, case_007 and 7; OAS1_0007_MR2 and OAS1_0007."""
    name = re.sub(r"^(sub-|case_)", "", re.sub(r"_MR\d+.*$", "", str(name).strip()))
    return str(int(name)) if name.isdigit() else name.lower()


def join_subjects(subjects: pd.DataFrame, sheet: pd.DataFrame) -> pd.DataFrame:
    """Adds the sheet's columns; of a subject's several rows (OASIS-1's repeat sessions) the first counts."""
    sheet = sheet.assign(_key=sheet["subject"].map(subject_key)).drop_duplicates("_key").drop(columns="subject")
    sheet = sheet.drop(columns=[c for c in sheet if c in subjects])
    joined = subjects.assign(_key=subjects["subject"].map(subject_key)).merge(sheet, on="_key", how="left")
    return joined.drop(columns="_key").dropna(axis="columns", how="all")


def assign_splits(
    root: Path,
    splits: dict[str, list[Path]],
    subject_of: dict[Path, str],
    sheet: Path | None,
    how: Options,
    groups: dict[str, str] | None = None,
    slices: int = 1,  # per file
) -> tuple[pd.DataFrame, dict[str, list[Path]], str]:
    """Table of subjects, files per split, and a line on both. Given splits are kept; files under "" are split here."""
    where = defaultdict(set)
    for split, files in splits.items():
        for file in files:
            where[subject_of[file]].add(split)
    if shared := sorted((subject for subject, found in where.items() if len(found) > 1), key=natural):
        raise CohortError(
            f"{root}: subjects stand in two splits ({' and '.join(sorted(where[shared[0]]))}): {examples(shared, 5)};"
            " move each subject into one split, or put all slices into one folder and they are split by subject"
        )
    subjects = pd.DataFrame({"subject": sorted(where, key=natural)})
    subjects["split"] = [next(iter(where[s])) for s in subjects["subject"]]
    if groups:
        subjects["group"] = subjects["subject"].map(groups)
        plain = [re.sub(r"[^a-z]|dement(ed|ia)$", "", re.sub(r"[^a-z]", "", str(g).lower())) for g in subjects["group"]]
        cdrs = [CLASS_RATINGS.get(name) for name in plain]
        if None not in cdrs:
            subjects["cdr"] = cdrs
    if sheet:
        subjects = join_subjects(subjects, read_sheet(sheet))
    made = "as given"
    if set(splits) == {""}:
        chosen = split_subjects(subjects, how.seed, how.fractions)
        subjects["split"] = subjects["subject"].map(chosen)
        splits = {name: [f for f in splits[""] if chosen[subject_of[f]] == name] for name in SPLITS}
        made = f"made here by subject, seed {how.seed}"
    count = subjects["split"].value_counts()
    each = ", ".join(f"{s} {len(splits[s]) * slices:,} slices of {count.get(s, 0):,} subjects" for s in SPLITS)
    return subjects, splits, f"split ({made}): {each}"


def split_subjects(subjects: pd.DataFrame, seed: int, fractions: tuple[float, float]) -> dict[str, str]:
    """A seeded split of subjects, stratified by CDR (or group) where known; every split gets at least one subject."""
    names = subjects["subject"].to_numpy()
    count = len(names)
    if count < 3:
        few = examples([*names])
        raise CohortError(f"{count} subjects can't be split into train, validate and test; at least 3 are needed ({few})")
    column = next((c for c in ("cdr", "group") if c in subjects), None)
    cdr = subjects[column].map(str).to_numpy() if column else np.full(count, "")
    # Subjects in line stratum by stratum, in random order within each; those held out are taken at even distances.
    random = np.random.default_rng(seed).permutation(count)
    order = sorted(range(count), key=lambda i: (cdr[i], random[i]))
    chosen = dict.fromkeys(names, "train")
    held = [max(1, round(f * count)) for f in fractions]
    total = sum(held)
    for i in range(total):
        to_validate = (i * held[0]) // total != ((i + 1) * held[0]) // total
        chosen[names[order[int((i + 0.5) * count / total)]]] = "validate" if to_validate else "test"
    return chosen


def natural(text: str) -> tuple:
    """A sort key that puts slice 2 before slice 10."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", text))


def refuse(bad: list[str], skip_bad: bool) -> None:
    """Stop at the first bad file of a source, unless such files are to be left out."""
    if bad and not skip_bad:
        raise CohortError(f"{bad[0]} ({len(bad):,} such files; skip_bad (--skip-bad) leaves them out)")


def examples(names: list[str], count: int = 3) -> str:
    """The first few of a list, for a message of one line."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(str, names[:count])) + more
