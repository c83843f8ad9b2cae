"""Two panels to perturb with: replace single tokens, and walk from one subject to another."""

from __future__ import annotations

import numpy as np

from oasis_lib.evaluation.codebook import farthest
from oasis_lib.explore.base import RunPanel, Tile, boxed, choice, difference, grey, slider
from oasis_lib.sampling import interpolate

STEPS = 12  # of a walk


class CodeEditor(RunPanel):
    """Replace a slice's tokens one at a time, and see what changes in the image and where."""

    title = "Token editor: choose a position, replace its token"

    def open(self, run):
        super().open(run)
        self.kept: dict[int, np.ndarray] = {}  # slice -> its edited map
        self.by_brightness = np.argsort(self.book.shades)

    def controls(self):
        (height, width), count = self.codes.shape[1:], len(self.by_brightness)
        return self.subject_and_slice() | {
            "row": slider("row", 0, height - 1, height // 2),
            "column": slider("column", 0, width - 1, width // 2),
            "place": slider("brightness", 0, count - 1, count // 2),
        }

    def actions(self):
        return {"Keep this one": self.keep, "Undo all": lambda **_: self.kept.clear()}

    def examples(self):
        """The centre of three subjects, each given the least similar token."""
        settings, places = [], np.argsort(self.by_brightness)
        row, column = (side // 2 for side in self.codes.shape[1:])
        for subject in self.book.subjects[:3]:
            old = self.codes[self.book.slice_of(subject, self.book.middle)][row, column]
            place = int(places[farthest(self.book.codebook, old, self.book.counts)])
            settings.append({"subject": subject, "slice_index": self.book.middle, "row": row, "column": column, "place": place})
        return settings

    def edit(self, subject: str, slice_index: int, row: int, column: int, place: int) -> tuple[int, np.ndarray]:
        index = self.book.slice_of(subject, slice_index)
        edited = self.kept.get(index, self.codes[index]).copy()
        edited[row, column] = self.by_brightness[place]
        return index, edited

    def keep(self, **values) -> None:
        index, edited = self.edit(**values)
        self.kept[index] = edited

    def draw(self, row: int, column: int, **others) -> tuple[list[Tile], str]:
        index, edited = self.edit(row=row, column=column, **others)
        before, after, factor = self.decoded(index), self.book.decode(edited), self.book.factor
        cell, area = (row, column, 1, 1), (row * factor, column * factor, factor, factor)
        tiles = [
            ("decoded", grey(before)),
            (f"token {self.codes[index][row, column]} replaced by {edited[row, column]}", boxed(grey(after), *area)),
            ("difference", boxed(difference(after, before), *area)),
            ("tokens, by brightness", boxed(self.token_map(edited), *cell)),
        ]
        changed = np.abs(after - before) > 0.01
        outside = changed.copy()
        outside[area[0] : area[0] + factor, area[1] : area[1] + factor] = False
        words = f"{(edited != self.codes[index]).sum()} of {edited.size} tokens changed; "
        return self.cropped(
            tiles
        ), f"{words}{changed.sum()} pixels moved by more than 1 %, {outside.sum()} of them outside the frame"


class Walk(RunPanel):
    """From one subject to another: pixels mixed, latents mixed, those quantised again, and tokens exchanged one by one."""

    title = "Walk from one subject to another, four ways"

    def controls(self):
        subjects = self.book.subjects
        ends = {"start": choice("from", subjects), "end": choice("to", subjects, subjects[-1])}
        return ends | {"slice_index": self.subject_and_slice()["slice_index"], "step": slider("step", 0, STEPS, STEPS // 2)}

    def actions(self):
        return {"Walk": self.walk}

    def examples(self):
        ends = {"start": self.book.subjects[0], "end": self.book.subjects[-1], "slice_index": self.book.middle}
        self.walk(**ends)
        return [ends | {"step": step} for step in range(0, STEPS + 1, STEPS // 4)]

    def walk(self, start: str, end: str, slice_index: int, step: int = 0) -> None:
        """Every step at once."""
        rows = [self.book.slice_of(subject, slice_index) for subject in (start, end)]
        images, codes = np.asarray(self.book.shown.images[rows]), self.codes[rows]
        share = np.linspace(0, 1, STEPS + 1)[:, None, None]
        mixed, exchanged = interpolate(self.book.codebook, *codes, STEPS + 1)
        self.done[start, end, slice_index] = {
            "pixels mixed": images[0] / 255 * (1 - share) + images[1] / 255 * share,
            "latents mixed": self.book.decode_latents(mixed),
            "mixed and quantised": self.book.decode(self.book.snap(mixed)),
            "tokens exchanged": self.book.decode(exchanged),
            "tokens": exchanged,
        }

    def draw(self, start: str, end: str, slice_index: int, step: int) -> tuple[list[Tile], str]:
        taken = self.done.get((start, end, slice_index))
        if taken is None:
            first, last = (np.asarray(self.book.shown.images[self.book.slice_of(subject, slice_index)]) for subject in (start, end))
            faded = grey((first * (1 - step / STEPS) + last * (step / STEPS)) / 255)
            tiles = [(start, first), ("pixels mixed", faded), (end, last)]
            return self.cropped(tiles), "press Walk to go through the model"
        tiles = [(name, grey(frames[step])) for name, frames in taken.items() if name != "tokens"]
        tiles.append(("tokens", self.token_map(taken["tokens"][step])))
        return self.cropped(tiles), f"step {step} of {STEPS} from {start} to {end}"
