"""What was understood of a source before anything long starts: which slices, whose, in which split, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd


class CohortError(ValueError):
    """A source that can't be taken as it is. One line: the path, what is wrong, what to do."""


@dataclass(frozen=True)
class Item:
    """What is read at one go: the slices of one person's session, bottom to top."""

    split: str
    subject: str
    files: tuple[str, ...]  # relative to the source; one for every slice, or one volume for all of them
    levels: tuple[int, ...]  # one a slice; -1 where not known
    session: str = ""


@dataclass
class Slices:
    """What reading an item gives. `kept` says which of its slices are there, `left_out` why others are not."""

    images: np.ndarray  # (n, H, W) uint8
    kept: list[int]
    tissue: np.ndarray | None = None
    lesion: np.ndarray | None = None
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """`read` must be picklable where `parallel` is set: it is then called in several processes."""

    items: list[Item]
    people: pd.DataFrame  # subject, split, and whatever is known of them
    read: Callable[[Item], Slices]
    info: dict[str, Any]  # source, synthetic, intensity, licence, mm ... : goes into cohort.json
    summary: list[str]  # lines that tell a person what was understood
    fingerprint: str  # changes when the source does
    tissue: tuple[str, ...] = ()  # the splits with tissue maps, and with planted lesions
    lesion: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    parallel: bool = False
    warm: Callable[[], Any] = lambda: None  # called once before processes are forked, so that they share what it loads


def centred(image: np.ndarray, size: int) -> np.ndarray:
    """Pad with zeros or crop, each way by itself, about the centre: a pixel keeps its millimetres and a head its shape."""
    out = np.zeros((size, size), image.dtype)
    source, target = [], []
    for length in image.shape:
        both = min(length, size)
        source.append(slice((length - both) // 2, (length - both) // 2 + both))
        target.append(slice((size - both) // 2, (size - both) // 2 + both))
    out[tuple(target)] = image[tuple(source)]
    return out


def cut_share(image: np.ndarray, size: int) -> float:
    """The share of the pixels above zero that `centred` would cut off."""
    total = np.count_nonzero(image)
    return 1 - np.count_nonzero(centred(image, size)) / total if total else 0.0


def refuse(bad: list[str], skip_bad: bool) -> None:
    """Stop at the first of what is wrong with a source's files, unless they are to be left out."""
    if bad and not skip_bad:
        raise CohortError(f"{bad[0]} ({len(bad):,} such files; skip_bad (--skip-bad) leaves them out)")


def examples(names: list[str], count: int = 3) -> str:
    """The first few of a list, for a message that must stay one line."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(str, names[:count])) + more
