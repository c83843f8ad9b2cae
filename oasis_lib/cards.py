"""A model card and a data card beside the weights, in the form that model hubs read: YAML first, then Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader

from oasis_lib.storage import CONFIG, atomic, read_json

BY_TOKEN = "draws token maps one token after the other, and gives the probability of a map"
PURPOSE = {
    "vqvae": "encodes a brain slice as a small map of tokens, and reconstructs the slice from it",
    "transformer": BY_TOKEN,
    "pixelcnn": BY_TOKEN,
    "codegan": "draws whole token maps in one pass",
}
CARDS = {"README.md": "model_card.md", "DATA.md": "data_card.md"}


def write_cards(folder: str | Path, cohort: dict[str, Any]) -> None:
    """`cohort` is the cohort's cohort.json."""
    folder = Path(folder)
    config, history = read_json(folder / CONFIG), pd.read_csv(folder / "history.csv")
    kept = history.loc[history["score"].idxmax()].drop(["seconds", "images_per_second", "score"], errors="ignore")
    values = {
        "config": config,
        "cohort": cohort,
        "purpose": PURPOSE.get(config["kind"], "an earlier recipe, to be compared with"),
        "said": "SYNTHETIC: its subjects were grown from a template." if cohort["synthetic"] else "Its subjects are real.",
        "scores": {name: value for name, value in kept.items() if not name.startswith("train_")},
        "source": Path(str(cohort.get("source", "unknown"))).name,  # a folder's name, not where it lay on a machine
    }
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True)
    for name, template in CARDS.items():
        with atomic(folder / name) as beside:
            beside.write_text(templates.get_template(template).render(values) + "\n")
