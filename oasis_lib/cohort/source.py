"""What folders of images and of volumes share: what their paths say, errors that name a file, frames."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from oasis_lib.cohort.store import SPLITS, CohortError

SPLIT_NAMES = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("test", "testing"), "test")
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validate")
SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+|(?:case|seg)_\d+|OAS[12]_\d{4}|OAS3\d{4})")
SESSION = re.compile(r"(ses-[A-Za-z0-9]+|(?<=_)MR\d+|(?<=_)d\d{4}(?=\D))")
SLICE = re.compile(r"(?:slice|level|z)[-_]?(\d+)|[-_](\d+)$")


def describe(root: Path, files: Iterable[Path]) -> pd.DataFrame:
    """What paths below `root` say, a row a file. Unknown: split, subject and session "", slice index -1.

    Where folders are named after splits, other files are left out.
    """
    paths = [file.relative_to(root) for file in files]
    rows = [(str(path), split_of(path.parts[:-1]), *parse_name(path)) for path in paths]
    table = pd.DataFrame(rows, columns=["file", "split", "subject", "session", "slice_index"])
    given = sorted(set(table["split"]) - {""})
    for name in SPLITS if given else ():
        if name not in given:
            has = f"has files for {' and '.join(given)} but none for {name}"
            raise CohortError(f"{root}: {has}; add some, or put all into one folder to have them split by subject")
    return pd.concat([table[table["split"] == name] for name in SPLITS], ignore_index=True) if given else table


def parse_name(path: Path) -> tuple[str, str, int]:
    """("sub-007", "", 5) for sub-007_slice-05.jpg: subject, session and slice index, as written."""
    subject = SUBJECT.search(str(path))
    if not subject:
        return "", "", -1
    session = SESSION.search(str(path), subject.end())
    found = SLICE.search(stem(path.name).replace(subject[0], "", 1))
    return subject[0], session[0] if session else "", int(found[1] or found[2]) if found else -1


def stem(name: str) -> str:
    """case_001_slice_0 for case_001_slice_0.nii.png."""
    return re.sub(r"(\.(nii|img|mgz|mgh|hdr))?\.\w+$", "", name)


def natural(text: str) -> tuple:
    """A sort key that puts slice 2 before slice 10."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", text))


def each_alone(files: pd.Series, kind: str, better: str) -> tuple[pd.Series, str]:
    """A subject of its own for each file, where names tell none, and the warning."""
    what = f"no subject can be told from names such as {Path(files.iloc[0]).name}: each {kind} counts as a subject"
    warning = f"{what} of its own, so one may be in two splits (a leak that flatters every score); name files {better}"
    return files.map(lambda file: re.sub(r"[,\t\n\"]", "_", stem(file))), warning


def examples(names: list[str], count: int = 3) -> str:
    """The first few of a list, for a message of one line."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(str, names[:count])) + more


def refuse(bad: list[str], skip_bad: bool) -> None:
    """Stop at the first bad file of a source, unless such files are to be left out."""
    if bad and not skip_bad:
        raise CohortError(f"{bad[0]} ({len(bad):,} such files; skip_bad (--skip-bad) leaves them out)")


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Any error of a reader as one line that names the file."""
    try:
        yield
    except CohortError:
        raise
    except Exception as error:  # of every type, on damaged files
        why = str(error).partition("\n")[0][:120] or type(error).__name__
        raise CohortError(f"{file}: can't be read ({why}); mend, replace or remove it") from error


def split_of(folders: Iterable[str]) -> str:
    """The split that one of the folders is named after: train, val, keras_png_slices_seg_train ...; else ""."""
    plain = [name.lower().removeprefix("keras_png_slices_").removeprefix("seg_") for name in folders]
    return next((SPLIT_NAMES[name] for name in plain if name in SPLIT_NAMES), "")


def centred(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W) to (size, size): zero-padded or cropped about the centre, so a pixel keeps its size in mm."""
    before = [max(0, size - length) // 2 for length in image.shape]
    padded = np.pad(image, [(some, max(0, size - n - some)) for some, n in zip(before, image.shape)])
    top, left = (max(0, length - size) // 2 for length in image.shape)
    return padded[top : top + size, left : left + size]


def cut_note(brains: list[np.ndarray], size: int) -> list[str]:
    """A note where `centred` cuts off more than one per cent of brains, (H, W) masks."""
    there = sum(map(np.count_nonzero, brains))
    kept = sum(np.count_nonzero(centred(brain, size)) for brain in brains)
    note = f"{size} pixels cut brains; a larger --size or coarser pixels (--mm) keep them whole"
    return [note] if kept < 0.99 * there else []
