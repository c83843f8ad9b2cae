"""Priors on paper: what a code is told by, bits while training and after, where the bits are, and what samples cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from oasis_lib.figures.style import BAD, COLOURS, MODEL, REAL, SEQUENTIAL, new_figure, show_image


def rows_of_images(rows: dict[str, np.ndarray], title: str, labels: Sequence[str] = ()) -> Figure:
    """A named row of heads each: {"real": (N, H, W) uint8, ...}."""
    count = max(len(images) for images in rows.values())
    figure, axes = new_figure(len(rows), count, width=1.35 * count + 1, height=1.4 * len(rows) + 0.6, title=title)
    for line, (name, images) in zip(axes, rows.items()):
        for axis in line:
            axis.set_axis_off()
        for axis, image in zip(line, images):
            axis.set_axis_on()
            show_image(axis, image, low=0, high=255)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axis, label in zip(axes[0], labels):
        axis.set_title(label, fontsize=9)
    return figure


def views(maps: dict[str, np.ndarray], row: int, column: int) -> Figure:
    """What the code at one place is told by: how much its chances move when another code is changed."""
    figure, axes = new_figure(1, len(maps), width=3.0 * len(maps), height=3.5, title="What one code may know of the others")
    for axis, (name, moved) in zip(axes[0], maps.items()):
        shown = np.where(moved > 1e-6, moved, np.nan)
        drawn = axis.imshow(shown, cmap=SEQUENTIAL, norm=LogNorm(1e-4, 1))
        axis.plot(column, row, "s", color=COLOURS[3], markersize=5)
        axis.set(xticks=[], yticks=[], title=name, facecolor="#dddddd")
    label = "how far its chances move (grey: not at all)"
    figure.colorbar(drawn, ax=list(axes[0]), location="bottom", shrink=0.5, aspect=40, label=label)
    return figure


def learning(histories: dict[str, pd.DataFrame], frequencies: float, varieties: dict[str, pd.DataFrame], people: float) -> Figure:
    """Bits an image while training, beside plain frequencies; and how far samples differ as bits fall, beside people."""
    shown = {name: history for name, history in histories.items() if "validate_bits" in history}
    figure, axes = new_figure(1, len(shown) + 1, width=4.2 * len(shown) + 4.2, height=3.6, title="Bits an image, while training")
    for axis, colour, (name, history) in zip(axes[0], COLOURS, shown.items()):
        axis.sharey(axes[0, 0])
        mark = "." if len(history) < 12 else ""
        axis.plot(history["step"], history["train_bits"], color=colour, alpha=0.45, marker=mark, label="training people")
        axis.plot(history["step"], history["validate_bits"], color=colour, linewidth=2, marker=mark, label="validation people")
        axis.axhline(frequencies, color=BAD, linestyle=":", label="plain frequencies")
        axis.set(title=name, xlabel="step", yscale="log")
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("bits an image")
    axis = axes[0, -1]
    for colour, name in zip(COLOURS, shown):
        axis.plot(varieties[name]["validate_bits"], varieties[name]["differing"], "o-", markersize=3, color=colour, label=name)
    axis.axhline(people, color="black", linestyle=":", label="people")
    axis.set(title="variety of samples", xlabel="bits an image of validation people")
    axis.set_ylabel("share of places where two differ")
    axis.legend(fontsize=8)
    return figure


def bits(table: pd.DataFrame) -> Figure:
    """Bits an image of people never seen, with an interval over people."""
    part = table[table["split"] == "test"].sort_values("bits", ascending=False)
    train = table[table["split"] == "train"].set_index("prior")["bits"]
    figure, axes = new_figure(width=8.0, height=0.5 * len(part) + 1.3, title="What an image of a test person costs")
    axis = axes[0, 0]
    place = np.arange(len(part))
    colours = [BAD if name.startswith("frequencies") else REAL for name in part["prior"]]
    axis.barh(place, part["bits"], color=colours, height=0.6)
    error = np.abs(part[["low", "high"]].to_numpy().T - part["bits"].to_numpy())
    axis.errorbar(part["bits"], place, xerr=error, fmt="none", color="black", capsize=3, linewidth=1)
    axis.plot(train.reindex(part["prior"]), place, "|", color=COLOURS[3], markersize=14, markeredgewidth=2, label="training people")
    for y, value in zip(place, part["bits"]):
        axis.text(value * 0.02 + part["bits"].max() * 0.005, y, f"{value:,.0f}", va="center", color="white", weight="bold")
    axis.set(yticks=place, yticklabels=part["prior"], xlabel="bits an image (shorter is better)")
    axis.legend(fontsize=8)
    return figure


def uncertainty(images: np.ndarray, maps: np.ndarray, mean: np.ndarray) -> Figure:
    """Slices, the bits of each of their codes, and the mean over all test people."""
    count = len(images)
    figure, axes = new_figure(2, count + 1, width=1.9 * (count + 1), height=4.2, title="Where in the head the prior is unsure")
    top = float(np.quantile(maps, 0.99)) or 1.0
    for column, (image, found) in enumerate(zip(images, maps)):
        show_image(axes[0, column], image, low=0, high=255)
        show_image(axes[1, column], found, high=top, cmap=SEQUENTIAL)
    axes[0, count].set_axis_off()
    drawn = show_image(axes[1, count], mean, "mean of test people", high=top, cmap=SEQUENTIAL)
    axes[0, 0].set_ylabel("slice")
    axes[1, 0].set_ylabel("bits a code")
    figure.colorbar(drawn, ax=list(axes.ravel()), label="bits a code", shrink=0.6)
    return figure


def balance(history: pd.DataFrame) -> Figure:
    """The GAN's two networks: losses, scores of real and generated maps, accuracy, and diversity relative to real subjects."""
    figure, axes = new_figure(1, 3, width=11, height=3.4, title="Generator and discriminator")
    step, mark = history["step"], "." if len(history) < 12 else ""
    panels = (
        ("losses", ("train_generator", "train_discriminator")),
        ("the discriminator's scores", ("train_real_score", "train_fake_score")),
        ("its accuracy, and the samples' diversity", ("train_accuracy", "diversity")),
    )
    for axis, (title, names) in zip(axes[0], panels):
        for colour, name in zip(COLOURS, names):
            axis.plot(step, history[name], color=colour, marker=mark, label=name.removeprefix("train_").replace("_", " "))
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=8)
    axes[0, 2].axhspan(0.55, 0.95, color=BAD, alpha=0.15, linewidth=0)
    axes[0, 2].set_ylim(bottom=0)
    return figure


