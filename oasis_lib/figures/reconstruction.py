"""Reconstructions in figures: slices before and after, errors, scores by subject, gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from oasis_lib.figures.grid import Row, image_grid
from oasis_lib.figures.style import COLOURS, DIVERGING, REAL, SEQUENTIAL, new_figure


def compare(
    shown: Mapping[str, np.ndarray],
    names: Sequence[str],
    parts: Sequence[str],
    shades: np.ndarray | None = None,
    **options,
) -> Figure:
    """Slices (columns) and `parts` (rows) of what `reconstruction.look` found; "decoded - images" is signed.

    `shades` colours a token by its brightness. Parts of a decoder that a model lacks are left out.
    """
    parts = [part for part in parts if set(part.split(" - ")) <= set(shown)]
    signed = {part: shown[part.split(" - ")[0]] - shown["images"] for part in parts if " - " in part}
    reach = max([1e-3, *(float(np.quantile(np.abs(change), 0.995)) for change in signed.values())])
    looks = {part: {"cmap": DIVERGING, "low": -reach, "high": reach, "bar": "decoded - input"} for part in signed}
    looks["codes"] = {"cmap": SEQUENTIAL, "bar": "mean intensity of the patch"}
    looks["map"] = {"cmap": SEQUENTIAL, "bar": "SSIM"}
    images = shown | signed | ({} if shades is None else {"codes": shades[shown["codes"]]})
    called = {"map": "SSIM", "crisp": "crisp decoder", "decoded": "faithful decoder" if "crisp" in parts else "decoded"}
    called["codes"] = "tokens, {} x {}".format(*shown["codes"].shape[1:]) if "codes" in parts else ""
    labels = [called.get(part, part.replace("images", "input")) for part in parts]
    rows = [Row(images[part], **looks.get(part, {})) for part in parts]
    return image_grid(dict(zip(labels, rows)), names, **options)


def subjects(table: pd.DataFrame, baselines: Mapping[str, float], key: str = "ssim_brain") -> Figure:
    """Dots of every subject's slices, lowest mean first; best and worst slice named. Baselines: under the axis."""
    figure, ((axis,),) = new_figure(height=3.8, title="SSIM inside the brain of test slices, by subject")
    means = table.groupby("subject")[key].mean().sort_values()
    places = means.index.get_indexer(table["subject"])
    across = pd.Series(places + np.random.default_rng(0).uniform(-0.25, 0.25, len(table)), table.index)
    axis.scatter(across, table[key], s=9, alpha=0.5, color=REAL, linewidth=0, label="a slice")
    axis.scatter(range(len(means)), means, s=60, marker="_", color="black", linewidth=2, label="a subject's mean")
    for name, at, colour in (("best", table[key].idxmax(), COLOURS[2]), ("worst", table[key].idxmin(), COLOURS[3])):
        row = table.loc[at]
        about = f"{name}: {row['subject']}, slice index {row['slice_index']}, {row[key]:.3f}"
        axis.scatter(across[at], row[key], s=70, facecolor="none", edgecolor=colour, linewidth=1.8, label=about)
    beside = ", ".join(f"{name} {value:.2f}" for name, value in baselines.items())
    axis.set(ylabel="SSIM (1: identical)", xlabel=f"test subjects, lowest mean first\nbaselines: {beside}")
    labels = means.index if len(means) <= 20 else [""] * len(means)
    axis.set_xticks(range(len(means)), labels, rotation=90, fontsize=8)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def arrows(table: pd.DataFrame, latents: np.ndarray, codebook: np.ndarray, codes: np.ndarray) -> Figure:
    """Which term moves which part (gradient norms), and latents with their entries in the plane of the codebook.

    `latents` (N, 2) and `codebook` (K, 2) lie in one plane; `codes` (N,) says which entry each latent is assigned to.
    """
    figure, ((norms, plane),) = new_figure(1, 2, height=4.2, width_ratios=(1, 1.25))
    table.plot.bar(ax=norms, log=True, rot=0, title="norm of the gradient (no bar: none)")
    norms.legend(title="that reaches", fontsize=8)
    used, colours = np.unique(codes), np.array(COLOURS)[codes % len(COLOURS)]
    plane.scatter(*codebook.T, s=6, color="lightgrey")
    plane.scatter(*latents.T, s=12, color=colours, zorder=3)
    plane.scatter(*codebook[used].T, s=70, marker="s", color="white", edgecolor=np.array(COLOURS)[used % len(COLOURS)])
    plane.add_collection(LineCollection(np.stack([latents, codebook[codes]], 1), colors=colours, lw=0.7, alpha=0.6))
    seen = np.concatenate([latents, codebook[used]])
    room = 0.08 * (np.ptp(seen, axis=0) + 1e-9)
    xlim, ylim = np.stack([seen.min(0) - room, seen.max(0) + room], 1)
    plane.set(xlim=xlim, ylim=ylim, xlabel="first direction", ylabel="second direction")
    plane.set_title("latents (dots) and their entries (squares);\ngrey: other entries")
    return figure
