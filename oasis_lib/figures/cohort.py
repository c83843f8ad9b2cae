"""Who is in a cohort, what their heads look like, and how much they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from oasis_lib.figures.style import BAD, COLOURS, SEQUENTIAL, new_figure, show_image

SPLIT_COLOURS = dict(zip(("train", "validate", "test", "lesion"), COLOURS))


def people(table: pd.DataFrame) -> Figure:
    """Ages and ratings by split, and what else there is to see; a panel says so where the source tells nothing."""
    figure, axes = new_figure(1, 3, width=10, height=3.2)
    splits = [s for s in SPLIT_COLOURS if s in set(table["split"])]
    colours = [SPLIT_COLOURS[s] for s in splits]
    ages, ratings, last = axes[0]
    if "age" in table:
        ages.hist([table.loc[table["split"] == s, "age"].dropna() for s in splits], 12, stacked=True, color=colours, label=splits)
    _named(ages, "age in years", "people", "Ages", "age" in table)
    column = next((c for c in ("cdr", "group") if c in table), None)
    if column:
        _stacked(ratings, table, column, splits)
    _named(ratings, column or "", "people", "Clinical rating" if column == "cdr" else "Group", column is not None)
    if "atrophy" in table and "age" in table:
        for colour, (rating, group) in zip(COLOURS, table.groupby("cdr")):
            last.scatter(group["age"], group["atrophy"], s=14, color=colour, label=f"cdr {rating:g}")
        last.legend()
        _named(last, "age in years", "simulated atrophy", "What age and disease do", True)
    else:
        counts = table["split"].value_counts().reindex(splits)
        last.bar(splits, counts, color=colours)
        _named(last, "", "people", "Splits", True)
    handles = [_patch(SPLIT_COLOURS[s], f"{s}: {(table['split'] == s).sum()}") for s in splits]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def slices(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Slices at every level in each split: a gap would be a level that a model never sees, or that is never tested."""
    figure, axes = new_figure(1, 2, width=9, height=3, width_ratios=[3, 1])
    levels, whole = axes[0]
    names, bottom = list(tables), 0
    lowest = min(t["level"].min() for t in tables.values())
    for name in names:
        count = tables[name]["level"].value_counts()
        reach = np.arange(lowest, max(t["level"].max() for t in tables.values()) + 1)
        height = count.reindex(reach, fill_value=0).to_numpy()
        levels.bar(reach, height, bottom=bottom, color=SPLIT_COLOURS[name], width=0.85)
        bottom = bottom + height
    levels.set(xlabel="level, bottom to top" if lowest >= 0 else "level (not known)", ylabel="slices", title="Slices at each level")
    shares = [len(tables[n]) for n in names]
    whole.barh(names, shares, color=[SPLIT_COLOURS[n] for n in names])
    whole.bar_label(whole.containers[0], labels=[f"{s:,}" for s in shares], padding=3)
    whole.set(xlabel="slices", title="Slices in each split", xlim=(0, 1.35 * max(shares)))
    whole.invert_yaxis()
    return figure


