"""Templates; of two of them, a model card and a data card beside the weights, in the form that model hubs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, Template

from oasis_lib.storage import CONFIG, atomic, read_json

CARDS = {"README.md": "model_card.md", "DATA.md": "data_card.md"}


def template(name: str) -> Template:
    options = {"trim_blocks": True, "lstrip_blocks": True, "autoescape": name.endswith(".html")}
    return Environment(loader=FileSystemLoader(Path(__file__).parent), **options).get_template(name)


def write_cards(folder: str | Path, cohort: dict[str, Any]) -> None:
    """`cohort` is what its cohort.json holds."""
    folder = Path(folder)
    history = pd.read_csv(folder / "history.csv")
    kept = history.loc[history["score"].idxmax()].drop(["seconds", "images_per_second", "score"], errors="ignore")
    values = {
        "config": read_json(folder / CONFIG),
        "cohort": cohort,
        "scores": {name: value for name, value in kept.items() if not name.startswith("train_")},
        "source": Path(str(cohort.get("source", "unknown"))).name,  # a folder's name, not where it lay on a machine
    }
    for name, card in CARDS.items():
        with atomic(folder / name) as beside:
            beside.write_text(template(card).render(values) + "\n")
