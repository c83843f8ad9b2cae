"""What folders of images and of volumes share: names of files, split folders, errors that name a file, frames."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oasis_lib.cohort.store import SPLITS, CohortError, Item

SPLIT_NAMES = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("test", "testing"), "test")
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validate")
SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+|(?:case|seg)_\d+|OAS[12]_\d{4}|OAS3\d{4})")
SESSION = re.compile(r"(ses-[A-Za-z0-9]+|(?<=_)MR\d+|(?<=_)d\d{4}(?=\D))")
SLICE = re.compile(r"(?:slice|level|z)[-_]?(\d+)|[-_](\d+)$")


@dataclass(frozen=True)
class Name:
    """What a file's path says, the slice index as written."""

    subject: str
    session: str = ""
    slice_index: int = -1


Names, Files = dict[Path, Name], dict[str, list[Path]]  # Files: by split, "" where it is not given


def parse_name(path: Path) -> Name | None:
    """Name("sub-007", "", 5) for sub-007_slice-05.jpg; None where the path names no subject."""
    subject = SUBJECT.search(str(path))
    if not subject:
        return None
    session = SESSION.search(str(path), subject.end())
    found = SLICE.search(stem(path).replace(subject[0], "", 1))
    return Name(subject[0], session[0] if session else "", int(found[1] or found[2]) if found else -1)


def stem(path: Path) -> str:
    """case_001_slice_0 for case_001_slice_0.nii.png."""
    return re.sub(r"\.nii$", "", path.stem)


def natural(text: str) -> tuple:
    """A sort key that puts slice 2 before slice 10."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", text))


def leak(kind: str, file: Path, better: str) -> str:
    """The warning where names tell no subject."""
    what = f"no subject can be told from names such as {file.name}: each {kind} counts as a subject of its own"
    return f"{what}, so one may be in two splits (a leak that flatters every score); name files {better}"


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


def by_split(root: Path, files: Iterable[Path], what: str) -> Files:
    """Files per split; under "" where no folder is named after a split."""
    splits = defaultdict(list)
    for file in files:
        splits[split_of(file.relative_to(root).parts[:-1])].append(file)
    given = sorted(splits.keys() - {""})
    if not given:
        return dict(splits)
    for name in SPLITS:
        if name not in splits:
            has = f"has {what} for {' and '.join(given)} but none for {name}"
            raise CohortError(f"{root}: {has}; add some, or put all into one folder to have them split by subject")
    return {name: splits[name] for name in SPLITS}


def items_of(root: Path, splits: Files, names: Names) -> list[Item]:
    """An item for every session, in the order of splits, subjects and sessions; its files in the order of slices."""
    items = []
    for split in SPLITS:
        sessions = defaultdict(list)
        for file in splits[split]:
            sessions[names[file].subject, names[file].session].append(file)
        for subject, session in sorted(sessions, key=lambda names: tuple(map(natural, names))):
            files = sorted(sessions[subject, session], key=lambda f: (names[f].slice_index, natural(f.name)))
            paths, indices = zip(*((str(f.relative_to(root)), names[f].slice_index) for f in files))
            items.append(Item(split, subject, paths, indices, session))
    return items


def centred(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W) to (size, size): zero-padded or cropped about the centre, so a pixel keeps its size in mm."""
    out = np.zeros((size, size), image.dtype)
    both = [min(length, size) for length in image.shape]
    source, target = (
        tuple(slice((n - b) // 2, (n - b) // 2 + b) for n, b in zip(shape, both)) for shape in (image.shape, out.shape)
    )
    out[target] = image[source]
    return out


def cut_note(brains: list[np.ndarray], size: int) -> list[str]:
    """A note where `centred` cuts off more than one per cent of brains, (H, W) masks."""
    there = sum(map(np.count_nonzero, brains))
    kept = sum(np.count_nonzero(centred(brain, size)) for brain in brains)
    note = f"{size} pixels cut brains; a larger --size or coarser pixels (--mm) keep them whole"
    return [note] if kept < 0.99 * there else []
