"""The models drawn by code: forward pass and gradients of the VQ-VAE, the priors, both networks of the GAN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from oasis_lib.figures.style import BAD, COLOURS, MODEL, REAL, SEQUENTIAL, new_figure

Span = tuple[float, float, float, float]  # left, right, bottom, top
RECONSTRUCTION, CODEBOOK, COMMITMENT = COLOURS[0], COLOURS[3], COLOURS[2]


def model(image: np.ndarray, shades: np.ndarray, decoded: np.ndarray, codebook: np.ndarray) -> Figure:
    """`image` and `decoded` (H, W); `shades` (h, w) colours the token map; `codebook` (K, D)."""
    pixels, grid, size = ("{} x {}".format(*array.shape) for array in (image, shades, codebook))
    figure, axis = _canvas((0, 20), (0, 8.1), width=10.0, height=4.1)
    _picture(axis, image, (0.2, 3.0, 3.6, 6.4), f"slice\n{pixels} pixels")
    _box(axis, (3.7, 5.6, 4.0, 6.0), "encoder")
    _picture(axis, codebook[:24].T, (6.2, 8.2, 0.9, 2.7), f"codebook\n{size}", cmap="RdBu_r", vmin=None, vmax=None)
    _box(axis, (6.4, 8.4, 4.0, 6.0), f"{grid}\nnearest\nentries")
    _picture(axis, shades, (9.2, 11.6, 3.8, 6.2), f"tokens\n{grid} numbers", cmap=SEQUENTIAL)
    _box(axis, (12.4, 14.0, 4.0, 6.0), "look up\nentries")
    _box(axis, (14.6, 16.5, 4.0, 6.0), "decoder")
    _picture(axis, decoded, (17.1, 19.9, 3.6, 6.4), f"decoded\n{pixels} pixels")
    for left, right in ((3.0, 3.7), (5.6, 6.4), (8.4, 9.2), (11.6, 12.4), (14.0, 14.6), (16.5, 17.1)):
        _arrow(axis, (left, 5), (right, 5))
    _arrow(axis, (7.3, 2.75), (7.3, 4.0))
    _arrow(axis, (8.25, 1.8), (13.2, 4.0), bend=0.25)
    # Gradients pass by the quantizer, never through it.
    _arrow(axis, (18.5, 6.45), (15.7, 6.0), RECONSTRUCTION, 0.35, "--")
    _arrow(axis, (15.0, 6.0), (4.7, 6.0), RECONSTRUCTION, 0.22, "--")
    copied = "reconstruction: to the decoder, then copied to the encoder (straight-through)"
    axis.text(9.9, 7.75, copied, color=RECONSTRUCTION, ha="center")
    _arrow(axis, (6.3, 4.05), (5.0, 3.95), COMMITMENT, -0.5, "--")
    axis.text(5.9, 2.9, "commitment:\nto the encoder", color=COMMITMENT, ha="right", va="center")
    _arrow(axis, (7.9, 3.95), (7.9, 2.75), CODEBOOK, -0.3, "--")
    axis.text(8.3, 2.5, "codebook term:\nto the entries", color=CODEBOOK, ha="left", va="center")
    axis.text(14.2, 0.3, "solid: forward pass · dashed: gradients", color=BAD, ha="center")
    return figure


def priors(transformer_layers: int, pixelcnn_layers: int) -> Figure:
    """A row a prior, from what it reads to a token."""
    read = ["tokens before $i$,\nby their codebook\nvectors", "+ position\n+ slice index $s$\n+ CDR $r$"]
    end = ["logits of the\nnetwork, from $h_i$\nand $\\phi(e_k)$", "+ log $p_i(k\\,|\\,s)$\ncounted before\ntraining"]
    end += ["softmax:\n$p(q_i\\,|\\,q_{<i}, s, r)$"]
    blocks = f"{transformer_layers} blocks: causal\nattention, then\nfeed-forward"
    layers = f"{pixelcnn_layers} gated layers:\nrows above,\nthen to the left"
    start = ["noise $u$,\nslice index $s$,\nCDR $r$", "linear model:\nmean, principal\ncomponents at $s$"]
    start += ["generator:\na U-net adds\nwhat is missing", "latents\nat all positions"]
    rows = {
        "transformer\none token\na pass": [*read, blocks, *end],
        "PixelCNN\none token\na pass": [*read, layers, *end],
        "CodeGAN\nthe whole map\nin one pass": [*start, "nearest\ncodebook\nvector", "tokens $q$,\nno likelihood"],
    }
    figure, axis = _canvas((-2.4, 20.6), (-0.2, 9.2), height=3.4)
    for (name, chain), y, colour in zip(rows.items(), (7.8, 4.7, 1.6), COLOURS):
        axis.text(-2.4, y, name, va="center", fontsize=8, color=colour, weight="bold")
        for number, words in enumerate(chain):
            x = 0.9 + 3.3 * number
            _box(axis, (x, x + 2.9, y - 1.15, y + 1.15), words, fontsize=7)
            if number:
                _arrow(axis, (x - 0.4, y), (x, y))
    return figure


def gan(layers: Sequence[Sequence]) -> Figure:
    """Noise to tokens above, latents to logits below. A layer's name, kind and output size ("64x16x16") come first.

    What modulates a layer (style vector, noise of each position, labels) is left out.
    """
    main = [row for row in layers if not {"style", "noise", "labels"} & set(row[0].split("."))]
    generator, discriminator = ([row for row in main if row[0].startswith(n)] for n in ("generator", "discriminator"))
    figure, axis = _canvas((0, 22), (0.2, 10.4), height=4.2)
    axis.text(0.1, 10.2, "generator", weight="bold", va="top")
    _box(axis, (0.1, 2.6, 6.7, 8.5), "linear\nmodel,\nnoise")
    _stack(axis, _steps(generator), (3.4, 18.2), 7.6, MODEL)
    _box(axis, (19.0, 21.9, 6.7, 8.5), "a token at\neach position")
    axis.text(3.4, 5.2, "discriminator", weight="bold", va="top")
    _box(axis, (19.0, 21.9, 1.4, 3.2), "training\nlatents")
    _stack(axis, _steps(discriminator)[::-1], (3.4, 18.2), 2.3, REAL)
    _box(axis, (0.1, 2.6, 1.4, 3.2), "real or\ngenerated?")
    for start, end, y in ((2.6, 3.4, 7.6), (18.2, 19.0, 7.6), (19.0, 18.2, 2.3), (3.4, 2.6, 2.3)):
        _arrow(axis, (start, y), (end, y))
    _arrow(axis, (19.6, 6.7), (18.2, 2.7), bend=-0.15)
    _arrow(axis, (1.2, 3.2), (1.2, 6.7), BAD, style="--")
    axis.text(1.5, 5.7, "gradient to the generator", color=BAD, va="center", fontsize=8)
    return figure


def _steps(layers: Sequence[Sequence]) -> list[tuple[str, list[int]]]:
    """Layers with weights, those of one output size together: how many of which kind, and the size."""
    weighted = [(kind, size) for _, kind, size, *_ in layers if kind.startswith(("Linear", "Conv"))]
    grouped = ((kind, size, len(list(group))) for (kind, size), group in groupby(weighted))
    return [(f"{count} x\n{kind}", list(map(int, size.split("x")))) for kind, size, count in grouped]


def _stack(axis: Axes, steps: list[tuple[str, list[int]]], span: Sequence[float], middle: float, colour: str) -> None:
    """A block a step: as high as its grid and as wide as its channels, both on a log scale."""
    edges = np.linspace(*span, len(steps) + 1)
    for (name, size), (left, right) in zip(steps, pairwise(edges)):
        x, wide = (left + right) / 2, min(0.4 * (right - left), 0.06 * (1 + math.log2(size[0])))
        high = 0.175 * (1 + math.log2(max(size[1:], default=1)))
        _box(axis, (x - wide, x + wide, middle - high, middle + high), "", rounding=0.05, facecolor=colour, alpha=0.6)
        axis.text(x, middle + high + 0.1, name, ha="center", va="bottom", fontsize=7)
        axis.text(x, middle - high - 0.1, "x".join(map(str, size)), ha="center", va="top", fontsize=7)


def _canvas(across: tuple[float, float], up: tuple[float, float], **size: float) -> tuple[Figure, Axes]:
    figure, ((axis,),) = new_figure(**size)
    axis.set(xlim=across, ylim=up, xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    return figure, axis


def _picture(axis: Axes, image: np.ndarray, span: Span, name: str, **look) -> None:
    axis.imshow(image, extent=span, aspect="auto", **{"cmap": "gray", "vmin": 0, "vmax": 1} | look)
    axis.text((span[0] + span[1]) / 2, span[2] - 0.15, name, ha="center", va="top")


def _box(axis: Axes, span: Span, name: str, fontsize: float = 8, rounding: float = 0.2, **look) -> None:
    left, right, bottom, top = span
    look = {"facecolor": "#F2F2F2", "edgecolor": "black"} | look
    shape = f"round,pad=0,rounding_size={rounding}"
    axis.add_patch(FancyBboxPatch((left, bottom), right - left, top - bottom, boxstyle=shape, **look))
    axis.text((left + right) / 2, (bottom + top) / 2, name, ha="center", va="center", fontsize=fontsize)


def _arrow(axis: Axes, start: tuple, end: tuple, colour: str = "black", bend: float = 0, style: str = "-") -> None:
    look = {"arrowstyle": "-|>", "color": colour, "linestyle": style, "linewidth": 1.6, "shrinkA": 1, "shrinkB": 1}
    axis.annotate("", end, start, arrowprops=look | {"connectionstyle": f"arc3,rad={bend}", "mutation_scale": 12})
