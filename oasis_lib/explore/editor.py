"""Two panels to tamper with: swap single codes, and walk from one person to another."""

from __future__ import annotations

import numpy as np

from oasis_lib.evaluation.codebook import farthest
from oasis_lib.explore.base import Tile, boxed, choice, difference, grey, slider
from oasis_lib.explore.codebook import CodebookPanel
from oasis_lib.sampling import interpolate

STEPS = 12  # of a walk


class CodeEditor(CodebookPanel):
    title = "Code editor: choose a position, swap its code"

    def __init__(self, run):
        super().__init__(run)
        self.kept: dict[int, np.ndarray] = {}  # slice -> its edited map
        self.by_brightness = np.argsort(self.book.shades)

    def controls(self):
        height, width = self.codes.shape[1:]
        bright = len(self.by_brightness)
        return self.person_and_level() | {
            "row": slider("row", 1, height, height // 2),
            "column": slider("column", 1, width, width // 2),
            "place": slider("new code", 1, bright, bright // 2),
        }

    def actions(self):
        return {"Keep this swap": self.keep, "Undo all": self.undo}

    def examples(self):
        """The centre of three people, each given the entry least like its own."""
        settings, places = [], np.argsort(self.by_brightness)
        row, column = (side // 2 for side in self.codes.shape[1:])
        for person in self.book.people[:3]:
            old = self.codes[self.book.slice_of(person, self.book.middle)][row - 1, column - 1]
            new = farthest(self.book.codebook, old, self.book.counts)
            here = {"person": person, "level": self.book.middle + 1, "row": row, "column": column}
            settings.append(here | {"place": 1 + int(places[new])})
        return settings

    def edit(self, person: str, level: int, row: int, column: int, place: int) -> tuple[int, np.ndarray]:
        index = self.book.slice_of(person, level - 1)
        edited = self.kept.get(index, self.codes[index]).copy()
        edited[row - 1, column - 1] = self.by_brightness[place - 1]
        return index, edited

    def draw(self, row: int, column: int, **others) -> tuple[list[Tile], str]:
        index, edited = self.edit(row=row, column=column, **others)
        before, after = self.decoded(index), self.book.decode(edited)
        old, new, factor = self.codes[index][row - 1, column - 1], edited[row - 1, column - 1], self.book.factor
        cell, area = (row - 1, column - 1, 1, 1), ((row - 1) * factor, (column - 1) * factor, factor, factor)
        tiles = [
            ("decoded", grey(before)),
            (f"code {old} made {new}", boxed(grey(after), *area)),
            ("what changed", boxed(difference(after, before), *area)),
            ("code map", boxed(self.code_map(edited), *cell)),
        ]
        changed = np.abs(after - before) > 0.01
        outside = changed.copy()
        outside[area[0] : area[0] + factor, area[1] : area[1] + factor] = False
        words = (
            f"{(edited != self.codes[index]).sum()} of {edited.size} codes changed; {changed.sum()} pixels moved by more than 1 %"
        )
        return tiles, f"{words}, {outside.sum()} of them outside the frame"

    def keep(self, **values) -> None:
        index, edited = self.edit(**values)
        self.kept[index] = edited

    def undo(self, **_) -> None:
        self.kept.clear()


class Walk(CodebookPanel):
    title = "Walk from one person to another, four ways"

    def __init__(self, run):
        super().__init__(run)
        self.walks: dict[tuple, dict[str, np.ndarray]] = {}

    def controls(self):
        both = self.person_and_level()
        people = self.book.people
        return {"start": choice("from", people), "end": choice("to", people, people[-1]), "level": both["level"]} | {
            "step": slider("step", 0, STEPS, STEPS // 2)
        }

    def actions(self):
        return {"Walk": self.walk}

    def examples(self):
        people, level = self.book.people, self.book.middle + 1
        self.walk(people[0], people[-1], level)
        return [{"start": people[0], "end": people[-1], "level": level, "step": step} for step in range(0, STEPS + 1, STEPS // 4)]

    def walk(self, start: str, end: str, level: int, step: int = 0) -> None:
        """Every step at once: pixels mixed, latents mixed, those snapped to the codebook, and codes exchanged one by one."""
        rows = [self.book.slice_of(person, level - 1) for person in (start, end)]
        images, codes = np.asarray(self.book.shown.images[rows]), self.codes[rows]
        share = np.linspace(0, 1, STEPS + 1)[:, None, None]
        mixed, exchanged = interpolate(self.book.codebook, *codes, STEPS + 1)
        snapped = self.book.snap(mixed)
        self.walks[start, end, level] = {
            "pixels mixed": images[0] / 255 * (1 - share) + images[1] / 255 * share,
            "latents mixed": self.book.decode_latents(mixed),
            "mixed, then snapped": self.book.decode(snapped),
            "codes exchanged": self.book.decode(exchanged),
            "codes": exchanged,
        }

    def draw(self, start: str, end: str, level: int, step: int) -> tuple[list[Tile], str]:
        taken = self.walks.get((start, end, level))
        if taken is None:
            first, last = (np.asarray(self.book.shown.images[self.book.slice_of(person, level - 1)]) for person in (start, end))
            faded = grey((first * (1 - step / STEPS) + last * (step / STEPS)) / 255)
            return [(start, first), ("pixels mixed", faded), (end, last)], "press Walk to go through the model"
        tiles = [(name, grey(frames[step])) for name, frames in taken.items() if name != "codes"]
        return [*tiles, ("code map", self.code_map(taken["codes"][step]))], f"step {step} of {STEPS} from {start} to {end}"
