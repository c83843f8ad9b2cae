"""The evaluation in pictures: detectability, distances, anatomy by slice index, nearest neighbours, failures, anomalies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from oasis_lib.figures.grid import Row, image_grid
from oasis_lib.figures.style import BAD, COLOURS, MODEL, REAL, new_figure, nothing

NAMES = {"csf": "CSF", "grey": "grey matter", "white": "white matter"}


def reconstruction(summary: pd.DataFrame) -> Figure:
    """SSIM of reconstructions, full frame and inside the brain, with intervals over subjects."""
    figure, (axes,) = new_figure(
        1, 2, width=9, height=0.4 * len(summary) + 1.8, sharey=True, title="SSIM of reconstructed test slices"
    )
    for axis, column, where in zip(axes, ("ssim", "ssim_brain"), ("full frame", "inside the brain")):
        colours = [MODEL if "decoder" in name else BAD for name in summary.index]
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
    rows = {f"{name}, {size}": images for size, sides in found.items() for name, images in sides.items()}
    return image_grid(rows, title="Patches the detectors are surest about, held-out slices", crop=False)


def ladder(table: pd.DataFrame, generators: Sequence[str]) -> Figure:
    """Every set on four measures with 95 % intervals, real-vs-real's value as a line."""
    panels = {
        "frechet": ("Fréchet distance\n(lower is better)", "log"),
        "precision": ("precision\n(higher is better)", "linear"),
        "recall": ("recall\n(higher is better)", "linear"),
        "tissue_distance": ("tissue distance\n(lower is better)", "linear"),
    }
    figure, (axes,) = new_figure(1, 4, width=9.5, height=0.3 * len(table) + 1.5, sharey=True)
    colours = [REAL if i == 0 else MODEL if name in generators else BAD for i, name in enumerate(table.index)]
    for axis, (column, (label, scale)) in zip(axes, panels.items()):
        values = table[column].astype(float)
        low, high = (table[f"{column}_{end}"].astype(float) for end in ("low", "high"))
        axis.hlines(table.index, low.clip(lower=values / 10 if scale == "log" else 0), high, color="0.7", lw=2.5, zorder=0)
        axis.scatter(values, table.index, color=colours, s=36)
        axis.axvline(float(values.iloc[0]), color=REAL, lw=1, ls=":")
        axis.set(xlabel=label, xscale=scale)
    axes[0].invert_yaxis()
    figure.suptitle("Real-vs-real (blue, dotted line), generators (orange), references (grey); bars: 95 % intervals", fontsize=10)
    return figure


def areas_by_slice_index(areas: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> Figure:
    """Tissue areas by slice index: the middle four fifths of real subjects as a band, the mean of each generator as a line.

    Real subjects decide the scale, so that one bad generator flattens no panel; what lies beyond is cut off.
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
        axis.set(title=NAMES.get(name, name), ylabel="% of the frame", ylim=(max(0, low.min() - room), high.max() + room))
    for axis in axes[-1]:
        axis.set(xlabel="slice index")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def pairs(samples: np.ndarray, train: np.ndarray, table: pd.DataFrame, title: str) -> Figure:
    """Samples, the training slice that is nearest to each, and what differs. 1 is the usual distance of a held-out subject."""
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
