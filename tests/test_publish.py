"""The gallery is made of finished laptop runs on synthetic subjects alone; pictures shrink, widgets and this machine's paths go."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image

from oasis_lib.storage import write_json

sys.path.insert(0, str(PROJECT / "images"))
import publish

FINE = {"profile": "laptop", "cohort_info": {"synthetic": True}, "stages": {"01_cohort": {"status": "finished"}}}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"profile": "smoke"}, "is a smoke run"),
        ({"cohort_info": {"synthetic": False}}, "shows real subjects"),
        ({"stages": {"02_vqvae": {"status": "failed"}}}, "02_vqvae is failed"),
    ],
)
def test_other_runs_are_refused(change: dict, words: str, tmp_path: Path):
    write_json(tmp_path / "run.json", FINE)
    publish.refuse(tmp_path)
    write_json(tmp_path / "run.json", FINE | change)
    with pytest.raises(SystemExit, match=words):
        publish.refuse(tmp_path)


def test_outputs_shrink_and_say_nothing_of_this_machine():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 3000, 3), np.uint8)).save(file, "png")
    encoded = base64.b64encode(file.getvalue()).decode()
    output = nbformat.v4.new_output(
        "display_data", {"image/png": encoded, "application/vnd.jupyter.widget-view+json": {}}
    )
    said = nbformat.v4.new_output(
        "stream", text="kept in /home/me/study/runs/x.png; see https://arxiv.org/abs/1711.00937"
    )
    linked = nbformat.v4.new_markdown_cell(
        "[a](../docs/references.md#ssim), [b](notebooks/01_cohort.ipynb), [c](02_vqvae.ipynb)"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output, said]), linked])
    notebook.metadata["widgets"] = {"state": 1}
    made = publish.published(notebook)
    shown, text = made.cells[0].outputs
    kind = next(iter(shown["data"]))
    image = Image.open(io.BytesIO(base64.b64decode(shown["data"][kind])))
    assert (
        image.size == (publish.WIDEST, round(400 * publish.WIDEST / 3000))
        and list(shown["data"]) == [kind]
        and "widgets" not in made.metadata
    )
    assert made.cells[1].source == "[a](../references.md#ssim), [b](01_cohort.ipynb), [c](02_vqvae.ipynb)"
    assert text["text"] == "kept in x.png; see https://arxiv.org/abs/1711.00937"


def test_pages_share_their_styles_and_keep_pictures_in_files(tmp_path: Path):
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "png")
    picture = f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
    pages = [f"<head><style>a{{}}</style></head><style>{own}</style>{picture}" for own in ("b{}", "c{}")]
    made = [publish.beside(page, tmp_path, name) for name, page in zip(("one", "two"), pages)]
    assert made[0] == '<head><link rel="stylesheet" href="style.css"></head><img src="figures/one-0.webp">'
    assert (tmp_path / "style.css").read_text().split() == ["a{}", "b{}", "c{}"]
    assert Image.open(tmp_path / "figures" / "two-0.webp").size == (8, 8)
