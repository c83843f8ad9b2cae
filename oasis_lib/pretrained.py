"""Weights that come with the repository, of the laptop's synthetic cohort: taken where they fit, else trained."""

from __future__ import annotations

import filecmp
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from oasis_lib.config import PROFILES, Part
from oasis_lib.models import load
from oasis_lib.paths import PROJECT
from oasis_lib.run import Run
from oasis_lib.storage import STATE, WEIGHTS, content_hash, read_json
from oasis_lib.training import train_prior, train_vqvae

HOME = PROJECT / "data" / "pretrained"
LOOKS = 40  # steps between two points of the curve that is trained live
MANIFEST = "manifest.json"  # how they were made: command, commit, cohort; every file's hash


def trained(run: Run, kind: str, *, scratch: bool = False) -> pd.DataFrame:
    """The history of the run's model: copied from the repository if it fits and not `scratch`, else trained."""
    folder = run.path(kind)
    reason = "scratch" if scratch else misfit(run, kind)
    if not reason:
        return _take(kind, folder)
    if taken(folder):  # by an earlier call, under other settings: a copy is no work of the user's
        shutil.rmtree(folder)
    if reason.startswith(str(HOME)):
        print(f"{reason}; {kind} is trained instead")
    if kind == "vqvae":
        return train_vqvae(run.cohort, folder, run.part(kind))
    return train_prior(kind, run.cohort, run.path("vqvae"), folder, run.part(kind))


def live(run: Run) -> pd.DataFrame | None:
    """The history of the same VQ-VAE trained here for as long as the profile says, where the run's own is a copy.

    Its decoder stays the faithful one. It is there to be watched: nothing else uses it.
    """
    if not taken(run.path("vqvae")):
        return None
    part = run.part("vqvae")
    often = replace(part.training, validate_every=LOOKS)
    return train_vqvae(run.cohort, run.path("live"), Part(replace(part.model, adversarial=0.0), often))


def taken(folder: Path) -> bool:
    """Whether a run's model is a copy of one that came with the repository."""
    own, shipped = folder / WEIGHTS, HOME / folder.name / WEIGHTS
    return own.is_file() and shipped.is_file() and filecmp.cmp(own, shipped, shallow=False)


def misfit(run: Run, kind: str) -> str:
    """Why the repository's model is not the run's, or nothing: other settings, subjects, tokens, or an altered file."""
    if run.part(kind) != getattr(PROFILES["laptop"], kind) or not (HOME / kind).is_dir():
        return "other settings"
    try:
        about = read_json(HOME / MANIFEST)
        if run.cohort.info.get("request") != about["cohort"]:
            return "other subjects"
        for path, hashed in ((HOME / name, hashed) for name, hashed in about["files"].items()):
            if not path.is_file() or content_hash(path) != hashed:
                return f"{path} is missing or was altered"
        if kind != "vqvae" and not taken(run.path("vqvae")):
            return "other tokens"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{HOME}: {error}"
    return ""


def _take(kind: str, folder: Path) -> pd.DataFrame:
    if not taken(folder):
        if any((folder / name).is_file() for name in (WEIGHTS, STATE)):
            raise ValueError(f"{folder} holds a model that was trained here; choose another run, or set scratch")
        beside = folder.with_name(f".{kind}.part")  # a copy that was cut short is none
        for left in (beside, folder):
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(HOME / kind, beside)
        beside.rename(folder)
    load(folder)  # checks what was copied
    history = pd.read_csv(folder / "history.csv")
    steps, minutes = int(history["step"].iloc[-1]), history["seconds"].iloc[-1] / 60
    print(f"{kind}: weights of the repository ({steps:,} steps in {minutes:.0f} minutes); scratch=true trains anew")
    return history