def head_grid(images: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """(rows, columns, H, W): people down, levels across."""
    count, across = images.shape[:2]
    figure, axes = new_figure(count, across, width=max(7.5, 1.35 * across), height=1.5 * count + 0.3)
    for r in range(count):
        for c in range(across):
            show_image(axes[r, c], images[r, c] / 255, columns[c] if r == 0 else "")
        axes[r, 0].set_ylabel(rows[r], fontsize=8)
    return figure


def contact_sheet(images: np.ndarray, most: int = 10) -> Figure:
    """Many people at one level, without names."""
    across = min(most, len(images))
    down = -(-len(images) // across)
    figure, axes = new_figure(down, across, width=10, height=1.1 * down + 0.3)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, image in zip(axes.ravel(), images):
        axis.imshow(image, vmin=0, vmax=255)
    return figure


def greys(edges: np.ndarray, densities: np.ndarray, tissues: Mapping[str, np.ndarray]) -> Figure:
    """Grey values inside the head: a thin line a person, and the tissues that make them up where these are known."""
    figure, axes = new_figure(1, 2, width=9, height=3.2)
    middle = (edges[1:] + edges[:-1]) / 2
    left, right = axes[0]
    left.plot(middle, densities.T, color=BAD, lw=0.5, alpha=0.5)
    left.plot(middle, densities.mean(0), color=COLOURS[0], lw=2, label="mean")
    left.legend()
    left.set(title=f"{len(densities)} people", xlabel="grey value", ylabel="density inside the head")
    for (name, density), colour in zip(tissues.items(), COLOURS[2:]):
        right.fill_between(middle, density, color=colour, alpha=0.6, label=name)
    if tissues:
        right.legend()
    _named(right, "grey value", "density inside the head", "By tissue", bool(tissues))
    return figure


def mean_head(means: np.ndarray, spreads: np.ndarray, names: Sequence[str]) -> Figure:
    """The mean head, and where people differ from it."""
    figure, axes = new_figure(2, len(means), width=max(7.5, 1.7 * len(means) + 0.8), height=4.2)
    for column, (mean, spread) in enumerate(zip(means, spreads)):
        show_image(axes[0, column], mean, names[column])
        shown = show_image(axes[1, column], spread, high=float(spreads.max()), cmap=SEQUENTIAL)
    axes[0, 0].set_ylabel("mean")
    axes[1, 0].set_ylabel("spread")
    figure.colorbar(shown, ax=axes[1, :], label="standard deviation", shrink=0.9)
    return figure


def truth(images: np.ndarray, tissue: np.ndarray | None, lesion: np.ndarray | None) -> Figure:
    """Slices over their tissue maps and planted lesions: what is known of synthetic people and seldom of real ones."""
    figure, axes = new_figure(2, len(images), width=max(7.5, 1.6 * len(images)), height=4)
    for column, image in enumerate(images):
        show_image(axes[0, column], image / 255)
        if lesion is not None and lesion[column].any():
            axes[0, column].contour(lesion[column], [0.5], colors=COLOURS[3], linewidths=1)
        if tissue is not None:
            show_image(axes[1, column], tissue[column] / 3, cmap="cividis")
        else:
            _named(axes[1, column], "", "", "", False)
    axes[0, 0].set_ylabel("image")
    axes[1, 0].set_ylabel("tissue")
    return figure


def baselines(table: pd.DataFrame) -> Figure:
    """SSIM of what no model made, over the full frame and inside the brain, with intervals over people."""
    figure, axes = new_figure(1, 1, width=8, height=3)
    place, axis = np.arange(len(table)), axes[0, 0]
    for shift, key, label, colour in ((-0.2, "ssim", "full frame", BAD), (0.2, "ssim_brain", "inside the brain", COLOURS[0])):
        reach = np.abs(table[[f"{key}_low", f"{key}_high"]].to_numpy(float).T - table[key].to_numpy(float))
        bars = axis.bar(place + shift, table[key].astype(float), 0.38, yerr=reach, color=colour, label=label, capsize=3)
        axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axis.set(xticks=place, xticklabels=table.index, ylabel="SSIM", ylim=(min(0, axis.get_ylim()[0]), 1))
    axis.legend()
    return figure


def _stacked(axis, table: pd.DataFrame, column: str, splits: Sequence[str]) -> None:
    values = sorted(table[column].dropna().unique())
    bottom = np.zeros(len(values))
    for split in splits:
        height = table.loc[table["split"] == split, column].value_counts().reindex(values, fill_value=0).to_numpy()
        axis.bar([f"{v:g}" if isinstance(v, float) else str(v) for v in values], height, bottom=bottom, color=SPLIT_COLOURS[split])
        bottom += height


def _named(axis, x: str, y: str, title: str, known: bool) -> None:
    axis.set(xlabel=x, ylabel=y, title=title)
    if not known:
        axis.text(0.5, 0.5, "not known\nof this cohort", ha="center", va="center", transform=axis.transAxes, color=BAD)
        axis.set(xticks=[], yticks=[])


def _patch(colour: str, label: str):
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)
