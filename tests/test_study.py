"""The study's own logic, on notebooks of a few cells.

What is run, what is skipped, what is refused, what a failure says.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from oasis_lib import report
from oasis_lib.__main__ import main
from oasis_lib.config import profile
from oasis_lib.run import open_run
from oasis_lib.storage import read_json, write_json
from oasis_lib.study import Manifest, StageFailed, begin, check_parameters, run_study

PARAMETERS = 'profile: str = "smoke"\nrun: str = ""\ncohort: str = ""\nsettings: list = []\nepochs: int = 3'
OPEN = "from oasis_lib.run import open_run\nthis = open_run(run, profile, cohort, settings)"
COUNT = "log = this.folder.parent / 'ran.txt'\n_ = log.write_text((log.read_text() if log.is_file() else '') + {name!r} + '\\n')"
FIGURE = "from oasis_lib.figures.style import new_figure\nthis.figure({name!r}, new_figure()[0], 'A <caption>')"
TABLE = "import pandas as pd\nthis.table('01_people', pd.DataFrame({'a': {'<row>': 0.123456}}), 'Of <three>')"
SENTENCES = "from IPython.display import Markdown\nMarkdown('**Three** subjects')"


class Study:
    """Two tiny notebooks, a cohort that exists by name only, and the run they make."""

    def __init__(self, root: Path):
        self.root, self.notebooks, self.run = root, root / "notebooks", root / "run"
        self.notebooks.mkdir()
        write_json(
            root / "cohort" / "cohort.json", {"hash": "one", "size": 8, "synthetic": True, "warnings": ["made up"]}
        )
        self.write("01_cohort", FIGURE.format(name="01_look"), TABLE, SENTENCES)
        self.write("02_vqvae", "_ = this.path('codes.npy').write_text('codes')")
        self.write("03_codebook")

    def write(self, name: str, *cells: str) -> None:
        parameters = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        sources = [OPEN, COUNT.format(name=name), *cells]
        notebook = new_notebook(cells=[new_markdown_cell("# A title"), parameters, *map(new_code_cell, sources)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.notebooks / f"{name}.ipynb")

    def go(self, *settings: str, **parameters: object) -> list[str]:
        """Run it; gives back the stages that really ran this time."""
        log = self.root / "ran.txt"
        log.unlink(missing_ok=True)
        cohort = self.root / "cohort"
        run_study("smoke", self.run, cohort, settings, parameters=parameters, notebooks=self.notebooks, quiet=True)
        return log.read_text().split() if log.is_file() else []


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


@pytest.mark.slow
def test_what_is_done_is_not_done_again_unless_something_changed(study: Study):
    everything = ["01_cohort", "02_vqvae", "03_codebook"]
    assert study.go() == everything
    assert study.go() == []
    assert study.go("vqvae.epochs=9") == everything[1:], (
        "a setting reruns the first stage that reads it, and all that follow"
    )
    assert study.go("vqvae.epochs=9", "evaluation.samples=7") == [], "a setting of a later stage is none of theirs"
    (study.run / "codes.npy").unlink()
    assert study.go("vqvae.epochs=9") == everything[1:], "a file that is gone is made again"
    study.write("03_codebook", "1 + 1")
    assert study.go("vqvae.epochs=9") == everything[2:]
    assert study.go("vqvae.epochs=9", epochs=4) == everything, "a parameter of its own reruns a notebook"


@pytest.mark.slow
def test_an_edit_of_the_library_is_told_and_reruns_only_on_demand(study: Study, monkeypatch, capsys):
    study.go()
    monkeypatch.setattr("oasis_lib.study.library_digest", lambda: "another")
    cohort = study.root / "cohort"
    run_study("smoke", study.run, cohort, notebooks=study.notebooks)
    assert capsys.readouterr().out.count("by another version of the library; --overwrite reruns it") == 3
    assert study.go() == []
    monkeypatch.setenv("OASIS_OVERWRITE", "1")
    assert study.go() == ["01_cohort", "02_vqvae", "03_codebook"]


@pytest.mark.slow
def test_a_failure_names_notebook_cell_and_cause_and_the_next_call_goes_on(study: Study):
    study.write("02_vqvae", "1 / 0")
    with pytest.raises(
        StageFailed, match=r"02_vqvae stopped in cell 6 \(`1 / 0`\): ZeroDivisionError: division by zero"
    ):
        study.go()
    stages = read_json(study.run / "run.json")["stages"]
    assert stages["01_cohort"]["status"] == "finished" and stages["02_vqvae"]["status"] == "failed"
    study.write("02_vqvae", "import sys\nsys.exit(0)")
    with pytest.raises(StageFailed, match="did not complete"):
        study.go()
    study.write("02_vqvae", "import os\nos._exit(1)", "1 + 1")
    with pytest.raises(StageFailed, match="02_vqvae stopped in cell 6: its kernel died"):
        study.go()
    study.write("02_vqvae")
    assert study.go() == ["02_vqvae", "03_codebook"]


@pytest.mark.slow
@pytest.mark.parametrize("by, status", [(signal.SIGKILL, "running"), (signal.SIGTERM, "stopped")])
def test_stopped_half_way_it_goes_on_from_there(study: Study, by: signal.Signals, status: str):
    study.write("02_vqvae", "import time\nif not this.folder.joinpath('waited').exists():\n    time.sleep(300)")
    code = "from oasis_lib.study import run_study; run_study('smoke', {!r}, {!r}, notebooks={!r})"
    words = [sys.executable, "-c", code.format(*map(str, (study.run, study.root / "cohort", study.notebooks)))]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = study.root / "ran.txt"
    until = time.time() + 120
    while time.time() < until and not (log.is_file() and "02_vqvae" in log.read_text()):
        time.sleep(0.2)
    kernels = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(by)
    error = running.communicate(timeout=60)[1]
    assert read_json(study.run / "run.json")["stages"]["02_vqvae"]["status"] == status
    assert ("KeyboardInterrupt" in error) == (by == signal.SIGTERM), error
    _, left = psutil.wait_procs(kernels, timeout=30)
    assert not left, "kernels end with the study that started them"
    (study.run / "waited").touch()
    assert study.go() == ["02_vqvae", "03_codebook"]


def test_a_second_study_in_one_folder_is_refused_and_names_the_first(study: Study, capsys: pytest.CaptureFixture):
    hold = "import sys, time; from pathlib import Path; from oasis_lib.storage import only_one\n"
    hold += "with only_one(Path(sys.argv[1]), '-'): print('held', flush=True); time.sleep(60)"
    for lock in (".lock", ".command.lock"):
        first = subprocess.Popen([sys.executable, "-c", hold, study.run / lock], stdout=subprocess.PIPE)
        try:
            first.stdout.readline()
            said = f"process {first.pid} on {platform.node()} is running this study; wait for it"
            if lock == ".lock":
                with pytest.raises(ValueError, match=said):
                    study.go()
            else:
                assert main(["study", "--profile", "smoke", "--run", str(study.run)]) == 1
                assert said in capsys.readouterr().err
        finally:
            first.kill()
            first.communicate()
    assert not (study.root / "ran.txt").exists() and not (study.run / "driver.ipynb").exists()


@pytest.mark.slow
def test_a_stop_while_the_kernel_starts_is_no_failure(study: Study):
    study.write("01_cohort", "import time\ntime.sleep(5)")
    threading.Timer(0.4, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(KeyboardInterrupt):
        study.go()
    assert read_json(study.run / "run.json")["stages"]["01_cohort"]["status"] == "stopped"


@pytest.mark.slow
def test_manifest_and_page(study: Study):
    study.go()
    manifest = read_json(study.run / "run.json")
    assert {"versions", "device", "seed", "settings", "profile", "git", "cohort_info", "stages"} <= set(manifest)
    assert manifest["versions"]["torch"] and manifest["cohort_info"]["hash"] == "one"
    for stage in manifest["stages"].values():
        assert stage["seconds"] > 0 and stage["parameters"]["profile"] == "smoke"
    page = (study.run / "report.html").read_text()
    for said in ("A &lt;caption&gt;", "data:image/png;base64,", "0.1235", "&lt;row&gt;", "Of &lt;three&gt;", "made up"):
        assert said in page
    assert "<strong>Three</strong> subjects" in page, "the sentences that the last cell shows"
    assert "http://" not in page and "https://" not in page
    assert (study.run / "01_cohort.html").is_file()
    other = study.root / "other"
    shutil.copytree(study.run, other)
    (other / "tables" / "01_people.json").unlink()
    pair = report.write(study.run, other, out=study.root / "both.html").read_text()
    assert pair.count("data:image/png;base64,") == 2 and "01_people, table: not in this run" in pair
    closing = report.closing(study.run)
    assert str(study.run / "report.html") in closing and "Three subjects" in closing
    summary = report.summary(study.run)
    places = [summary.index(part) for part in ("<strong>Three</strong>", "<details>", "Of &lt;three&gt;")]
    assert places == sorted(places), "sentences first, tables folded"


@pytest.mark.slow
def test_seeds_run_apart_and_validation_chooses(study: Study):
    history = "import pandas as pd\nseed = this.part('vqvae').training.seed\nthis.path('vqvae').mkdir(exist_ok=True)\n"
    history += "pd.DataFrame({'score': [0.0, 1.0 - (seed - 1) ** 2]}).to_csv(this.path('vqvae', 'history.csv'))\n"
    history += "this.path('transformer').mkdir(exist_ok=True)\n"
    history += "bits = [[90, 80], [90, 70], [90, 60]][seed]\n"
    history += "pd.DataFrame({'validate_bits': bits}).to_csv(this.path('transformer', 'history.csv'))\n"
    study.write("02_vqvae", history + "this.metrics('vqvae', {'ssim': float(seed)})")
    best = run_study("smoke", study.run, study.root / "cohort", runs=3, notebooks=study.notebooks, quiet=True)
    seeds = json.loads((study.run / "seeds.json").read_text())
    assert best.folder.name == seeds["best"] == "seed-1"
    assert seeds["metrics"]["vqvae ssim"] == {"mean": 1.0, "sd": 1.0}
    assert seeds["criterion"] == "mean rank by vqvae score and minus transformer bits"


def test_the_best_seed_is_not_chosen_by_its_vqvae_alone(tmp_path: Path):
    runs = [tmp_path / f"seed-{seed}" for seed in range(3)]
    for run, score, bits in zip(runs, (0.9, 0.8, 0.7), (90, 60, 70)):
        for name, values in (("vqvae", f"score\n{score}"), ("transformer", f"validate_bits\n{bits}")):
            (run / name).mkdir(parents=True)
            (run / name / "history.csv").write_text(values)
        write_json(run / "run.json", {})
        write_json(run / "metrics.json", {"a": {"b": 1.0}})
    text, best = report.over_seeds(tmp_path, runs)
    assert (
        best == 1
        and "best by validation: seed-1 (vqvae score 0.8000, minus transformer bits -60.0000; mean rank" in text
    )


def test_unknown_and_ill_typed_parameters_are_refused_before_anything_runs(study: Study):
    with pytest.raises(ValueError, match=r"'epcohs'.*did you mean 'epochs'"):
        study.go(epcohs=5)
    with pytest.raises(ValueError, match=r"epochs='five' must be int"):
        study.go(epochs="five")
    with pytest.raises(ValueError, match=r"no vqvae setting 'epcohs'; did you mean 'epochs'"):
        study.go("vqvae.epcohs=5")
    with pytest.raises(ValueError, match="neither phantom nor anything that exists"):
        run_study("smoke", study.run, "no/such/place", notebooks=study.notebooks)
    assert not (study.run / "01_cohort.ipynb").exists()


def test_settings_change_the_field_that_they_name_and_mistakes_name_the_nearest():
    changed = profile("smoke", ["vqvae.factor=8", "vqvae.lr = 1e-4", "transformer.compile=True", "cohort.subjects=9"])
    assert changed.vqvae.model.factor == 8 and changed.vqvae.training.lr == 1e-4 and changed.cohort.subjects == 9
    assert (
        changed.transformer.training.compile is True and changed.transformer.model == profile("smoke").transformer.model
    )
    for setting, said in {
        "vqvae.epcohs=5": "did you mean 'epochs'",
        "vqvea.epochs=5": "did you mean 'vqvae'",
        "vqvae.epochs=five": "vqvae.epochs='five' must be a whole number",
        "vqvae.codebook=em": "vqvae.codebook='em' must be one of 'ema', 'gradient'",
        "vqvae.flip=2": "vqvae.flip=2 must be true or false, not int",
        "vqvae=5": "must look like vqvae.epochs=20",
    }.items():
        with pytest.raises(ValueError, match=said):
            profile("smoke", [setting])


@pytest.mark.parametrize(
    "value, kind, fits", [(3, "float", True), (True, "int", False), ("x", "list", False), ([], "list", True)]
)
def test_types_of_parameters(value, kind, fits):
    if fits:
        check_parameters("a", {"x": value}, {"x": kind})
    else:
        with pytest.raises(ValueError, match="must be"):
            check_parameters("a", {"x": value}, {"x": kind})


def test_begin_refuses_what_papermill_only_warns_of():
    cells = ["", 'profile: str = "laptop"', '# Parameters\nepcohs = 5\nprofile = "smoke"\n']
    namespace = {
        "In": cells,
        "epcohs": 5,
        "profile": "smoke",
        "epochs": 1,
        "__annotations__": {"profile": str, "epochs": int},
    }
    with pytest.raises(ValueError, match=r"no 02_vqvae parameter 'epcohs'; did you mean 'epochs'"):
        begin("02_vqvae", namespace)
    namespace |= {"In": cells[:2], "epochs": "five"}
    with pytest.raises(ValueError, match="epochs='five' must be int"):
        begin("02_vqvae", namespace)


def test_a_manifest_is_whole_after_every_step(tmp_path: Path):
    write_json(tmp_path / "cohort" / "cohort.json", {"hash": "one"})
    run = open_run(tmp_path / "run", "smoke", tmp_path / "cohort")
    manifest = Manifest(run)
    manifest.note("01_cohort", "running")
    assert not Manifest(run).stands("01_cohort", "key"), "killed while it ran"
    manifest.finish("01_cohort", "key", 0.0)
    again = Manifest(run)
    assert again.stands("01_cohort", "key") and not again.stands("01_cohort", "other")
    write_json(tmp_path / "cohort" / "cohort.json", {"hash": "another"})
    assert not again.stands("01_cohort", "key"), "another cohort"
