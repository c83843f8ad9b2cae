"""Charts of priors: the context of a token, bits while training and after, the GAN's balance, and what samples cost."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from oasis_lib.figures.style import BAD, COLOURS, MODEL, REAL, SEQUENTIAL, new_figure


def views(maps: dict[str, np.ndarray], row: int, column: int) -> Figure:
    """Which positions the token at (row, column) depends on. A map of 0 and 1 alone says what may, others how much it does."""
    figure, (axes,) = new_figure(1, len(maps), height=3.3, title="Context of the token in the middle (orange)")
    for axis, (name, moved) in zip(axes, maps.items()):
        measured = len(np.unique(moved)) > 2
        shown = np.ma.masked_less_equal(moved, 1e-6)
        if measured:
            drawn = axis.imshow(shown, cmap=SEQUENTIAL, norm=LogNorm(1e-4, 1))
        else:
            axis.imshow(shown, cmap="Blues", vmin=0, vmax=2)
        axis.plot(column, row, "s", color=MODEL, markersize=6)
        axis.set(xticks=[], yticks=[], facecolor="#dddddd", xlabel="measured influence" if measured else "what it could reach")
        axis.set_title(name, fontsize=9)
    bar = figure.colorbar(drawn, ax=list(axes), location="bottom", shrink=0.6, aspect=40)
    bar.set_label("change of the predicted distribution (total variation); grey: none")
    return figure


def learning(histories: dict[str, pd.DataFrame], frequencies: float, varieties: dict[str, pd.DataFrame], people: float) -> Figure:
    """Bits an image over training, beside token frequencies; and how far samples differ from each other, beside subjects."""
    shown = {name: history for name, history in histories.items() if "validate_bits" in history}
    figure, ((bits, variety),) = new_figure(1, 2, height=3.4)
    for colour, (name, history) in zip(COLOURS, shown.items()):
        mark = "." if len(history) < 12 else ""
        bits.plot(history["step"], history["validate_bits"], color=colour, marker=mark, label=f"{name}, validation")
        bits.plot(history["step"], history["train_bits"], color=colour, ls="--", alpha=0.6, marker=mark, label=f"{name}, training")
        found = varieties[name]
        variety.plot(found["validate_bits"], found["differing"], "o-", markersize=4, color=colour, label=f"samples, {name}")
    bits.axhline(frequencies, color=BAD, ls=":", label="token frequencies")
    lowest = min((history[["train_bits", "validate_bits"]].min().min() for history in shown.values()), default=0)
    bits.set(title="Negative log-likelihood", xlabel="training step", ylabel="bits/image (lower is better)")
    bits.set_ylim(0.93 * lowest, 1.06 * frequencies)
    bits.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    variety.axhline(people, color="black", ls=":", label="validation subjects")
    variety.set(title="Variety", xlabel="bits/image of validation subjects", ylabel="share of positions where two differ")
    variety.invert_xaxis()
    for axis in (bits, variety):
        axis.legend(fontsize=8)
    return figure


def bits(table: pd.DataFrame) -> Figure:
    """Bits an image of test subjects, with 95 % intervals over subjects; training subjects as a mark."""
    part = table[table["split"] == "test"].sort_values("bits", ascending=False)
    train = table[table["split"] == "train"].set_index("prior")["bits"]
    figure, ((axis,),) = new_figure(height=0.45 * len(part) + 1.3, title="Negative log-likelihood of test slices")
    place = np.arange(len(part))
    colours = [BAD if name.startswith("frequencies") else REAL for name in part["prior"]]
    error = np.abs(part[["low", "high"]].to_numpy().T - part["bits"].to_numpy())
    axis.barh(place, part["bits"], xerr=error, color=colours, height=0.6, capsize=3)
    axis.plot(
        train.reindex(part["prior"]), place, "|", color=COLOURS[3], markersize=14, markeredgewidth=2, label="training subjects"
    )
    for y, value in zip(place, part["bits"]):
        axis.text(part["bits"].max() * 0.01, y, f"{value:,.0f}", va="center", color="white", weight="bold")
    axis.set(yticks=place, yticklabels=part["prior"], xlabel="bits/image (lower is better)")
    axis.legend(fontsize=8)
    return figure


def balance(history: pd.DataFrame) -> Figure:
    """The GAN's two networks: losses, scores of real and generated maps, accuracy, and diversity relative to real subjects."""
    figure, (axes,) = new_figure(1, 3, height=3.0, title="Generator and discriminator over training")
    panels = {
        "loss": ("train_generator", "train_discriminator"),
        "discriminator score": ("train_real_score", "train_fake_score"),
        "accuracy; diversity": ("train_accuracy", "diversity"),
    }
    for axis, (title, names) in zip(axes, panels.items()):
        for colour, name in zip(COLOURS, (name for name in names if name in history)):
            mark = "." if len(history) < 12 else ""
            label = name.removeprefix("train_").removesuffix("_score").replace("fake", "generated")
            axis.plot(history["step"], history[name], color=colour, marker=mark, label=label)
        axis.set(ylabel=title, xlabel="training step")
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.legend(fontsize=8)
    axes[2].set_ylim(bottom=0)
    return figure


def cost(table: pd.DataFrame) -> Figure:
    """Seconds a map against the distance of token positions from those of validation subjects, for every prior."""
    figure, ((axis,),) = new_figure(height=3.4, title="Cost and quality of sampled token maps")
    made = table[table["seconds"].notna()]
    for colour, (_, row) in zip(COLOURS, made.iterrows()):
        passes = f"{row['passes']:,.0f} pass{'' if row['passes'] == 1 else 'es'}"
        axis.plot(row["seconds"], row["misplaced"], "o", color=colour, markersize=9, label=f"{row['prior']}, {passes}")
    axis.axhline(table.loc[table["seconds"].isna(), "misplaced"].iloc[0], color=BAD, ls=":", label="other subjects")
    axis.set(xscale="log", xlabel="seconds/map", ylabel="spatial histogram distance\n(0: alike, 1: nothing in common)")
    axis.set(xlim=(made["seconds"].min() / 2, made["seconds"].max() * 2), ylim=(0, 1.1 * table["misplaced"].max()))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure
