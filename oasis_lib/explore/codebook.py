"""Three panels over a codebook: one token at a time, one slice through the model, and one token replaced."""

from __future__ import annotations

import numpy as np
import torch

from oasis_lib.evaluation.codebook import examples, farthest, firing, nearest
from oasis_lib.explore.base import Panel, Tile, boxed, choice, colours, difference, grey, slider
from oasis_lib.figures.grid import sheet
from oasis_lib.metrics import brain_mask, psnr, ssim


class CodebookBrowser(Panel):
    """One token at a time: its patch, its use, its neighbours, where it occurs, the slices that use it most."""

    title = "Codebook browser: choose a token"

    def open(self, run):
        super().open(run)
        self.train = np.asarray(self.book.codes["train"])
        ranked = np.argsort(-self.book.counts, kind="stable")
        self.orders = {"use": ranked, "brightness": np.argsort(self.book.shades), "index": np.arange(len(ranked))}

    def controls(self):
        return {"place": slider("rank", 0, len(self.book.counts) - 1), "order": choice("ordered by", self.orders)}

    def examples(self):
        return [{"place": len(self.book.counts) * step // 12, "order": "use"} for step in range(4)]

    def draw(self, place: int, order: str) -> tuple[list[Tile], str]:
        book, token = self.book, int(self.orders[order][place])
        where, beside = firing(self.train, [token])[0], nearest(book.codebook, token, 9)
        found = examples(book, [token], 9, book.factor // 2)[0]
        windows = ("in test subjects", grey(sheet(found, 3)))
        if not len(found):
            windows = ("not in test subjects", np.zeros((8, 8), np.uint8))
        tiles = [("decoded", grey(book.patches[token])), windows, ("neighbours", grey(sheet(book.patches[beside], 3)))]
        here = self.codes == token
        most = np.argsort(-here.sum((1, 2)), kind="stable")[:2]
        used = [(f"used {here[row].sum()} times", self.tinted(row, here[row])) for row in most]
        tiles += self.cropped([("where it occurs", colours(where, 0, where.max(), "magma")), *used])
        share, rank = book.counts[token] / book.counts.sum(), (book.counts > book.counts[token]).sum() + 1
        words = f"token {token}: {share:.2%} of all tokens, rank {rank} of {len(book.counts)}"
        return tiles, f"{words}; nearest: {', '.join(map(str, beside[:4]))}"

    def tinted(self, row: int, here: np.ndarray) -> np.ndarray:
        """A slice with some places of its token map in orange."""
        pixels = np.kron(here, np.ones((self.book.factor,) * 2, bool))
        tinted = np.stack([self.book.shown.images[row]] * 3, -1)
        tinted[pixels] = tinted[pixels] // 2 + np.array([115, 80, 0], dtype=np.uint8)
        return tinted


class ReconstructionExplorer(Panel):
    """A test slice, its reconstruction, the difference, and the tokens in between."""

    title = "Reconstruction explorer: a slice, its tokens, its reconstruction"

    def controls(self):
        return self.subject_and_slice()

    def examples(self):
        indices = (self.book.middle, self.book.middle // 2)
        return [{"subject": subject, "slice_index": index} for subject in self.book.subjects[:2] for index in indices]

    def draw(self, subject: str, slice_index: int) -> tuple[list[Tile], str]:
        row = self.book.slice_of(subject, slice_index)
        image, codes, back = np.asarray(self.book.shown.images[row]), self.codes[row], self.decoded(row)
        real, made = (torch.from_numpy(np.asarray(x, np.float32))[None, None] for x in (image / 255, back))
        inside = torch.from_numpy(brain_mask(image[None]))[:, None]
        words = f"{subject}, slice index {self.book.slice_indices[row]}: SSIM {ssim(made, real).item():.3f}, "
        words += f"in the brain {ssim(made, real, mask=inside).item():.3f}, PSNR {psnr(made, real).item():.1f} dB"
        tiles = [("input", image), ("reconstruction", grey(back))]
        tiles.append(("reconstruction - input", difference(back, image / 255)))
        tiles.append((f"{len(np.unique(codes))} different tokens", self.token_map(codes)))
        return self.cropped(tiles), words


class CodeEditor(Panel):
    """Replace one token of a slice, and see what changes in the image and where."""

    title = "Token editor: choose a position, replace its token"

    def open(self, run):
        super().open(run)
        self.by_brightness = np.argsort(self.book.shades)

    def controls(self):
        (height, width), count = self.codes.shape[1:], len(self.by_brightness)
        return self.subject_and_slice() | {
            "row": slider("row", 0, height - 1, height // 2),
            "column": slider("column", 0, width - 1, width // 2),
            "place": slider("brightness", 0, count - 1, count // 2),
        }

    def examples(self):
        """The centre of three subjects, each given the least similar token."""
        settings, usual, places = [], self.usual(), np.argsort(self.by_brightness)
        for subject in self.book.subjects[:3]:
            old = self.codes[self.book.slice_of(subject, self.book.middle)][usual["row"], usual["column"]]
            new = farthest(self.book.codebook, old, self.book.counts)
            settings.append(usual | {"subject": subject, "place": int(places[new])})
        return settings

    def draw(self, subject: str, slice_index: int, row: int, column: int, place: int) -> tuple[list[Tile], str]:
        index, new, factor = self.book.slice_of(subject, slice_index), self.by_brightness[place], self.book.factor
        edited = self.codes[index].copy()
        edited[row, column] = new
        before, after = self.decoded(index), self.book.decode(edited)
        area = (row * factor, column * factor, factor, factor)
        tiles = [
            ("decoded", grey(before)),
            (f"token {self.codes[index][row, column]} replaced by {new}", boxed(grey(after), *area)),
            ("difference", boxed(difference(after, before), *area)),
            ("tokens, by brightness", boxed(self.token_map(edited), row, column, 1, 1)),
        ]
        changed = np.abs(after - before) > 0.01
        outside = changed.sum() - changed[area[0] : area[0] + factor, area[1] : area[1] + factor].sum()
        words = f"{changed.sum()} pixels moved by more than 1 %, {outside} of them outside the frame"
        return self.cropped(tiles), words
