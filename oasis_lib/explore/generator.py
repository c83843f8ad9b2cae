"""Two panels over a run's priors: generate slices, and fill in a box of a test slice."""

from __future__ import annotations

import numpy as np
from ipywidgets import FloatSlider, IntRangeSlider, IntText

from oasis_lib import sampling
from oasis_lib.explore.base import Panel, Tile, boxed, choice, grey, slider
from oasis_lib.models.prior import Inpainting

SHOWN = 4  # samples at a time


class PriorPanel(Panel):
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
            "guidance": FloatSlider(description="guidance", max=2.0, **shares | {"min": 0.0, "value": 0.0}),
            "seed": IntText(description="seed", value=0),
        }


class Generator(PriorPanel):
    """Samples of any of the run's priors, at a slice index, CDR and sampling settings."""

    title, button = "Generator: draw slices from a prior", "Draw"

    def controls(self):
        cdrs = [("any", -1)] + [(f"{cdr:g}", index) for index, cdr in enumerate(self.cohort.cdrs)]
        return self.common() | {"cdr": choice("CDR", cdrs)}

    def examples(self):
        """Each prior once, at the middle slice index."""
        return [self.usual(prior=name) for name in self.priors]

    def work(self, prior: str, slice_index: int, cdr: int, **how) -> dict[str, np.ndarray]:
        indices = np.full(SHOWN, slice_index if self.cohort.slice_indices else -1)
        cdr = cdr if cdr >= 0 and self.priors[prior].cdrs else None
        return sampling.draw(self.priors[prior], self.book.model, indices, cdr=cdr, **how)

    def draw(self, result: dict | None, **values) -> tuple[list[Tile], str]:
        words = "{prior}, slice index {slice_index}, seed {seed}\n".format(**values)
        words += "temperature {temperature:g}, top-p {top_p:g}, guidance {guidance:g}".format(**values)
        if result is None:
            return [("press Draw", np.zeros((8, 8), np.uint8))] * (SHOWN + 1), f"{words}\nnot drawn yet: press Draw"
        tiles = [("tokens of sample 0", self.token_map(result["codes"][0]))]
        tiles += [(f"sample {number}", image) for number, image in enumerate(result["images"])]
        return self.cropped(tiles), words


class Painter(PriorPanel):
    """A box over a test slice, and what a prior fills it with."""

    title, button = "Painter: choose a box, and fill it in", "Fill in"

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

    def examples(self):
        """The middle of two subjects' slices, by the first prior."""
        return [self.usual(subject=subject) for subject in self.book.subjects[:2]]

    def given(self, subject: str, slice_index: int, down: tuple, across: tuple) -> tuple[np.ndarray, np.ndarray]:
        """A test slice's tokens (h, w), and the box as a mask (h, w)."""
        codes = self.codes[self.book.slice_of(subject, slice_index)]
        mask = np.zeros(codes.shape, bool)
        mask[down[0] : down[1] + 1, across[0] : across[1] + 1] = True
        return codes, mask

    def work(self, subject, prior, slice_index, down, across, **how) -> np.ndarray:
        """The tokens inside the box drawn anew; all others stay as they are."""
        codes, mask = self.given(subject, slice_index, down, across)
        return sampling.inpaint(self.priors[prior], codes[None], mask, slice_index, **how)[0]

    def draw(self, result, subject, slice_index, down, across, **_) -> tuple[list[Tile], str]:
        codes, mask = self.given(subject, slice_index, down, across)
        shown, name = (codes, "press Fill in") if result is None else (result, "filled in")
        (top, bottom), (left, right), factor = down, across, self.book.factor
        corner = [edge * factor for edge in (top, left, bottom - top + 1, right - left + 1)]
        before, after = (boxed(grey(image), *corner) for image in self.book.decode(np.stack([codes, shown])))
        tiles = [("decoded", before), (name, after)]
        tiles += [("its tokens", self.token_map(codes)), ("new tokens", self.token_map(shown))]
        changed = shown != codes
        words = f"{subject}, slice index {slice_index}\n{changed.sum()} of {mask.sum()} tokens in the box changed"
        return self.cropped(tiles), f"{words}, {(changed & ~mask).sum()} outside it"
