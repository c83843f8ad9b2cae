"""The evaluation in pictures: detectability, distances, anatomy by slice index, nearest neighbours, failures, anomalies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from oasis_lib.figures.style import BAD, COLOURS, MODEL, REAL, new_figure, nothing, show_image


def reconstruction(summary: pd.DataFrame) -> Figure:
    """SSIM of reconstructions, full frame and inside the brain, with intervals over subjects."""
    figure, (axes,) = new_figure(
        1, 2, width=9, height=0.4 * len(summary) + 1.8, sharey=True, title="SSIM of reconstructed test slices"
    )
    for axis, column, where in zip(axes, ("ssim", "ssim_brain"), ("full frame", "inside the brain")):
        colours = [MODEL if "VQ" in name else BAD for name in summary.index]
        low, high = (np.abs(summary[column] - summary[f"{column}_{end}"]) for end in ("low", "high"))
        axis.barh(summary.index, summary[column], xerr=np.stack([low, high]), color=colours, height=0.6)
        axis.set(xlabel=f"SSIM, {where}", xlim=(0, 1))
        axis.invert_yaxis()
    return figure


def detectability(table: pd.DataFrame, generators: Sequence[str], unit: str = "mm") -> Figure:
    """AUC of detectors over pixel size: a line a set with 95 % intervals, real-vs-real as a band."""
    figure, ((axis,),) = new_figure(1, 1, width=9, height=4.2, title="Area under the ROC curve of detectors, held-out subjects")
    first, sets = table["set"].iloc[0], dict(list(table.groupby("set", sort=False)))
    for number, (name, rows) in enumerate(sets.items()):
        x = rows["scale"].to_numpy(float)
        if name == first:
            axis.fill_between(x, rows["low"], rows["high"], color=REAL, alpha=0.2, lw=0, label=f"{name}, 95 % interval")
            axis.plot(x, rows["auc"], color=REAL, lw=1)
            continue
        x = x * 1.015 ** (number - len(sets) / 2)  # side by side
        reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["auc"].to_numpy())
        style = {"marker": "o", "lw": 2} if name in generators else {"marker": "s", "lw": 0.8, "ls": "--", "ms": 4}
        axis.errorbar(
            x, rows["auc"], yerr=reach, color=COLOURS[1 + (number - 1) % (len(COLOURS) - 1)], capsize=2, label=name, **style
        )
    axis.axhline(0.5, color=BAD, lw=0.8, ls=":")
    ticks = sorted(table["scale"].unique())
    axis.set(
        xscale="log", xlabel=f"size of a pixel ({unit}); coarser to the right", ylabel="AUC (0.5 is chance)", ylim=(0.25, 1.03)
    )
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def patches(found: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """The patches that detectors are surest about: a block a pixel size, rows real and generated."""
    blocks = [(f"{name},\n{size}", images) for size, sides in found.items() for name, images in sides.items()]
    columns = max(len(images) for _, images in blocks)
    figure, axes = new_figure(len(blocks), columns, width=1.1 * columns + 1.6, height=1.15 * len(blocks) + 0.5)
    for line, (name, images) in zip(axes, blocks):
        for axis in line:
            axis.set_axis_off()
        for axis, image in zip(line, images):
            axis.set_axis_on()
            show_image(axis, image, high=255)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle("Patches the detectors are surest about, held-out slices")
    return figure


def ladder(table: pd.DataFrame, generators: Sequence[str]) -> Figure:
    """Every set on four measures with 95 % intervals, real-vs-real's value as a line."""
    panels = {
        "frechet": ("Fréchet distance (lower is better)", "log"),
        "precision": ("precision (higher)", "linear"),
        "recall": ("recall (higher)", "linear"),
        "tissue_distance": ("tissue distance (lower)", "linear"),
    }
    figure, (axes,) = new_figure(1, 4, width=13, height=0.32 * len(table) + 1.6, sharey=True)
    colours = [REAL if i == 0 else MODEL if name in generators else BAD for i, name in enumerate(table.index)]
    for axis, (column, (label, scale)) in zip(axes, panels.items()):
        values = table[column].astype(float)
        low, high = (table[f"{column}_{end}"].astype(float) for end in ("low", "high"))
        axis.hlines(table.index, low.clip(lower=values / 10 if scale == "log" else 0), high, color="0.75", zorder=0)
        axis.scatter(values, table.index, color=colours, s=36)
        axis.axvline(float(values.iloc[0]), color=REAL, lw=1, ls=":")
        axis.set(xlabel=label, xscale=scale)
    axes[0].invert_yaxis()
    figure.suptitle("Real subjects (blue), generators (orange), references (grey); the dotted line is real-vs-real")
    return figure