def cost(table: pd.DataFrame) -> Figure:
    """Seconds a map against how badly its codes are placed; the dotted line is other people."""
    figure, axes = new_figure(width=7.5, height=4.0, title="What a map costs, and what it is worth")
    axis = axes[0, 0]
    made = table[table["seconds"].notna()]
    for colour, (_, row) in zip(COLOURS, made.iterrows()):
        name = f"{row['prior']} ({row['passes']:.0f} {'pass' if row['passes'] == 1 else 'passes'})"
        axis.plot(row["seconds"], row["misplaced"], "o", color=colour, markersize=9, label=name)
    floor = table.loc[table["seconds"].isna(), "misplaced"].iloc[0]
    axis.axhline(floor, color=BAD, linestyle=":", label="other people")
    axis.set(xscale="log", xlabel="seconds a map", ylabel="codes out of place (lower is better)", ylim=(0, None))
    axis.set_xlim(made["seconds"].min() / 2, made["seconds"].max() * 2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.legend(fontsize=8)
    return figure


def grids(table: pd.DataFrame) -> Figure:
    """A row a grid: how far its codes alone are from people, and how far what its prior makes of them."""
    figure, axes = new_figure(1, 2, width=10, height=0.9 + 0.65 * len(table), title="Few codes or many", sharey=True)
    heights = range(len(table))
    for axis, space in zip(axes[0], ("trained", "fixed")):
        ratios = {side: table[f"{side} frechet_{space}_ratio"].astype(float) for side in ("codes", "samples")}
        axis.hlines(heights, *ratios.values(), color="0.8", zorder=0)
        for (side, values), colour in zip(ratios.items(), (REAL, MODEL)):
            axis.plot(values, heights, "o", color=colour, label=side)
        axis.axvline(1, color=BAD, linestyle=":", label="other people (the floor)")
        axis.set(title=f"{space} features", xlabel="Fréchet distance over the floor's", xscale="log", ymargin=0.15)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}" if max(map(max, ratios.values())) < 10 else "")
    names = [f"{name.replace(', ', chr(10))}\nSSIM {row['ssim_brain']:.2f}" for name, row in table.iterrows()]
    axes[0, 0].set_yticks(list(heights), names, fontsize=8)
    axes[0, 0].invert_yaxis()
    axes[0, 1].legend(fontsize=8)
    return figure
