"""The whole study on little data: every cell of every notebook, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT, Smoke, oasis
from PIL import Image

from oasis_lib import report
from oasis_lib.config import PRIORS

pytestmark = pytest.mark.slow
STAGES = sorted(p.stem for p in (PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def papermill(notebook: str, out: Path, *words: str, cwd: Path, data: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(PROJECT / "notebooks" / notebook),
        str(out),
        "--no-progress-bar",
        *words,
    ]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | {"OASIS_DATA": str(data)}, capture_output=True, text=True, timeout=300
    )


def test_six_stages_run_and_say_how_long_they_took(smoke: Smoke):
    assert [re.sub(r"^\d\d_", "", name) for name in STAGES] == [
        "cohort",
        "vqvae",
        "codebook",
        "priors",
        "generation",
        "evaluation",
    ]
    for name in STAGES:
        assert re.search(rf"^{name}\s+[\d.]+ min", smoke.printed, re.M)
    assert str(smoke.folder / "report.html") in smoke.printed and "ssim" in smoke.printed.lower()
    print(f"\nsmoke study: {smoke.seconds:.0f} s")


@pytest.mark.parametrize("name", [*STAGES, "driver"])
def test_every_cell_completed(smoke: Smoke, name: str):
    cells = json.loads((smoke.folder / f"{name}.ipynb").read_text())["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["metadata"]["papermill"]["status"] == "completed"
            assert not [o for o in cell["outputs"] if o["output_type"] == "error"]


def test_every_promised_file_is_there(smoke: Smoke):
    models = [
        f"{kind}/{file}" for kind in ("vqvae", *PRIORS) for file in ("model.safetensors", "config.json", "history.csv")
    ]
    codes = [f"codes/{split}.npy" for split in ("train", "validate", "test", "lesion")]
    pages = [f"{name}.{kind}" for name in STAGES for kind in ("ipynb", "html")]
    for file in [*models, *codes, *pages, "metrics.json", "run.json", "report.html", "driver.ipynb"]:
        assert (smoke.folder / file).stat().st_size > 100, file


def test_figures_are_wide_not_blank_and_have_captions(smoke: Smoke):
    captions = json.loads((smoke.folder / "figures" / "captions.json").read_text())
    figures = {p.stem: p for p in (smoke.folder / "figures").glob("*.png")}
    assert figures.keys() == captions.keys()
    for name in STAGES:
        assert sum(f.startswith(name[:2]) for f in figures) >= 5, name
    for name, path in figures.items():
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.shape[1] >= 1000, name
        assert pixels.std() > 4, f"{name} is blank"
        assert len(captions[name]) > 15, name


def test_metrics_are_finite(smoke: Smoke):
    def numbers(value: object):
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from numbers(inner)
        elif value is None or isinstance(value, int | float):
            yield value

    def refuse(name: str):
        raise AssertionError(f"metrics.json holds {name}")

    metrics = json.loads((smoke.folder / "metrics.json").read_text(), parse_constant=refuse)
    found = list(numbers(metrics))
    assert len(found) > 100 and len(metrics) >= 5
    assert found.count(None) < 0.08 * len(found), "what could not be measured is null, and rare"


def test_the_manifest_tells_how_it_was_made(smoke: Smoke):
    manifest = json.loads((smoke.folder / "run.json").read_text())
    assert list(manifest["stages"]) == STAGES
    for stage in manifest["stages"].values():
        assert stage["status"] == "finished" and stage["seconds"] > 0
    peaks = [stage["peak_memory_bytes"] for stage in manifest["stages"].values()]
    assert min(peaks) > 1e8 and len(set(peaks)) == len(peaks), "each stage's own"
    assert manifest["cohort_info"]["hash"] and manifest["cohort_info"]["synthetic"] and "commit" in manifest["git"]


def test_pages_load_nothing_from_a_network(smoke: Smoke):
    for page in smoke.folder.glob("*.html"):
        text = page.read_text()
        assert not re.search(r"""<(script|link|img|iframe)[^>]+(src|href)\s*=\s*["']?(https?:)?//""", text), page.name
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//|\bimport\s*\(?['\"]https?:", text), page.name
    report = (smoke.folder / "report.html").read_text()
    captions = json.loads((smoke.folder / "figures" / "captions.json").read_text())
    assert report.count("data:image/png;base64,") == len(captions) and "SYNTHETIC" in report
    for name in STAGES:
        assert f'<a href="{name}.html">' in report and f"{name}\n- " in smoke.printed, (
            "the sentences that it closes with"
        )
    assert len(list((smoke.folder / "tables").glob("*.json"))) >= 6 and report.count("<table") >= 8


