"""A model card and a data card beside the weights, in the form that model hubs read: YAML first, then Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from oasis_lib.checkpoint import CONFIG
from oasis_lib.paths import atomic, read_json

PURPOSE = {
    "vqvae": "writes a brain slice as a small map of codes, and draws the slice from the map",
    "transformer": "draws maps of codes one code after the other, and tells how probable a map is",
    "pixelcnn": "draws maps of codes one code after the other, and tells how probable a map is",
    "codegan": "draws whole maps of codes in one pass",
}

PEOPLE = "`snapshots.npz` shows reconstructions of a few validation people: leave it out where this folder is given away.\n\n"

MODEL = """---
library_name: oasis_lib
license: mit
tags: [vq-vae, brain-mri, {kind}{synthetic_tag}]
---
# {kind}

This model {purpose}. {synthetic}

**Meant for** teaching and method research. **Not for** clinical use, and not for telling anything about a person.

{people}Load it with `oasis_lib.models.load(folder)`: tensors and JSON are read, nothing is executed. Images are {size} in [0, 1].

| measured on validation people, at the step kept | |
|---|---|
{scores}

Trained on the cohort described in [DATA.md](DATA.md) (hash `{cohort}`).
All settings stand in `config.json`, every measurement in `history.csv`.
"""

DATA = """# Data

{synthetic} Source: {source}. Slices of {size} x {size} pixels, uint8; {intensity}.

| split | people | slices |
|---|---|---|
{splits}

Split by person: nobody is in two splits. Ratings in training people: {ratings}. Terms: {licence}. Hash `{hash}`.
"""


def write_cards(folder: str | Path, info: dict[str, Any]) -> None:
    """`info` is the cohort's cohort.json."""
    folder = Path(folder)
    config, history = read_json(folder / CONFIG), pd.read_csv(folder / "history.csv")
    said = "SYNTHETIC: its people were grown from a template." if info["synthetic"] else "Its people are real."
    kept = history.loc[history["score"].idxmax()].drop(["seconds", "images_per_second", "score"], errors="ignore")
    text = MODEL.format(
        kind=config["kind"],
        purpose=PURPOSE[config["kind"]],
        synthetic=said,
        synthetic_tag=", synthetic-data" if info["synthetic"] else "",
        size=f"{info['size']} x {info['size']} pixels",
        people=PEOPLE if config["kind"] == "vqvae" and not info["synthetic"] else "",
        scores="\n".join(f"| {name} | {value:.5g} |" for name, value in kept.items() if not name.startswith("train_")),
        cohort=info["hash"],
    )
    counts, people = info.get("counts", {}), info.get("people", {})
    data = DATA.format(
        synthetic=said,
        source=Path(str(info.get("source", "not told"))).name,  # a folder's name, not where it lay on somebody's machine
        size=info["size"],
        intensity=info.get("intensity", "intensity as it came"),
        splits="\n".join(f"| {name} | {people.get(name, '?')} | {count} |" for name, count in counts.items()),
        ratings=", ".join(f"{rating:g}" for rating in info.get("ratings", [])) or "none",
        licence=info.get("licence", "the source's own"),
        hash=info["hash"],
    )
    for name, content in (("README.md", text), ("DATA.md", data)):
        with atomic(folder / name) as beside:
            beside.write_text(content)
