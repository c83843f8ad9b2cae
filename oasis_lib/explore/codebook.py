"""Two panels to look with: one token of the codebook at a time, and one slice through the model."""

from __future__ import annotations

import numpy as np
import torch

from oasis_lib.evaluation.codebook import examples, firing, nearest
from oasis_lib.explore.base import RunPanel, Tile, choice, colours, difference, grey, slider
from oasis_lib.figures.grid import sheet
from oasis_lib.metrics import brain_mask, psnr, ssim


class CodebookBrowser(RunPanel):
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
        most = np.argsort(-(self.codes == token).sum((1, 2)), kind="stable")[:2]
        found = examples(book, [token], 9, book.factor // 2)[0]
        tiles = [
            ("decoded", grey(book.patches[token])),
            ("in test subjects", grey(sheet(found, 3))) if len(found) else ("not in test subjects", np.zeros((8, 8), np.uint8)),
            ("neighbours", grey(sheet(book.patches[beside], 3))),
        ]
        used = [(f"used {(self.codes[row] == token).sum()} times", self.tinted(row, token)) for row in most]
        tiles += self.cropped([("where it occurs", colours(where, 0, max(float(where.max()), 1e-9), "magma")), *used])
        share, rank = book.counts[token] / book.counts.sum(), int((book.counts > book.counts[token]).sum()) + 1
        words = f"token {token}: {share:.2%} of all tokens, rank {rank} of {len(book.counts)}"
        return tiles, f"{words}; nearest: {', '.join(map(str, beside[:4]))}"

    def tinted(self, row: int, token: int) -> np.ndarray:
        """A slice with the places of a token in orange."""
        here = np.kron(self.codes[row] == token, np.ones((self.book.factor,) * 2, bool))
        tinted = np.stack([self.book.shown.images[row]] * 3, -1)
        tinted[here] = tinted[here] // 2 + np.array([115, 80, 0], dtype=np.uint8)
        return tinted


class ReconstructionExplorer(RunPanel):
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
        real, made = (torch.from_numpy(np.asarray(x, dtype=np.float32))[None, None] for x in (image / 255, back))
        inside = torch.from_numpy(brain_mask(image[None]))[:, None]
        scores = f"SSIM {ssim(made, real).item():.3f}, in the brain {ssim(made, real, mask=inside).item():.3f}"
        tiles = [("input", image), ("reconstruction", grey(back)), ("reconstruction - input", difference(back, image / 255))]
        tiles.append((f"{len(np.unique(codes))} different tokens", self.token_map(codes)))
        return self.cropped(
            tiles
        ), f"{subject}, slice index {self.book.slice_indices[row]}: {scores}, PSNR {psnr(made, real).item():.1f} dB"
