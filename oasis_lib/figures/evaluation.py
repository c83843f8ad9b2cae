"""The evaluation in figures: detectability, distances, tissue areas, nearest neighbours, anomalies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from oasis_lib.figures.grid import Row, image_grid
from oasis_lib.figures.style import BAD, COLOURS, MODEL, REAL, new_figure, nothing

NAMES = {"csf": "CSF", "grey": "grey matter", "white": "white matter"}


def detectability(table: pd.DataFrame, generators: Sequence[str], unit: str = "mm") -> Figure:
    """AUC of detectors over pixel size: a line a set with 95 % intervals, real-vs-real as a band."""
    title = "Area under the ROC curve of detectors, held-out subjects"
    figure, ((axis,),) = new_figure(width=9, height=4.2, title=title)
    (first, real), *sets = table.groupby("set", sort=False)
    look = {"color": REAL, "alpha": 0.2, "lw": 0, "label": f"{first}, 95 % interval"}
    axis.fill_between(real["scale"], real["low"], real["high"], **look)
    axis.plot(real["scale"], real["auc"], color=REAL, lw=1)
    for number, (name, rows) in enumerate(sets):
        x = rows["scale"] * 1.015 ** (number - len(sets) / 2)  # side by side
        reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["auc"].to_numpy())
        style = {"marker": "o", "lw": 2} if name in generators else {"marker": "s", "lw": 0.8, "ls": "--", "ms": 4}
        colour = [*COLOURS[1:], BAD][number % len(COLOURS)]
        axis.errorbar(x, rows["auc"], yerr=reach, color=colour, capsize=2, label=name, **style)
    axis.axhline(0.5, color=BAD, lw=0.8, ls=":")
    ticks = sorted(table["scale"].unique())
    axis.set(xscale="log", xlabel=f"size of a pixel ({unit}); coarser to the right", ylabel="AUC (0.5 is chance)")
    axis.set_ylim(0.25, 1.03)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def ladder(table: pd.DataFrame, generators: Sequence[str]) -> Figure:
    """Every set on four measures with 95 % intervals, real-vs-real's value as a line."""
    panels = {"frechet": "Fréchet distance\n(lower is better)", "precision": "precision\n(higher is better)"}
    panels |= {"recall": "recall\n(higher is better)", "tissue_distance": "tissue distance\n(lower is better)"}
    figure, (axes,) = new_figure(1, 4, width=9.5, height=0.3 * len(table) + 1.5, sharey=True)
    colours = [REAL if i == 0 else MODEL if name in generators else BAD for i, name in enumerate(table.index)]
    for axis, (column, label) in zip(axes, panels.items()):
        scale, values = "log" if column == "frechet" else "linear", table[column].astype(float)
        low, high = (table[f"{column}_{end}"].astype(float) for end in ("low", "high"))
        low = low.clip(lower=values / 10 if scale == "log" else 0)
        axis.hlines(table.index, low, high, color="0.7", lw=2.5, zorder=0)
        axis.scatter(values, table.index, color=colours, s=36)
        axis.axvline(float(values.iloc[0]), color=REAL, lw=1, ls=":")
        axis.set(xlabel=label, xscale=scale)
    axes[0].invert_yaxis()
    title = "Real-vs-real (blue, dotted line), generators (orange), references (grey); bars: 95 % intervals"
    figure.suptitle(title, fontsize=10)
    return figure


def areas_by_slice_index(areas: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> Figure:
    """Tissue areas by slice index: four fifths of real subjects as a band, the mean of each generator as a line.

    Real subjects set the scale; what lies beyond is cut off.
    """
    title = "Tissue areas by slice index (lines that leave a panel are farther off)"
    figure, axes = new_figure(-(-len(names) // 2), 2, height=2.5 * -(-len(names) // 2) + 0.8, sharex=True, title=title)
    (real, slice_indices), *_ = areas.values()
    shown = np.unique(slice_indices)
    for number, (axis, name) in enumerate(zip(axes.ravel(), names)):
        low, high = np.array([np.quantile(real[slice_indices == at, number], [0.1, 0.9]) for at in shown]).T
        axis.fill_between(shown, low, high, color=REAL, alpha=0.2, lw=0, label=f"four fifths of {next(iter(areas))}")
        for width, (who, (values, of)), colour in zip((2.5, *[1.2] * len(areas)), areas.items(), COLOURS):
            mean = [values[of == at, number].mean() for at in np.unique(of)]
            axis.plot(np.unique(of), mean, color=colour, label=who, lw=width)
        room = 0.75 * max(high.max() - low.min(), 1e-3)
        axis.set(title=NAMES.get(name, name), ylabel="% of the frame")
        axis.set_ylim(max(0, low.min() - room), high.max() + room)
    for axis in axes[-1]:
        axis.set(xlabel="slice index")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def pairs(samples: np.ndarray, train: np.ndarray, table: pd.DataFrame, title: str) -> Figure:
    """Samples, the nearest training slice of each, and what differs; 1 is a held-out subject's usual distance."""
    change = np.abs(samples.astype(float) - train.astype(float)) / 255
    rows = {"sample": samples, "nearest training slice": train}
    rows["absolute difference"] = Row(change, cmap="magma", high=0.5, bar="of the range")
    return image_grid(rows, [f"distance {relative:.2f}" for relative in table["relative"]], title)


def anomalies(shown: dict, table: pd.DataFrame, count: int = 5) -> Figure:
    """Slices with a planted lesion (outlined), and each anomaly map inside the brain, where it is scored."""
    if not shown:
        return nothing("This cohort has no planted lesions to test anomaly maps on.")
    size = pd.Series(shown["truth"].sum((1, 2)))  # of each subject the slice that shows most of the lesion
    order = size.groupby(shown["subjects"]).idxmax().head(count).to_numpy()
    images, inside = shown["images"][order], shown["inside"][order]
    rows = {"slice": Row(images, [str(who) for who in shown["subjects"][order]])}
    for name, scores in shown["maps"].items():
        low, high = np.quantile(scores[shown["inside"]], [0.2, 0.998])
        area = f"\nAUC {table.loc[name, 'roc_area']:.2f}" if name in table.index else ""
        rows[name + area] = Row(np.where(inside, scores[order], low), cmap="magma", low=low, high=high)
    figure = image_grid(rows, title="Planted lesions (outlined), and anomaly maps (bright: anomalous)")
    for number, axis in enumerate(figure.axes[: len(rows) * len(order)]):
        axis.contour(shown["truth"][order[number % len(order)]], levels=[0.5], colors=[COLOURS[5]], linewidths=1)
    return figure
