"""What a VQ-VAE gives back: the same slices before and after, where it errs, and for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from oasis_lib.figures.style import BAD, COLOURS, DIVERGING, MODEL, REAL, SEQUENTIAL, new_figure, show_image

ROW = 1.75  # inches a row of heads


def triples(images: np.ndarray, codes: np.ndarray, decoded: np.ndarray, shades: np.ndarray, names: Sequence[str]) -> Figure:
    """Input, its code map, and the image decoded from it: a column a slice. `shades` colours an entry; numbers have no order."""
    columns = len(images)
    figure, axes = new_figure(3, columns, width=1.65 * columns, height=3 * ROW)
    for column in range(columns):
        show_image(axes[0, column], images[column], names[column])
        show_image(axes[1, column], shades[codes[column]], cmap=SEQUENTIAL)
        show_image(axes[2, column], decoded[column])
    _row_names(axes[:, 0], ("input", f"codes, {codes.shape[1]} x {codes.shape[2]}", "decoded"))
    return figure


def pairs(images: np.ndarray, decoded: np.ndarray, names: Sequence[str]) -> Figure:
    """Before and after, one above the other."""
    columns = len(images)
    figure, axes = new_figure(2, columns, width=1.65 * columns, height=2 * ROW + 0.3)
    for column in range(columns):
        show_image(axes[0, column], images[column], names[column])
        show_image(axes[1, column], decoded[column])
    _row_names(axes[:, 0], ("input", "decoded"))
    return figure


def error_maps(images: np.ndarray, decoded: np.ndarray, maps: np.ndarray, names: Sequence[str]) -> Figure:
    """Where it errs: the signed difference in grey values, and SSIM pixel by pixel."""
    columns = len(images)
    figure, axes = new_figure(4, columns, width=1.65 * columns + 0.8, height=4 * ROW)
    difference = decoded - images
    reach = max(float(np.quantile(np.abs(difference), 0.995)), 1e-3)
    for column in range(columns):
        show_image(axes[0, column], images[column], names[column])
        show_image(axes[1, column], decoded[column])
        signed = show_image(axes[2, column], difference[column], low=-reach, high=reach, cmap=DIVERGING)
        local = show_image(axes[3, column], maps[column], cmap=SEQUENTIAL)
    _row_names(axes[:, 0], ("input", "decoded", "difference", "SSIM"))
    figure.colorbar(signed, ax=axes[2, :], label="decoded - input", shrink=0.9)
    figure.colorbar(local, ax=axes[3, :], label="SSIM", shrink=0.9)
    return figure


def progress(steps: Sequence[int], strips: np.ndarray, targets: np.ndarray, final: np.ndarray | None = None) -> Figure:
    """The same people (rows) as training goes on (columns): strips (S, P, H, W), targets and final (P, H, W)."""
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 6)).round().astype(int))
    heads = [("before" if steps[i] == 0 else f"step {steps[i]}", strips[i]) for i in chosen]
    heads += [("kept", final)] if final is not None else []
    heads.append(("input", targets))
    figure, axes = new_figure(len(targets), len(heads), width=1.2 * len(heads), height=1.35 * len(targets) + 0.3)
    for column, (name, images) in enumerate(heads):
        for row, image in enumerate(images):
            show_image(axes[row, column], image, name if row == 0 else "")
    return figure


def probes(names: Sequence[str], shown: Mapping[str, np.ndarray], shades: np.ndarray) -> Figure:
    """Odd inputs: what is put in, its codes, what comes out, and what was lost."""
    figure, axes = new_figure(len(names), 4, width=7.2, height=ROW * len(names) + 0.3)
    for row in range(len(names)):
        image, decoded = shown["images"][row], shown["decoded"][row]
        show_image(axes[row, 0], image, "input" if row == 0 else "")
        show_image(axes[row, 1], shades[shown["codes"][row]], "codes" if row == 0 else "", cmap=SEQUENTIAL)
        show_image(axes[row, 2], decoded, "decoded" if row == 0 else "")
        difference = show_image(
            axes[row, 3], decoded - image, "decoded - input" if row == 0 else "", low=-1, high=1, cmap=DIVERGING
        )
    _row_names(axes[:, 0], names)
    figure.colorbar(difference, ax=axes[:, 3], shrink=0.9)
    return figure


def people(
    table: pd.DataFrame, baselines: Mapping[str, float], key: str = "ssim_brain", label: str = "SSIM in the brain"
) -> Figure:
    """A column of dots for each person, lowest mean first; the best and worst slice named; what no model gets as lines."""
    figure, axes = new_figure(1, 1, width=8.5, height=3.8)
    axis, means = axes[0, 0], table.groupby("subject")[key].mean().sort_values()
    place = {subject: i for i, subject in enumerate(means.index)}
    across = table["subject"].map(place) + np.random.default_rng(0).uniform(-0.25, 0.25, len(table))
    axis.scatter(across, table[key], s=9, alpha=0.5, color=REAL, linewidth=0, label="a slice")
    axis.scatter(range(len(means)), means, s=60, marker="_", color="black", linewidth=2, label="a person's mean")
    for name, row, colour in (("best", table[key].idxmax(), COLOURS[2]), ("worst", table[key].idxmin(), COLOURS[3])):
        subject, level = table.loc[row, "subject"], table.loc[row, "level"]
        about = f"{name}: {subject}, level {level}, {table.loc[row, key]:.3f}"
        axis.scatter(across[row], table.loc[row, key], s=70, facecolor="none", edgecolor=colour, linewidth=1.8, label=about)
    for (name, value), style in zip(baselines.items(), ("-", "--", ":")):
        axis.axhline(value, color=BAD, linestyle=style, linewidth=1, label=f"{name}, {value:.3f}")
    axis.set(ylabel=label, xlabel="test people, lowest mean first", xlim=(-0.7, len(means) - 0.3), ylim=(None, 1.01))
    axis.set_xticks(range(len(means)), means.index if len(means) <= 20 else [""] * len(means), rotation=90, fontsize=7)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def rate(learned: pd.DataFrame, codecs: pd.DataFrame, main: Mapping[str, float] | None = None) -> Figure:
    """SSIM over bytes an image, full frame and brain: a line a grid, a line a codec, a star for the run's own model."""
    figure, axes = new_figure(1, 2, width=9.5, height=4.0)
    colours = dict(zip(learned["method"].unique(), COLOURS))
    for axis, key, title in zip(axes[0], ("ssim", "ssim_brain"), ("full frame", "in the brain")):
        for method, rows in learned.groupby("method", sort=False):
            rows = rows.sort_values("bytes")
            axis.plot(rows["bytes"], rows[key], "o-", color=colours[method], label=method)
            for place, (_, row) in enumerate(rows.iterrows()):
                where = {"xytext": (0, -11 if place % 2 == 0 else 5), "textcoords": "offset points", "ha": "center", "fontsize": 7}
                axis.annotate(f"{row['entries']:.0f}", (row["bytes"], row[key]), **where)
        for (method, rows), style in zip(codecs.groupby("method", sort=False), ("--", ":", "-.")):
            rows = rows.sort_values("bytes")
            axis.plot(rows["bytes"], rows[key], style, marker=".", color=BAD, label=method)
        if main:
            name = f"this run's model ({main['method']}, {main['entries']} entries)"
            colour = colours.get(main["method"], MODEL)
            axis.scatter(main["bytes"], main[key], marker="*", s=160, color=colour, edgecolor="black", zorder=3, label=name)
        axis.set(xscale="log", xlabel="bytes an image, entropy coded", ylabel="SSIM", title=title)
        axis.xaxis.set_major_formatter("{x:,g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.grid(alpha=0.2)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def arrows(table: pd.DataFrame, latents: np.ndarray, entries: np.ndarray, codes: np.ndarray) -> Figure:
    """Which term moves which part (gradient lengths), and the two pulls in the plane of the codebook.

    `latents` (N, 2) and `entries` (K, 2) lie in one plane; `codes` (N,) says which entry each latent took.
    """
    figure, axes = new_figure(1, 2, width=9.5, height=3.8, width_ratios=(1, 1.25))
    _lengths(axes[0, 0], table)
    _pulls(axes[0, 1], latents, entries, codes)
    return figure


def _lengths(axis: Axes, table: pd.DataFrame) -> None:
    values = table.to_numpy(float)
    share = values / values.max(axis=1, keepdims=True).clip(min=1e-30)
    axis.imshow(np.where(values > 0, 0.25 + 0.75 * share, 0.0), cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
    for row, column in np.ndindex(*values.shape):
        text = f"{values[row, column]:.2g}" if values[row, column] else "nothing"
        axis.text(column, row, text, ha="center", va="center", color="black" if values[row, column] else BAD)
    axis.set_xticks(range(values.shape[1]), table.columns)
    axis.set_yticks(range(values.shape[0]), table.index)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_title("length of the gradient that reaches ...")


def _pulls(axis: Axes, latents: np.ndarray, entries: np.ndarray, codes: np.ndarray) -> None:
    target = entries[codes]
    axis.scatter(*entries.T, s=14, color="lightgrey", zorder=1)
    axis.scatter(*latents.T, s=10, color=REAL, zorder=2)
    arrow = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.003}
    axis.quiver(*latents.T, *(0.6 * (target - latents)).T, color=REAL, alpha=0.7, **arrow)
    used = np.unique(codes)
    means = np.stack([latents[codes == code].mean(axis=0) for code in used])
    axis.scatter(*entries[used].T, s=45, marker="s", color=COLOURS[3], zorder=3)
    axis.quiver(*entries[used].T, *(means - entries[used]).T, color=COLOURS[3], **{**arrow, "width": 0.006}, zorder=4)
    seen = np.concatenate([latents, entries[used]])
    low, high = seen.min(axis=0), seen.max(axis=0)
    room = 0.08 * (high - low + 1e-9)
    axis.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))
    axis.set(xticks=[], yticks=[], title="the two pulls, in the two widest directions of the codebook")
    dots = [("encoder output, pulled by commitment", REAL, "o"), ("its entry, pulled by the codebook term", COLOURS[3], "s")]
    handles = [Line2D([], [], linestyle="", marker=mark, color=colour, label=label) for label, colour, mark in dots]
    axis.legend(handles=handles, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.02), ncols=1)


def _row_names(axes: np.ndarray, names: Sequence[str]) -> None:
    for axis, name in zip(axes, names):
        axis.set_ylabel(name)
