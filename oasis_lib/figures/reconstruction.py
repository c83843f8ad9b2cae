"""What a VQ-VAE gives back: the same slices before and after, where it errs, and for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oasis_lib.figures.grid import Row, image_grid
from oasis_lib.figures.style import BAD, COLOURS, DIVERGING, MODEL, REAL, SEQUENTIAL, new_figure, plain_log


def compare(
    shown: Mapping[str, np.ndarray], names: Sequence[str], parts: Sequence[str], shades: np.ndarray | None = None, **options
) -> Figure:
    """Slices (columns) and `parts` (rows) of what `reconstruction.look` found; "decoded - images" is a signed difference.

    `shades` colours a token by its brightness. Parts of a decoder that a model lacks are left out.
    """
    parts = [part for part in parts if set(part.split(" - ")) <= set(shown)]
    signed = {part: shown[part.split(" - ")[0]] - shown["images"] for part in parts if " - " in part}
    reach = max([1e-3, *(float(np.quantile(np.abs(change), 0.995)) for change in signed.values())])
    looks = {part: {"cmap": DIVERGING, "low": -reach, "high": reach, "bar": "decoded - input"} for part in signed}
    looks |= {"codes": {"cmap": SEQUENTIAL, "bar": "mean intensity of the patch"}, "map": {"cmap": SEQUENTIAL, "bar": "SSIM"}}
    images = shown | signed | ({} if shades is None else {"codes": shades[shown["codes"]]})
    called = {"map": "SSIM", "crisp": "crisp decoder", "decoded": "faithful decoder" if "crisp" in parts else "decoded"}
    called["codes"] = "tokens, {} x {}".format(*shown["codes"].shape[1:]) if "codes" in parts else ""
    rows = {called.get(part, part.replace("images", "input")): Row(images[part], **looks.get(part, {})) for part in parts}
    return image_grid(rows, names, **options)


def progress(steps: Sequence[int], strips: np.ndarray, targets: np.ndarray, final: np.ndarray | None = None) -> Figure:
    """The same subjects (rows) as training goes on (columns): strips (S, P, H, W), targets and final (P, H, W)."""
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 6)).round().astype(int))
    names = ["before" if steps[i] == 0 else f"step {steps[i]:,}" for i in chosen]
    names += ["kept"] * (final is not None) + ["input"]
    last = [final, targets] if final is not None else [targets]
    rows = {f"subject {i + 1}": Row([*strips[chosen, i], *(images[i] for images in last)]) for i in range(len(targets))}
    return image_grid(rows, names, "Reconstructions of validation slices as training goes on")


def subjects(table: pd.DataFrame, baselines: Mapping[str, float], key: str = "ssim_brain") -> Figure:
    """Dots of every subject's slices, lowest mean first; best and worst slice named. Baselines lie far below: under the axis."""
    beside = ", ".join(f"{name} {value:.2f}" for name, value in baselines.items())
    figure, ((axis,),) = new_figure(height=3.8, title="SSIM inside the brain of test slices, by subject")
    means = table.groupby("subject")[key].mean().sort_values()
    place = {subject: i for i, subject in enumerate(means.index)}
    across = table["subject"].map(place) + np.random.default_rng(0).uniform(-0.25, 0.25, len(table))
    axis.scatter(across, table[key], s=9, alpha=0.5, color=REAL, linewidth=0, label="a slice")
    axis.scatter(range(len(means)), means, s=60, marker="_", color="black", linewidth=2, label="a subject's mean")
    for name, row, colour in (("best", table[key].idxmax(), COLOURS[2]), ("worst", table[key].idxmin(), COLOURS[3])):
        subject, slice_index = table.loc[row, "subject"], table.loc[row, "slice_index"]
        about = f"{name}: {subject}, slice index {slice_index}, {table.loc[row, key]:.3f}"
        axis.scatter(across[row], table.loc[row, key], s=70, facecolor="none", edgecolor=colour, linewidth=1.8, label=about)
    axis.set(
        ylabel="SSIM (1: identical)", xlabel=f"test subjects, lowest mean first\nbaselines: {beside}", xlim=(-0.7, len(means) - 0.3)
    )
    axis.set_xticks(range(len(means)), means.index if len(means) <= 20 else [""] * len(means), rotation=90, fontsize=7)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
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
                axis.annotate(f"{row['codebook_size']:.0f}", (row["bytes"], row[key]), **where)
        for (method, rows), style in zip(codecs.groupby("method", sort=False), ("--", ":", "-.")):
            rows = rows.sort_values("bytes")
            axis.plot(rows["bytes"], rows[key], style, marker=".", color=BAD, label=method)
        if main:
            name = f"this run's model ({main['method']}, {main['codebook_size']} entries)"
            colour = colours.get(main["method"], MODEL)
            axis.scatter(main["bytes"], main[key], marker="*", s=160, color=colour, edgecolor="black", zorder=3, label=name)
        axis.set(xlabel="bytes an image, entropy coded", ylabel="SSIM", title=title)
        plain_log(axis)
        axis.grid(alpha=0.2)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def arrows(table: pd.DataFrame, latents: np.ndarray, codebook: np.ndarray, codes: np.ndarray) -> Figure:
    """Which term moves which part (gradient norms), and the two pulls in the plane of the codebook.

    `latents` (N, 2) and `codebook` (K, 2) lie in one plane; `codes` (N,) says which entry each latent is assigned to.
    """
    figure, ((left, right),) = new_figure(1, 2, height=4.2, width_ratios=(1, 1.25))
    _lengths(left, table)
    _pulls(right, latents, codebook, codes)
    return figure


def _lengths(axis: Axes, table: pd.DataFrame) -> None:
    values = table.to_numpy(float)
    share = values / values.max(axis=1, keepdims=True).clip(min=1e-30)
    axis.imshow(np.where(values > 0, 0.25 + 0.75 * share, 0.0), cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
    for row, column in np.ndindex(*values.shape):
        text = f"{values[row, column]:.2g}" if values[row, column] else "0"
        axis.text(column, row, text, ha="center", va="center", color="black" if values[row, column] else BAD)
    axis.set_xticks(range(values.shape[1]), table.columns)
    axis.set_yticks(range(values.shape[0]), table.index)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_title("norm of the gradient that reaches ...")


def _pulls(axis: Axes, latents: np.ndarray, codebook: np.ndarray, codes: np.ndarray) -> None:
    """Few entries, each with its own colour: a line from every latent to its entry."""
    used = np.unique(codes)
    axis.scatter(*codebook.T, s=6, color="lightgrey", zorder=1)
    for entry, colour in zip(used, COLOURS * (len(used) // len(COLOURS) + 1)):
        own = latents[codes == entry]
        for latent in own:
            axis.plot(*np.stack([latent, codebook[entry]]).T, color=colour, lw=0.7, alpha=0.6, zorder=2)
        axis.scatter(*own.T, s=12, color=colour, zorder=3)
        axis.scatter(*codebook[entry], s=70, marker="s", facecolor="white", edgecolor=colour, linewidth=1.8, zorder=4)
    seen = np.concatenate([latents, codebook[used]])
    low, high = seen.min(axis=0), seen.max(axis=0)
    room = 0.08 * (high - low + 1e-9)
    axis.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))
    axis.set(
        xlabel="first direction",
        ylabel="second direction",
        title="latents (dots) and their entries (squares);\ngrey: other entries",
    )
