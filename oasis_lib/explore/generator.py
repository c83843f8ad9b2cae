"""Two panels over a run's priors: generate slices, and fill in a box of a test slice."""

from __future__ import annotations

import numpy as np
from ipywidgets import FloatSlider, IntRangeSlider, IntText

from oasis_lib import sampling
from oasis_lib.explore.base import RunPanel, Tile, boxed, choice, grey, slider
from oasis_lib.models.prior import Inpainting

SHOWN = 4  # samples at a time


class PriorPanel(RunPanel):
    """What both share: the priors that are trained, and how tokens are drawn from them."""

    def open(self, run):
        super().open(run)
        self.cohort = self.book.cohort
        self.priors = sampling.trained_priors(run)

    def common(self) -> dict:
        slice_indices = max(1, self.cohort.slice_indices)
        shares = {"min": 0.1, "step": 0.05, "value": 1.0, "continuous_update": False}
        return {
            "prior": choice("prior", self.priors),
            "slice_index": slider("slice index", 0, slice_indices - 1, slice_indices // 2),
            "temperature": FloatSlider(description="temperature", max=1.5, **shares),
            "top_p": FloatSlider(description="top-p", max=1.0, **shares),
            "seed": IntText(description="seed", value=0),
        }

    def options(self, temperature: float, top_p: float, seed: int) -> dict:
        return {"temperature": temperature, "top_p": top_p if top_p < 1 else None, "seed": seed}


class Generator(PriorPanel):
    """Samples of any of the run's priors, at a slice index, CDR and sampling settings."""

    title = "Generator: draw slices from a prior"

    def controls(self):
        cdrs = [("any", -1)] + [(f"{cdr:g}", index) for index, cdr in enumerate(self.cohort.cdrs)]
        return self.common() | {"cdr": choice("CDR", cdrs, -1)}

    def actions(self):
        return {"Draw": self.sample}

    def examples(self):
        """Each prior once, at the middle slice index."""
        usual = {name: control.value for name, control in self.controls().items()}
        settings = [usual | {"prior": name} for name in self.priors]
        for values in settings:
            self.sample(**values)
        return settings

    def sample(self, prior: str, slice_index: int, temperature: float, top_p: float, seed: int, cdr: int) -> None:
        options = self.options(temperature, top_p, seed)
        options["cdr"] = cdr if cdr >= 0 and self.priors[prior].cdrs else None
        slice_indices = np.full(SHOWN, slice_index if self.cohort.slice_indices else -1)
        drawn = sampling.draw(self.priors[prior], self.book.model, slice_indices, **options)
        self.done[prior, slice_index, temperature, top_p, seed, cdr] = drawn

    def draw(self, prior: str, slice_index: int, temperature: float, top_p: float, seed: int, cdr: int) -> tuple[list[Tile], str]:
        drawn = self.done.get((prior, slice_index, temperature, top_p, seed, cdr))
        words = f"{prior}, slice index {slice_index}\ntemperature {temperature:g}, top-p {top_p:g}, seed {seed}"
        if drawn is None:
            return [("press Draw", np.zeros((8, 8), np.uint8))] * (SHOWN + 1), f"{words}\nnot drawn yet: press Draw"
        tiles = [(f"sample {number}", image) for number, image in enumerate(drawn["images"])]
        return self.cropped([("tokens of sample 0", self.token_map(drawn["codes"][0])), *tiles]), words


class Painter(PriorPanel):
    """A box over a test slice, and what a prior fills it with."""

    title = "Painter: choose a box, and fill it in"

    def open(self, run):
        super().open(run)
        self.priors = {name: prior for name, prior in self.priors.items() if isinstance(prior, Inpainting)}
        if not self.priors:
            raise FileNotFoundError(f"{run.folder} has no prior that can fill in: train the transformer in notebook 04")

    def controls(self):
        sliders = {}
        for way, side in zip(("down", "across"), self.codes.shape[1:]):
            middle = {"max": side - 1, "value": (side // 3, side - side // 3 - 1)}
            sliders[way] = IntRangeSlider(description=f"box, {way}", continuous_update=False, **middle)
        return {"subject": choice("subject", self.book.subjects)} | self.common() | sliders

    def actions(self):
        return {"Fill in": self.fill}

    def examples(self):
        """The middle of two subjects' slices, by the first prior."""
        usual = {name: control.value for name, control in self.controls().items()}
        settings = [usual | {"subject": subject} for subject in self.book.subjects[:2]]
        for values in settings:
            self.fill(**values)
        return settings

    def mask(self, down: tuple[int, int], across: tuple[int, int]) -> np.ndarray:
        mask = np.zeros(self.codes.shape[1:], bool)
        mask[down[0] : down[1] + 1, across[0] : across[1] + 1] = True
        return mask

    def fill(self, prior: str, temperature: float, top_p: float, seed: int, **where) -> None:
        """Draws the tokens inside the box anew; all others stay as they are."""
        codes = self.codes[self.book.slice_of(where["subject"], where["slice_index"])][None]
        options = self.options(temperature, top_p, seed)
        new = sampling.inpaint(
            self.priors[prior], codes, self.mask(where["down"], where["across"]), where["slice_index"], **options
        )[0]
        self.done[(prior, temperature, top_p, seed, *where.values())] = new

    def draw(self, prior: str, temperature: float, top_p: float, seed: int, **where) -> tuple[list[Tile], str]:
        codes, mask = (
            self.codes[self.book.slice_of(where["subject"], where["slice_index"])],
            self.mask(where["down"], where["across"]),
        )
        new = self.done.get((prior, temperature, top_p, seed, *where.values()))
        shown = codes if new is None else new
        before, after = map(grey, self.book.decode(np.stack([codes, shown])))
        (top, bottom), (left, right), factor = where["down"], where["across"], self.book.factor
        corner = [edge * factor for edge in (top, left, bottom - top + 1, right - left + 1)]
        tiles = [("decoded", boxed(before, *corner)), ("press Fill in" if new is None else "filled in", boxed(after, *corner))]
        tiles += [("its tokens", self.token_map(codes)), ("new tokens", self.token_map(shown))]
        changed, outside = (shown != codes).sum(), ((shown != codes) & ~mask).sum()
        words = f"{where['subject']}, slice index {where['slice_index']}\n{changed} of {mask.sum()} tokens in the box changed"
        return self.cropped(tiles), f"{words}, {outside} outside it"
