"""The painter: a box over a real slice, and what a prior puts into it."""

from __future__ import annotations

import numpy as np
from ipywidgets import IntRangeSlider

from oasis_lib.explore.base import Tile, boxed, choice
from oasis_lib.explore.generator import PriorPanel
from oasis_lib.models.prior import Inpainting
from oasis_lib.run import Run
from oasis_lib.sampling import inpaint
from oasis_lib.training import decode_codes


class Painter(PriorPanel):
    title = "Painter: choose a box, and fill it in"

    def __init__(self, run: Run):
        super().__init__(run)
        self.names = [name for name in self.names if isinstance(self.prior(name), Inpainting)]
        if not self.names:
            raise FileNotFoundError(f"{run.folder} has no prior that can fill in: train the transformer in notebook 04")
        self.test, self.codes = run.cohort["test"], np.load(run.path("codes", "test.npy"), mmap_mode="r")
        self.filled: dict[tuple, np.ndarray] = {}

    def controls(self):
        rows, columns = self.codes.shape[1:]
        people = {"person": choice("person", list(np.unique(self.test.subjects)))}
        box = {"down": span("box, down", rows), "across": span("box, across", columns)}
        return people | self.common() | box

    def actions(self):
        return {"Fill in": self.fill}

    def examples(self):
        """The middle of two people's heads, by the first prior."""
        rows, columns = self.codes.shape[1:]
        box = {"down": third(rows), "across": third(columns)}
        rest = {"prior": self.names[0], "level": max(1, self.cohort.levels // 2), "temperature": 1.0, "top_p": 1.0, "seed": 0}
        settings = [{"person": person} | rest | box for person in np.unique(self.test.subjects)[:2]]
        for values in settings:
            self.fill(**values)
        return settings

    def row(self, person: str, level: int) -> int:
        rows = np.flatnonzero(self.test.subjects == person)
        return int(rows[np.abs(self.test.levels[rows] - (level - 1)).argmin()])

    def mask(self, down: tuple[int, int], across: tuple[int, int]) -> np.ndarray:
        mask = np.zeros(self.codes.shape[1:], bool)
        mask[down[0] - 1 : down[1], across[0] - 1 : across[1]] = True
        return mask

    def fill(
        self, person: str, prior: str, level: int, temperature: float, top_p: float, seed: int, **box: tuple[int, int]
    ) -> None:
        """Draws the codes inside the box anew; all others stay as they are."""
        codes, options = self.codes[self.row(person, level)][None], {"temperature": temperature, "seed": seed}
        options["top_p"] = top_p if top_p < 1 else None
        new = inpaint(self.prior(prior), codes, self.mask(**box), level - 1, **options)
        self.filled[person, prior, level, temperature, top_p, seed, *box.values()] = new[0]

    def draw(
        self, person: str, prior: str, level: int, temperature: float, top_p: float, seed: int, **box: int
    ) -> tuple[list[Tile], str]:
        row, mask = self.row(person, level), self.mask(**box)
        codes = self.codes[row]
        new = self.filled.get((person, prior, level, temperature, top_p, seed, *box.values()))
        shown = codes if new is None else new
        before, after = decode_codes(self.vqvae, np.stack([codes, shown]))
        factor = self.cohort.size // codes.shape[0]
        (top, bottom), (left, right) = box["down"], box["across"]
        corner = ((top - 1) * factor, (left - 1) * factor, (bottom - top + 1) * factor, (right - left + 1) * factor)
        tiles = [("decoded", boxed(before, *corner)), ("filled in" if new is not None else "press Fill in", boxed(after, *corner))]
        tiles += [("its codes", self.code_map(codes)), ("new codes", self.code_map(shown))]
        changed, outside = shown != codes, int(((shown != codes) & ~mask).sum())
        return (
            tiles,
            f"{person}, level {level}\n{int(changed.sum())} of {int(mask.sum())} codes in the box changed, {outside} outside it",
        )


def third(side: int) -> tuple[int, int]:
    """The middle third of a grid's side, first and last place, counted from 1."""
    return 1 + side // 3, max(1 + side // 3, side - side // 3)


def span(label: str, side: int) -> IntRangeSlider:
    """Both edges of the box on one slider: drag an end, or the whole box between them."""
    return IntRangeSlider(description=label, min=1, max=side, value=third(side), continuous_update=False)
