"""A run's folder: the files that stages leave for each other, and the object through which a notebook reaches them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oasis_lib.cohort import Cohort, open_cohort
from oasis_lib.config import PRIORS, Part, Profile, profile
from oasis_lib.paths import data_home, project_path
from oasis_lib.storage import atomic, read_json, write_json

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

JUDGED = 300  # training steps; figures of a run say which of its models had fewer


@dataclass(frozen=True)
class Run:
    """`run.path("vqvae")`, `run.path("transformer")` ... are model folders."""

    folder: Path
    profile: Profile
    cohort_folder: Path

    @cached_property
    def cohort(self) -> Cohort:
        return open_cohort(self.cohort_folder)

    def part(self, name: str) -> Part:
        """A model's settings: `run.part("vqvae").training.epochs`."""
        return getattr(self.profile, name)

    def path(self, *names: str) -> Path:
        return self.folder.joinpath(*names)

    def needs(self, *names: str) -> None:
        """Refuse to go on without files of earlier stages."""
        for name in names:
            if not self.path(name).exists():
                raise FileNotFoundError(f"{self.path(name)} is missing: run the notebooks before this one first")

    def figure(self, name: str, figure: Figure, caption: str) -> Figure:
        """Keep a figure as figures/NN_name.png with its caption, and return it for the notebook to show."""
        if few := self.hardly_trained():
            from oasis_lib.figures.style import footnote

            said = ", ".join(f"{model} {steps}" for model, steps in few.items())
            footnote(figure, f"trained too little to be judged (steps of {JUDGED} needed: {said})")
        path = self.path("figures", f"{name}.png")
        with atomic(path) as beside:
            figure.savefig(beside, format="png")
        self._merge("figures/captions.json", {name: caption})
        return figure

    def hardly_trained(self) -> dict[str, int]:
        """Models of the run and their steps, where these are too few to show what the model can do."""
        found = {}
        for model in ("vqvae", *PRIORS):
            history = self.path(model, "history.csv")
            if history.is_file() and (steps := int(history.read_text().splitlines()[-1].split(",")[0])) < JUDGED:
                found[model] = steps
        return found

    def table(self, name: str, frame: pd.DataFrame, caption: str) -> pd.DataFrame:
        """Keep a table as tables/NN_name.json with its caption, and return it for the notebook to show."""
        kept = json.loads(frame.to_json(orient="split", double_precision=12))
        write_json(self.path("tables", f"{name}.json"), {"caption": caption} | kept)
        return frame

    def metrics(self, section: str, values: dict[str, Any]) -> None:
        """Put numbers into metrics.json, under a section of their own; what could not be measured is null."""
        self._merge("metrics.json", {section: values})

    def _merge(self, file: str, new: dict[str, Any]) -> None:
        write_json(self.path(file), read_json(self.path(file), {}) | new)


def open_run(
    run: str | Path = "runs/latest", profile_name: str = "laptop", cohort: str | Path = "", settings: Iterable[str] = ()
) -> Run:
    """The run folder (made if need be). `cohort` is a prepared folder; "" is the profile's own phantom."""
    chosen, folder = profile(profile_name, settings), project_path(run)
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder, chosen, project_path(cohort) if cohort else default_cohort(chosen))


def default_cohort(chosen: Profile) -> Path:
    c = chosen.cohort
    return data_home() / (f"phantom-{c.size}" if c.subjects == 60 else f"phantom-{c.size}-{c.subjects}")