def test_the_first_picture_of_readme_is_made_of_a_synthetic_run_alone(smoke: Smoke, tmp_path: Path):
    script, run = [sys.executable, str(PROJECT / "images" / "overview.py")], tmp_path / "run"
    subprocess.run([*script, str(smoke.folder), str(tmp_path / "made.png")], check=True, cwd=PROJECT)
    assert np.asarray(Image.open(tmp_path / "made.png").convert("L")).std() > 4
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"cohort_info": {"synthetic": False}}))
    refused = subprocess.run([*script, str(run)], cwd=PROJECT, capture_output=True, text=True)
    assert refused.returncode == 1 and "shows real subjects" in refused.stderr


def test_readme_snippet_runs(monkeypatch):
    monkeypatch.chdir(PROJECT)
    snippet = re.search(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.S).group(1)
    found: dict = {}
    exec(snippet, found)
    assert (
        found["slices"].shape == (4, 1, 128, 128) and found["nats"].shape == (4,) and len(found["tokens"].unique()) > 1
    )


def test_the_results_and_each_notebooks_headline_stand_first(smoke: Smoke):
    """The driver shows one figure a notebook, with its sentences: those that say what it found. The rest is folded."""
    figures = report.HEADLINES[1:]
    assert set(figures) <= set(json.loads((smoke.folder / "figures" / "captions.json").read_text()))
    first, folded = report.summary(smoke.folder).split("<details>")
    assert first.count("<img") == len(STAGES) and all(f"{name}: " in first for name in figures) and "<img" not in folded
    assert first.index("<table") < first.index("<img") and first.count("<table") == 1 and folded.count("<table") >= 6
    page = (smoke.folder / "report.html").read_text()
    assert page.count("<details>") == len(STAGES) and page.index("<table") < page.index("<details>")


def test_a_second_run_computes_nothing(smoke: Smoke):
    files = {
        p: p.stat().st_mtime_ns for p in smoke.folder.rglob("*") if p.suffix in {".safetensors", ".npy", ".npz", ".png"}
    }
    printed = oasis("study", "--profile", "smoke", "--run", smoke.folder, data=smoke.data)
    assert all(re.search(rf"^{name}\s+done already", printed, re.M) for name in STAGES)
    assert files == {p: p.stat().st_mtime_ns for p in files}


def test_a_mistyped_parameter_is_refused_by_hand_too(smoke: Smoke, tmp_path: Path):
    words = ["-p", "epcohs", "5", "-p", "profile", "smoke", "-p", "run", str(tmp_path / "run")]
    done = papermill("02_vqvae.ipynb", tmp_path / "out.ipynb", *words, cwd=tmp_path, data=smoke.data)
    assert done.returncode != 0 and "no 02_vqvae parameter 'epcohs'" in done.stderr


@pytest.mark.parametrize("name", ["03_codebook", "06_evaluation"])
def test_a_notebook_runs_alone_from_any_folder(smoke: Smoke, tmp_path: Path, name: str):
    run = tmp_path / "run"
    shutil.copytree(smoke.folder, run)
    shutil.rmtree(run / "figures")
    words = ["-p", "profile", "smoke", "-p", "run", str(run)]
    done = papermill(f"{name}.ipynb", tmp_path / "out.ipynb", *words, cwd=tmp_path, data=smoke.data)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((run / "figures").glob(f"{name[:2]}_*.png"))


def test_nothing_was_written_into_the_project_or_the_callers_folder(smoke: Smoke):
    assert {p.name for p in smoke.folder.parent.iterdir()} == {"run", "data"}
