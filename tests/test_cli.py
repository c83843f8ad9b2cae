"""The command line: what it says, what it refuses, and that every command in README does what README says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, Smoke, oasis

from oasis_lib.__main__ import main
from oasis_lib.commands import CONTEXT, Given, parameter, short_forms
from oasis_lib.commands import oasis as top
from oasis_lib.config import PRIORS, profile
from oasis_lib.storage import write_json
from oasis_lib.study import repeated

COMMANDS = ("prepare", "study", "train", "sample", "evaluate", "report", "check")
README = (PROJECT / "README.md").read_text()


def readme_commands(start: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]  # a backslash goes on
    return [line for line in lines if line.startswith(start)]


def parsed(words: list[str]) -> Given:
    return Given(**top.commands[words[0]].make_context(words[0], words[1:], **CONTEXT).params)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command: str, capsys: pytest.CaptureFixture):
    assert main([command, "--help"]) == 0
    told = capsys.readouterr().out
    words = shlex.split(re.search(r"example:\s+oasis (.+(\n +.+)?)", told).group(1))
    assert words[0] == command and parsed(words)
    assert "--device" in told and "--quiet" in told


def test_help_imports_nothing_heavy():
    code = "import sys; from oasis_lib.__main__ import main; main(['--help']); print({'torch', 'pandas', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip().endswith("set()")


def test_the_eight_short_options_become_settings():
    words = (
        "study --epoch 3 --batch 8 --lr 0.002 --epoch_prior 4 --batch-prior 16 --lr-prior 1e-4 --k 128 --d 16".split()
    )
    changed = profile("laptop", short_forms(parsed(words)))
    vqvae, training = changed.vqvae.model, changed.vqvae.training
    assert (vqvae.codebook_size, vqvae.code_dim) == (128, 16)
    assert (training.epochs, training.minutes, training.batch, training.lr) == (3, 0, 8, 0.002)
    for prior in PRIORS:
        training = getattr(changed, prior).training
        assert (training.epochs, training.minutes, training.batch, training.lr) == (4, 0, 16, 1e-4)
    assert short_forms(parsed(["study"])) == [], "not given: the profile's own"


def test_a_run_is_repeated_from_its_manifest(tmp_path: Path):
    made = {"profile": "smoke", "cohort": "", "cohort_folder": str(tmp_path / "cohort"), "cohort_info": {"hash": "one"}}
    write_json(tmp_path / "run.json", made | {"settings": ["vqvae.seed=3"], "parameters": {"subjects": 4}})
    more = {"profile": "laptop", "settings": ["vqvae.lr=1e-3"], "parameters": {}}
    found = repeated(tmp_path / "run.json", more)
    assert found["profile"] == "smoke" and found["cohort"] == "phantom" and found["parameters"] == {"subjects": 4}
    assert profile(found["profile"], found["settings"]).vqvae.training.seed == 3
    write_json(tmp_path / "cohort" / "cohort.json", {"hash": "two"})
    with pytest.raises(ValueError, match="has changed since .* its hash was one, now it is two"):
        repeated(tmp_path / "run.json", more)


def test_parameters_are_read_as_json_where_they_are_that():
    assert dict(map(parameter, ["n=3", "name=a b", "x=[1, 2]"])) == {"n": 3, "name": "a b", "x": [1, 2]}
    assert dict(map(parameter, ["a=true", "b=True", "c=.5", "d=1e-4"])) == {"a": True, "b": True, "c": 0.5, "d": 1e-4}
    with pytest.raises(ValueError, match="must look like name=value"):
        parameter("n")


REFUSED = [
    (["study", "--set", "vqvae.epcohs=5"], "did you mean 'epochs'"),
    (["study", "--set", "vqvea.epochs=5"], "did you mean 'vqvae'"),
    (["train", "transformer", "--cohort", "x", "--out", "y"], "needs --vqvae DIR"),
    (["train", "vqvae", "--cohort", "no/such", "--out", "y"], "not a prepared cohort"),
    (["train", "vqvae", "--cohort", "x", "--out", "y", "--minutes", "0"], "0.0 is not in the range x>0"),
    (["train", "pixelcnn", *"--cohort x --vqvae x --out y --begin x --profile smoke".split()], "leave --profile out"),
    (["sample", "--prior", "no/such", "--out", "y", "--n", "0"], "0 is not in the range x>=1"),
    (["sample", "--out", "y"], "Missing option '--prior'"),
    (["study", "--epohc", "5"], "Did you mean"),
    (["study", "--k", "12.5"], "'12.5' is not a valid integer"),
    (["study", "--profile", "smkoe"], "is not one of 'smoke', 'laptop', 'full'"),
    (["stuyd"], "Did you mean 'study'?"),
    (["report", "no/such"], "is not a run"),
    (["report", "a", "b", "c"], "one run, or two"),
    (["check", "no/such"], "not a model folder"),
]


@pytest.mark.parametrize("words, said", REFUSED)
def test_mistakes_are_answered_in_one_plain_line(words: list[str], said: str, capsys: pytest.CaptureFixture):
    assert main(words) in (1, 2)
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_a_device_that_is_not_there():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert "--device cpu" in oasis("check", "--device", "cuda", expect=1)


def test_check_tells_versions_device_and_data():
    told = oasis("check")
    for word in ("python", "torch", "device", "data", "git"):
        assert re.search(rf"^{word}\s", told, re.M)


def test_make_alone_lists_its_commands():
    listed = subprocess.check_output(["make", "-C", str(PROJECT), "--no-print-directory"], text=True)
    for name in ("study", "test", "lab", "bench", "publish"):
        assert re.search(rf"^  make {name}\s+\w", listed, re.M)
    for command in readme_commands("make "):
        assert f"  make {command.split()[1]} " in listed


@pytest.mark.slow
def test_readme_commands(smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As written, on the smoke study's cohort and run, and with less patience."""
    monkeypatch.setenv("OASIS_DATA", str(smoke.data))
    done = []
    for line in readme_commands(".venv/bin/oasis "):
        words = shlex.split(line)[1:]
        if words[0] == "study":  # the fixture is one; that the options parse is what is left to see
            assert parsed(words)
            continue
        words = [re.sub(r"^data/phantom-128$", str(smoke.cohort), w) for w in words]
        words = [w.replace("runs/mine", str(tmp_path)).replace("runs/latest", str(smoke.folder)) for w in words]
        if words[0] == "prepare":
            continue  # cohorts have tests of their own
        if words[0] == "train":
            words[words.index("--minutes") + 1] = "0.05"
        if words[0] == "evaluate":
            words += ["--set", "evaluation.detector_steps=5", "--set", "evaluation.feature_steps=20"]
        done.append(words[0])
        assert main(words) == 0, line
    assert set(done) == {"check", "train", "sample", "evaluate", "report"}
    assert (tmp_path / "new" / "samples.png").stat().st_size > 2000
    assert (tmp_path / "scores.json").is_file()


@pytest.mark.slow
def test_two_runs_side_by_side(smoke: Smoke, tmp_path: Path):
    page = tmp_path / "both.html"
    oasis("report", smoke.folder, smoke.folder, "--out", page)
    assert page.read_text().count('class="pair"') >= 6


@pytest.mark.slow
def test_a_model_is_listed_layer_by_layer(smoke: Smoke, capsys: pytest.CaptureFixture):
    for name in ("vqvae", *PRIORS):
        assert main(["check", str(smoke.folder / name)]) == 0
        told = capsys.readouterr().out
        assert re.search(r"[\d,]+ parameters in all", told) and len(told.splitlines()) > 5, name


@pytest.mark.slow
def test_what_a_prior_cannot_be_asked_is_said(smoke: Smoke, tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["--out", str(tmp_path), "--n", "2", "--top-k", "3"]
    assert main(["sample", "--prior", str(smoke.folder / "codegan"), *words]) == 1
    assert "a codegan prior has no logits" in capsys.readouterr().err
