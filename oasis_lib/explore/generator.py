"""The generator: a new brain of the prior, level, rating and settings that are asked for."""

from __future__ import annotations

import numpy as np
import torch
from ipywidgets import FloatSlider, IntText

from oasis_lib.config import PRIORS
from oasis_lib.explore.base import Panel, Tile, choice, colours, slider
from oasis_lib.models import load
from oasis_lib.run import Run
from oasis_lib.sampling import draw

SHOWN = 4  # samples at a time


class PriorPanel(Panel):
    """What generator and painter share: the run's VQ-VAE and those of its priors that are trained."""

    def __init__(self, run: Run):
        self.run_folder, self.cohort, self.is_synthetic = run, run.cohort, run.cohort.synthetic
        self.vqvae = load(run.path("vqvae"))
        self.names = [name for name in PRIORS if run.path(name, "model.safetensors").is_file()]
        if not self.names:
            raise FileNotFoundError(f"{run.folder} has no trained prior: run notebook 04 first")
        self.loaded: dict[str, torch.nn.Module] = {}

    def prior(self, name: str) -> torch.nn.Module:
        if name not in self.loaded:
            self.loaded[name] = load(self.run_folder.path(name))
        return self.loaded[name]

    def common(self) -> dict:
        return {
            "prior": choice("prior", self.names, self.names[0]),
            "level": slider("level", 1, max(1, self.cohort.levels), max(1, self.cohort.levels // 2)),
            "temperature": FloatSlider(description="temperature", min=0.1, max=1.5, step=0.05, value=1.0, continuous_update=False),
            "top_p": FloatSlider(description="top-p", min=0.1, max=1.0, step=0.01, value=1.0, continuous_update=False),
            "seed": IntText(description="seed", value=0),
        }

    def code_map(self, codes: np.ndarray) -> np.ndarray:
        return colours(codes, 0, self.vqvae.config.entries - 1)


class Generator(PriorPanel):
    title = "Generator: new brains from a prior"

    def __init__(self, run: Run):
        super().__init__(run)
        self.drawn: dict[tuple, dict] = {}

    def controls(self):
        ratings = [("open", -1)] + [(f"{rating:g}", index) for index, rating in enumerate(self.cohort.ratings)]
        return self.common() | {"rating": choice("rating", ratings, -1)}

    def actions(self):
        return {"Draw": self.sample}

    def examples(self):
        """Each prior once, at the middle level."""
        base = {"level": max(1, self.cohort.levels // 2), "temperature": 1.0, "top_p": 1.0, "seed": 0, "rating": -1}
        settings = [{"prior": name} | base for name in self.names]
        for values in settings:
            self.sample(**values)
        return settings

    def sample(self, prior: str, level: int, temperature: float, top_p: float, seed: int, rating: int) -> None:
        """Draws what the controls ask for, one after the other, telling how far it is, and keeps it."""
        levels = np.array([level - 1 if self.cohort.levels else -1])
        options = {"temperature": temperature, "top_p": top_p if top_p < 1 else None}
        options["rating"] = rating if rating >= 0 and self.prior(prior).ratings else None
        found = []
        for number in range(SHOWN):
            if "widget" in self.__dict__:
                self.words.value = f"drawing {number + 1} of {SHOWN} …"
            found.append(draw(self.prior(prior), self.vqvae, levels, seed=seed * SHOWN + number, **options))
        key = (prior, level, temperature, top_p, seed, rating)
        self.drawn[key] = {name: np.concatenate([one[name] for one in found]) for name in ("codes", "images")}

    def draw(self, prior: str, level: int, temperature: float, top_p: float, seed: int, rating: int) -> tuple[list[Tile], str]:
        found = self.drawn.get((prior, level, temperature, top_p, seed, rating))
        asked = f"{prior}, level {level}\ntemperature {temperature:g}, top-p {top_p:g}, seed {seed}"
        if found is None:
            blank = np.zeros((self.cohort.size,) * 2, np.uint8)
            return [("press Draw", blank)] * (SHOWN + 1), f"{asked}\nnot drawn yet: press Draw"
        tiles = [(f"sample {i + 1}", image) for i, image in enumerate(found["images"])]
        return [("codes of sample 1", self.code_map(found["codes"][0])), *tiles], asked