def areas_by_slice_index(areas: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> Figure:
    """Tissue areas by slice index: the middle four fifths of real subjects as a band, the mean of each generator as a line."""
    figure, (axes,) = new_figure(
        1, len(names), width=3.1 * len(names), height=3.0, title="Tissue in percent of the frame, by slice index"
    )
    for number, (axis, name) in enumerate(zip(axes, names)):
        for (who, (values, slice_indices)), colour in zip(areas.items(), COLOURS):
            shown = np.unique(slice_indices)
            mean = [values[slice_indices == slice_index, number].mean() for slice_index in shown]
            axis.plot(shown, mean, color=colour, label=who, lw=2 if who == next(iter(areas)) else 1.2)
        values, slice_indices = next(iter(areas.values()))
        shown = np.unique(slice_indices)
        band = np.array([np.quantile(values[slice_indices == slice_index, number], [0.1, 0.9]) for slice_index in shown]).T
        axis.fill_between(shown, *band, color=REAL, alpha=0.15, lw=0)
        axis.set(xlabel="slice index", title=name)
    axes[0].legend(fontsize=7)
    return figure


def pairs(samples: np.ndarray, train: np.ndarray, table: pd.DataFrame, title: str) -> Figure:
    """Samples, the training slice that is nearest to each, and what differs. 1 is the usual distance of a held-out subject."""
    count = len(table)
    figure, axes = new_figure(3, count, width=1.6 * count + 1, height=5.2, title=title)
    for column, (relative, sample, real) in enumerate(zip(table["relative"], samples, train)):
        show_image(axes[0, column], sample, f"distance {relative:.2f}", high=255)
        show_image(axes[1, column], real, high=255)
        show_image(axes[2, column], np.abs(sample.astype(float) - real.astype(float)), high=128, cmap="magma")
    for axis, name in zip(axes[:, 0], ("sample", "nearest\ntraining\nslice", "difference")):
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def anomalies(shown: dict, table: pd.DataFrame, count: int = 5) -> Figure:
    """Slices with a planted lesion (outlined), and what each map makes of the brain: air is left out, as it is of the scores."""
    if not shown:
        return nothing("This cohort has no planted lesions to test anomaly maps on.")
    size = shown["truth"].sum((1, 2))  # of each subject the slice that shows most of the lesion
    order = [max(np.flatnonzero(shown["subjects"] == who), key=lambda row: size[row]) for who in np.unique(shown["subjects"])][
        :count
    ]
    figure, axes = new_figure(
        len(shown["maps"]) + 1, len(order), width=1.7 * len(order) + 1.8, height=1.6 * (len(shown["maps"]) + 1) + 0.5
    )
    for column, row in enumerate(order):
        show_image(axes[0, column], shown["images"][row], high=255)
        for line, scores in zip(axes[1:], shown["maps"].values()):
            scored = scores[shown["inside"]]  # surprise at the edge of the head reaches into the air, where nobody scores it
            low, high = np.quantile(scored, [0.2, 0.998])
            show_image(line[column], np.where(shown["inside"][row], scores[row], low), low=low, high=high, cmap="magma")
        for line in axes[:, column]:
            line.contour(shown["truth"][row], levels=[0.5], colors=[COLOURS[5]], linewidths=0.8)
    for axis, name in zip(axes[:, 0], ["slice", *shown["maps"]]):
        area = f"\nROC {table.loc[name, 'roc_area']:.2f}" if name in table.index else ""
        axis.set_ylabel(name.replace(", ", "\n").replace(" ", "\n") + area, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle("Planted lesions (outlined), and where each map sees something odd")
    return figure
