"""Numbers that describe a cohort: heads side by side, the mean head, and how grey values are spread."""

from __future__ import annotations

import numpy as np
import pandas as pd

from oasis_lib.cohort.store import Cohort, Split

MOST = 120  # people that a mean is taken over: more change nothing that is seen


def some_levels(cohort: Cohort, count: int) -> list[int]:
    """Evenly spaced levels, bottom to top; [-1] where a cohort knows none."""
    return np.linspace(0, cohort.levels - 1, min(count, cohort.levels)).round().astype(int).tolist() if cohort.levels else [-1]


def heads(split: Split, people: int, levels: list[int]) -> tuple[np.ndarray, list[str]]:
    """(people, levels, H, W) and whose they are; a level that somebody lacks is taken from the nearest."""
    chosen = _spread(list(dict.fromkeys(split.subjects)), people)
    rows = [[_row(split, subject, level) for level in levels] for subject in chosen]
    return np.stack([split.images[row] for row in rows]), chosen


def mean_and_spread(split: Split, levels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(levels, H, W) in [0, 1]: the mean head and the standard deviation between people, pixel by pixel."""
    means, spreads = [], []
    for level in levels:
        images = split.images[_spread(np.flatnonzero(split.levels == level).tolist(), MOST)].astype(np.float32) / 255
        means.append(images.mean(0))
        spreads.append(images.std(0))
    return np.stack(means), np.stack(spreads)


def histograms(split: Split, people: int = 40, bins: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Grey values inside the head, a density a person: (bins + 1,) edges and (people, bins)."""
    edges = np.linspace(1, 256, bins + 1)
    found = []
    for subject in _spread(list(dict.fromkeys(split.subjects)), people):
        values = split.images[np.flatnonzero(split.subjects == subject)]
        found.append(np.histogram(values[values > 0], edges, density=True)[0])
    return edges, np.stack(found)


def tissue_greys(split: Split, bins: int = 64) -> dict[str, np.ndarray]:
    """How the grey values of fluid, grey and white matter are spread; empty where tissue is not known."""
    if split.tissue is None:
        return {}
    rows, edges = _spread(list(range(len(split))), 400), np.linspace(1, 256, bins + 1)
    images, tissue = split.images[rows], split.tissue[rows]
    counts = {name: np.histogram(images[tissue == k], edges)[0] for k, name in enumerate(("CSF", "grey matter", "white matter"), 1)}
    total = sum(c.sum() for c in counts.values()) * np.diff(edges)
    return {name: count / total for name, count in counts.items()}


def shared_people(cohort: Cohort) -> list[str]:
    """People in more than one of train, validate and test: there must be none."""
    where = pd.concat([s.table[["subject"]].assign(split=n) for n, s in cohort.splits.items() if n != "lesion"])
    count = where.drop_duplicates().groupby("subject").size()
    return count[count > 1].index.tolist()


def _row(split: Split, subject: str, level: int) -> int:
    mine = np.flatnonzero(split.subjects == subject)
    return int(mine[np.abs(split.levels[mine] - level).argmin()])


def _spread(values: list, count: int) -> list:
    """At most `count` of them, evenly spaced."""
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int))]
