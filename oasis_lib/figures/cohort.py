"""Charts of a cohort: subjects and slices by split, intensities, tissue maps, and scores that need no model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from oasis_lib.figures.grid import Row, image_grid
from oasis_lib.figures.style import BAD, COLOURS, MODEL, REAL, new_figure

SPLIT_COLOURS = dict(zip(("train", "validate", "test", "lesion"), COLOURS))
TISSUES = {"background": "#000000", "CSF": COLOURS[0], "grey matter": COLOURS[2], "white matter": COLOURS[1]}


def people(table: pd.DataFrame) -> Figure:
    """Age, CDR (or group) and number of subjects by split; a panel says so where the source tells nothing."""
    figure, ((ages, ratings, last),) = new_figure(1, 3, height=3.0, title="Subjects by split")
    splits = [s for s in SPLIT_COLOURS if s in set(table["split"])]
    colours = [SPLIT_COLOURS[s] for s in splits]
    if "age" in table:
        ages.hist([table.loc[table["split"] == s, "age"].dropna() for s in splits], 12, stacked=True, color=colours)
    _named(ages, "age (years)", "subjects", "age" in table)
    column = next((c for c in ("cdr", "group") if c in table), None)
    if column:
        _stacked(ratings, table, column)
    _named(ratings, "clinical dementia rating" if column == "cdr" else "group", "subjects", column is not None)
    if {"atrophy", "age", "cdr"} <= set(table):
        for colour, (rating, group) in zip(COLOURS, table.groupby("cdr")):
            last.scatter(group["age"], group["atrophy"], s=14, color=colour, label=f"CDR {rating:g}")
        last.legend(fontsize=8)
        _named(last, "age (years)", "simulated atrophy", True)
    else:
        last.bar_label(last.bar(splits, table["split"].value_counts().reindex(splits), color=colours))
        _named(last, "split", "subjects", True)
    handles = [Patch(color=SPLIT_COLOURS[s], label=f"{s}: {(table['split'] == s).sum()}") for s in splits]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def slices(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Slices at every index in each split: a gap would be an index that training never sees, or that no test covers."""
    figure, ((levels, whole),) = new_figure(1, 2, height=2.8, width_ratios=[3, 1], title="Slices by split")
    table = pd.concat([t.assign(split=name) for name, t in tables.items()])
    _stacked(levels, table, "level")
    known = table["level"].min() >= 0
    levels.set_xlabel("slice index (0-based, inferior to superior)" if known else "slice index (not known)")
    levels.set_ylabel("slices")
    drawn = whole.barh(list(tables), [len(t) for t in tables.values()], color=[SPLIT_COLOURS[n] for n in tables])
    whole.bar_label(drawn, fmt="{:,.0f}", padding=3)
    whole.set(xlabel="slices", xlim=(0, 1.4 * max(map(len, tables.values()))))
    whole.invert_yaxis()
    return figure


def intensities(edges: np.ndarray, densities: np.ndarray, tissues: Mapping[str, np.ndarray]) -> Figure:
    """Histograms inside the brain: a thin line a subject, and by tissue where tissue is known."""
    figure, ((left, right),) = new_figure(1, 2, height=3.0, title="Intensities inside the brain")
    middle = (edges[1:] + edges[:-1]) / 2
    left.plot(middle, densities.T, color=BAD, lw=0.5, alpha=0.5)
    left.plot(middle, densities.mean(0), color=REAL, lw=2, label=f"mean of {len(densities)} subjects")
    left.legend(fontsize=8)
    _named(left, "intensity (0 to 255)", "density", True)
    for name, density in tissues.items():
        right.fill_between(middle, density, color=TISSUES.get(name, BAD), alpha=0.6, label=name)
    _named(right, "intensity (0 to 255)", "density, by tissue", bool(tissues))
    if tissues:
        right.legend(fontsize=8)
    return figure


def truth(images: np.ndarray, tissue: np.ndarray | None, lesion: np.ndarray | None, names: list[str]) -> Figure:
    """Slices, planted lesions outlined, and tissue maps: the ground truth of synthetic subjects."""
    rows = {"slice": Row(images)}
    if lesion is not None:
        rows["lesion outlined"] = Row(images)
    if tissue is not None:
        rows["tissue"] = Row([t / 3 for t in tissue], cmap=ListedColormap(list(TISSUES.values())))
    figure = image_grid(rows, names, "Ground truth" if len(rows) > 1 else "Slices (no ground truth in this cohort)")
    for axis, mask in zip(figure.axes[len(images) :], [] if lesion is None else lesion):
        if mask.any():
            axis.contour(mask, [0.5], colors=MODEL, linewidths=1.5)
    if tissue is not None:
        handles = [Patch(facecolor=colour, edgecolor="black", label=name) for name, colour in TISSUES.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def baselines(table: pd.DataFrame) -> Figure:
    """SSIM of trivial baselines over the full frame and inside the brain, with 95 % intervals over subjects."""
    figure, ((axis,),) = new_figure(height=2.8, title="SSIM of images that no model made")
    place = np.arange(len(table))
    for shift, key, label, colour in ((-0.2, "ssim", "full frame", BAD), (0.2, "ssim_brain", "inside the brain", REAL)):
        reach = np.abs(table[[f"{key}_low", f"{key}_high"]].to_numpy(float).T - table[key].to_numpy(float))
        bars = axis.bar(place + shift, table[key].astype(float), 0.38, yerr=reach, color=colour, label=label, capsize=3)
        axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axis.set(xticks=place, xticklabels=table.index, ylabel="SSIM (1: identical)", ylim=(min(0, axis.get_ylim()[0]), 1))
    axis.legend(fontsize=8)
    return figure


def _stacked(axis: Axes, table: pd.DataFrame, column: str) -> None:
    """Rows for each value of a column, one colour a split."""
    counts = table.groupby([column, "split"]).size().unstack(fill_value=0)
    bottom, places = np.zeros(len(counts)), [f"{v:g}" if isinstance(v, float) else v for v in counts.index]
    for split in [s for s in SPLIT_COLOURS if s in counts]:
        axis.bar(places, counts[split], bottom=bottom, color=SPLIT_COLOURS[split])
        bottom = bottom + counts[split].to_numpy()


def _named(axis: Axes, x: str, y: str, known: bool) -> None:
    axis.set(xlabel=x, ylabel=y)
    if not known:
        axis.text(0.5, 0.5, "not known\nof this cohort", ha="center", va="center", transform=axis.transAxes, color=BAD)
        axis.set(xticks=[], yticks=[])
