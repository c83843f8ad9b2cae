"""Two panels to look with: one entry of the codebook at a time, and one slice through the model."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from oasis_lib.evaluation.codebook import Reading, examples, firing, nearest, read
from oasis_lib.explore.base import Panel, Tile, choice, colours, difference, grey, slider
from oasis_lib.metrics import brain_mask, psnr, ssim
from oasis_lib.run import Run


def reading_of(run: Run | Reading) -> Reading:
    """A run, or a reading of it that is at hand already (reading once is enough for all panels)."""
    return run if isinstance(run, Reading) else read(run)


class CodebookPanel(Panel):
    """What panels over a codebook share."""

    def __init__(self, run: Run | Reading):
        self.book = reading_of(run)
        self.is_synthetic = self.book.cohort.synthetic
        self.last: tuple[int, np.ndarray] | None = None

    @cached_property
    def codes(self) -> np.ndarray:
        """Of the people shown, in memory: a slider should not wait for a disk."""
        return np.asarray(self.book.codes["test"]).astype(np.int64)

    def decoded(self, row: int) -> np.ndarray:
        """A slice from its own codes; the last one is remembered, half of what a slider costs."""
        if self.last is None or self.last[0] != row:
            self.last = row, self.book.decode(self.codes[row])
        return self.last[1]

    def person_and_level(self) -> dict:
        levels = self.book.levels
        level = slider("level", int(levels.min()) + 1, int(levels.max()) + 1, self.book.middle + 1)
        return {"person": choice("person", self.book.people), "level": level}

    def code_map(self, codes: np.ndarray) -> np.ndarray:
        return colours(self.book.shades[codes], 0, 1)


class CodebookBrowser(CodebookPanel):
    title = "Codebook browser: pick an entry"

    @cached_property
    def orders(self) -> dict[str, np.ndarray]:
        by_brightness = np.argsort(self.book.shades)
        by_usage = np.argsort(-self.book.counts, kind="stable")
        return {"usage": by_usage, "brightness": by_brightness, "number": np.arange(len(by_usage))}

    @cached_property
    def train(self) -> np.ndarray:
        return np.asarray(self.book.codes["train"])

    def controls(self):
        return {"place": slider("place", 1, len(self.book.counts)), "order": choice("ordered by", self.orders)}

    def examples(self):
        return [{"place": 1 + len(self.book.counts) * step // 12, "order": "usage"} for step in range(4)]

    def draw(self, place: int, order: str) -> tuple[list[Tile], str]:
        book, entry = self.book, int(self.orders[order][place - 1])
        where = firing(self.train, [entry])[0]
        beside = nearest(book.codebook, entry, 8)
        most = np.argsort(-(self.codes == entry).sum((1, 2)), kind="stable")[:2]
        tiles = [
            ("decoded", grey(book.patches[entry])),
            ("in test people", mosaic(examples(book, [entry], 9)[0])),
            ("neighbours", mosaic(book.patches[beside])),
            ("where it fires", colours(where, 0, max(float(where.max()), 1e-9), "magma")),
            *((f"used {(self.codes[row] == entry).sum()} times", self.tinted(row, entry)) for row in most),
        ]
        share, rank = book.counts[entry] / book.counts.sum(), int((book.counts > book.counts[entry]).sum()) + 1
        words = f"entry {entry}: {share:.2%} of all codes, number {rank} of {len(book.counts)} in use"
        return tiles, f"{words}; nearest entries {', '.join(map(str, beside[:4]))}"

    def tinted(self, row: int, entry: int) -> np.ndarray:
        """A slice with the places of an entry in orange."""
        image = np.asarray(self.book.shown.images[row])
        here = (self.codes[row] == entry).repeat(self.book.factor, 0).repeat(self.book.factor, 1)
        tinted = np.stack([image] * 3, -1)
        tinted[here] = tinted[here] // 2 + np.array([115, 80, 0], dtype=np.uint8)
        return tinted


class ReconstructionExplorer(CodebookPanel):
    title = "Reconstruction explorer: a slice, its codes, and what comes back"

    def controls(self):
        return self.person_and_level()

    def examples(self):
        middle = self.book.middle + 1
        return [{"person": person, "level": level} for person in self.book.people[:2] for level in (middle, middle // 2 + 1)]

    def draw(self, person: str, level: int) -> tuple[list[Tile], str]:
        row = self.book.slice_of(person, level - 1)
        image, codes = np.asarray(self.book.shown.images[row]), self.codes[row]
        back = self.decoded(row)
        real, made = (torch.from_numpy(np.asarray(x, dtype=np.float32))[None, None] for x in (image / 255, back))
        inside = torch.from_numpy(brain_mask(image[None]))[:, None]
        scores = f"SSIM {ssim(made, real).item():.3f}, in the brain {ssim(made, real, mask=inside).item():.3f}"
        tiles = [("input", image), ("decoded", grey(back)), ("decoded - input", difference(back, image / 255))]
        tiles.append((f"{len(np.unique(codes))} different codes", self.code_map(codes)))
        return tiles, f"{person}, level {self.book.levels[row] + 1}: {scores}, PSNR {psnr(made, real).item():.1f} dB"


def mosaic(patches: np.ndarray, columns: int = 3, gap: int = 1) -> np.ndarray:
    """Patches in [0, 1] as one tile, three by three; grey where there are fewer."""
    side = patches.shape[-1] + gap
    sheet = np.full((columns * side - gap, columns * side - gap), 0.7)
    for index, patch in enumerate(patches[: columns * columns]):
        top, left = index // columns * side, index % columns * side
        sheet[top : top + side - gap, left : left + side - gap] = patch
    return grey(sheet)
