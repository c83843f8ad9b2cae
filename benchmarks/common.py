"""What the benchmarks share: the cohort they measure on, the recipe they start from, and where results go."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from oasis_lib.check import environment_line
from oasis_lib.cohort import Cohort, open_cohort
from oasis_lib.config import Part, TrainingConfig, VQVAEConfig
from oasis_lib.paths import PROJECT, user_path
from oasis_lib.run import open_run
from oasis_lib.storage import write_json
from oasis_lib.study import prepare_default

RESULTS = PROJECT / "benchmarks" / "results"


def options(about: str, minutes: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--cohort", default="", help="a prepared cohort's folder; empty is the synthetic one of 128 x 128 pixels"
    )
    parser.add_argument("--minutes", type=float, default=minutes, help="of training, for each model")
    parser.add_argument(
        "--steps", type=int, default=0, help="of training, for each model, where that comes first; 0 is no limit"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def cohort_of(given: argparse.Namespace) -> Cohort:
    if given.cohort:
        return open_cohort(user_path(given.cohort))
    with TemporaryDirectory() as folder:
        run = open_run(folder, "laptop")
    if not (run.cohort_folder / "cohort.json").is_file():
        prepare_default(run)
    return open_cohort(run.cohort_folder)


def limited(part: Part, given: argparse.Namespace) -> Part:
    """The same part with the benchmark's limits and seed in the place of its own."""
    limits = {"epochs": 0, "steps": given.steps, "minutes": given.minutes, "seed": given.seed}
    return Part(part.model, dataclasses.replace(part.training, **limits))


def ours(**changes: object) -> Part:
    """The study's own recipe, at the grid and codebook of the earlier ones unless told otherwise.

    Changes of model or training.
    """
    of_model = {field.name for field in dataclasses.fields(VQVAEConfig)}
    model = {name: value for name, value in changes.items() if name in of_model}
    training = {name: value for name, value in changes.items() if name not in of_model}
    return Part(
        VQVAEConfig(**({"factor": 4, "codebook_size": 512} | model)),
        TrainingConfig(**({"batch": 16, "lr": 2e-3} | training)),
    )


def report(
    name: str, given: argparse.Namespace, cohort: Cohort, table: pd.DataFrame, shown: pd.DataFrame | None = None
) -> Path:
    """Print the table (or a shorter one), and keep all of it in results/ with what is needed to read it later."""
    environment, each = (
        environment_line(),
        f"{given.steps} steps or " * bool(given.steps) + f"{given.minutes:g} minutes a model",
    )
    print(f"\n{environment}\n{cohort.folder.name}, {cohort.size} x {cohort.size}, {each}, seed {given.seed}\n")
    print((table.round(4) if shown is None else shown).to_string())
    about = {key: cohort.info[key] for key in ("hash", "size", "synthetic")}
    return keep(f"{name}-{cohort.folder.name}", given, table, cohort=about)


def keep(name: str, given: argparse.Namespace, table: pd.DataFrame, **about: object) -> Path:
    """The table as JSON, with when, on what and how it was made; what could not be measured is null."""
    path = RESULTS / f"{name}.json"
    rows = table.astype(object).where(table.notna(), None).reset_index(names="name").to_dict("records")
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(path, {"when": when, "environment": environment_line(), "options": vars(given), **about, "rows": rows})
    print(f"\nkept in {path.relative_to(PROJECT)}")
    return path
