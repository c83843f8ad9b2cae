"""The models as pictures for notebooks 02 and 04: VQ-VAE (forward pass and gradients), priors, the CodeGAN's networks.

    python images/diagrams.py

Layers are those of the weights in data/pretrained; the slice is of the synthetic cohort that they were trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from oasis_lib.check import layers
from oasis_lib.cohort import open_cohort
from oasis_lib.evaluation.codebook import CodebookStatistics
from oasis_lib.figures.style import BAD, COLOURS, SEQUENTIAL, new_figure, synthetic
from oasis_lib.models import load
from oasis_lib.paths import PROJECT, data_home
from oasis_lib.pretrained import HOME
from oasis_lib.training import encode_images

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
    read = ["tokens before $i$,\nby codebook\nvectors", "+ position\n+ slice index $s$\n+ CDR $r$"]
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
    return _chains(rows, height=3.4)


def gan(layers: Sequence[Sequence]) -> Figure:
    """The generator above, the discriminator below. A layer's name, kind and output size ("64x16x16") come first.

    What modulates a layer (style vector, noise of each position, labels) is left out.
    """
    rows = {"generator": ["noise,\nlinear\nmodel"], "discriminator": ["training or\ngenerated\nlatents"]}
    main = [row for row in layers if not {"style", "noise", "labels"} & set(row[0].split("."))]
    for name, chain in rows.items():
        own = [(kind, size) for layer, kind, size, *_ in main if layer.startswith(name)]
        weighted = [(kind, size) for kind, size in own if kind.startswith(("Linear", "Conv"))]
        chain += [f"{len(list(group))} x\n{kind}\n{size}" for (kind, size), group in groupby(weighted)]
    rows["generator"].append("nearest\nvector's\ntoken")
    rows["discriminator"].append("real or\ngenerated?")
    return _chains(rows, height=2.4)


def _chains(rows: dict[str, list[str]], height: float) -> Figure:
    """Named rows of boxes, an arrow from each to the next."""
    figure, axis = _canvas((-2.4, 20.6), (0, 3.1 * len(rows)), height=height)
    for number, ((name, chain), colour) in enumerate(zip(rows.items(), COLOURS)):
        y, wide = 3.1 * (len(rows) - number) - 1.5, 19.7 / len(chain)
        axis.text(-2.4, y, name, va="center", fontsize=8, color=colour, weight="bold")
        for place, words in enumerate(chain):
            x = 0.9 + wide * place
            _box(axis, (x, x + 0.88 * wide, y - 1.15, y + 1.15), words, fontsize=8)
            if place:
                _arrow(axis, (x - 0.12 * wide, y), (x, y))
    return figure


def _canvas(across: tuple[float, float], up: tuple[float, float], **size: float) -> tuple[Figure, Axes]:
    figure, ((axis,),) = new_figure(**size)
    axis.set(xlim=across, ylim=up, xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    return figure, axis


def _picture(axis: Axes, image: np.ndarray, span: Span, name: str, **look) -> None:
    axis.imshow(image, extent=span, aspect="auto", **{"cmap": "gray", "vmin": 0, "vmax": 1} | look)
    axis.text((span[0] + span[1]) / 2, span[2] - 0.15, name, ha="center", va="top")


def _box(axis: Axes, span: Span, name: str, fontsize: float = 9) -> None:
    left, right, bottom, top = span
    box = FancyBboxPatch((left, bottom), right - left, top - bottom, boxstyle="round,pad=0,rounding_size=0.2")
    box.set(facecolor="#F2F2F2", edgecolor="black")
    axis.add_patch(box)
    axis.text((left + right) / 2, (bottom + top) / 2, name, ha="center", va="center", fontsize=fontsize)


def _arrow(axis: Axes, start: tuple, end: tuple, colour: str = "black", bend: float = 0, style: str = "-") -> None:
    look = {"arrowstyle": "-|>", "color": colour, "linestyle": style, "linewidth": 1.6, "shrinkA": 1, "shrinkB": 1}
    axis.annotate("", end, start, arrowprops=look | {"connectionstyle": f"arc3,rad={bend}", "mutation_scale": 12})


def main() -> None:
    cohort, vqvae = open_cohort(data_home() / "phantom-128"), load(HOME / "vqvae")
    middle = cohort["train"].images[cohort["train"].slice_indices == cohort.slice_indices // 2]
    codes = encode_images(vqvae, middle)
    book = CodebookStatistics(vqvae, cohort, {"train": codes})
    drawn = model(middle[0] / 255, book.shades[codes[0]], book.decode(codes[0]), book.codebook)
    figures = {"vqvae": synthetic(drawn, True)}
    figures["priors"] = priors(*(load(HOME / name).config.layers for name in ("transformer", "pixelcnn")))
    figures["codegan"] = gan(layers(HOME / "codegan")[0])
    for name, figure in figures.items():
        path = PROJECT / "images" / f"{name}.png"
        figure.savefig(path)
        Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
