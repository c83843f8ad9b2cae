"""A cohort in figures: its subjects by split, and the ground truth of synthetic ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from oasis_lib.cohort import SPLITS
from oasis_lib.figures.grid import Row, image_grid
from oasis_lib.figures.style import COLOURS, MODEL, new_figure

TISSUES = {"background": "#000000", "CSF": COLOURS[0], "grey matter": COLOURS[2], "white matter": COLOURS[1]}


def subjects(table: pd.DataFrame) -> Figure:
    """Age, CDR (or group) and number of subjects by split; a panel says so where the source tells nothing."""
    figure, ((ages, cdrs, last),) = new_figure(1, 3, height=3.0, title="Subjects by split")
    table = table.sort_values("split", key=lambda split: split.map(SPLITS.index), kind="stable")
    column = next((name for name in ("cdr", "group") if name in table), "")
    stacked = {"stacked": True, "ylabel": "subjects"}
    if "age" in table:
        by_split = pd.DataFrame({name: part["age"] for name, part in table.groupby("split", sort=False)})
        by_split.plot.hist(bins=12, ax=ages, xlabel="age (years)", **stacked)
        ages.legend(fontsize=8, loc="upper left")
        ages.set_ylim(0, 1.5 * ages.get_ylim()[1])  # room for it
    if column:
        label = "clinical dementia rating" if column == "cdr" else "group"
        counts = pd.crosstab(table[column], table["split"])[table["split"].unique()]
        counts.plot.bar(ax=cdrs, rot=0, legend=False, xlabel=label, **stacked)
    if {"atrophy", "age", "cdr"} <= set(table):
        for colour, (cdr, group) in zip(COLOURS, table.groupby("cdr")):
            last.scatter(group["age"], group["atrophy"], s=14, color=colour, label=f"CDR {cdr:g}")
        last.legend(fontsize=8)
        last.set(xlabel="age (years)", ylabel="simulated atrophy")
    else:
        last.bar_label(last.bar(table["split"].unique(), table["split"].value_counts(sort=False)))
        last.set(xlabel="split", ylabel="subjects")
    for axis, known in ((ages, "age" in table), (cdrs, column)):
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        if not known:
            axis.text(0.5, 0.5, "not known\nof this cohort", ha="center", va="center", transform=axis.transAxes)
            axis.set_axis_off()
    return figure


def truth(images: np.ndarray, tissue: np.ndarray | None, lesion: np.ndarray | None, names: list[str]) -> Figure:
    """Slices, planted lesions outlined, and tissue maps: the ground truth of synthetic subjects."""
    rows = {"slice" if lesion is None else "slice, lesion outlined": Row(images)}
    if tissue is not None:
        rows["tissue"] = Row(tissue, cmap=ListedColormap(list(TISSUES.values())), high=3)
    known = lesion is not None or tissue is not None
    figure = image_grid(rows, names, "Ground truth" if known else "Slices (no ground truth in this cohort)")
    for axis, mask in zip(figure.axes, [] if lesion is None else lesion):
        if mask.any():
            axis.contour(mask, [0.5], colors=MODEL, linewidths=1.5)
    if tissue is not None:
        handles = [Patch(facecolor=colour, edgecolor="black", label=name) for name, colour in TISSUES.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    return figure
