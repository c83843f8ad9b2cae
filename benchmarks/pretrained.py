"""Train the models that come with the repository, on the laptop profile's SYNTHETIC cohort, and keep them in data/pretrained.

    python benchmarks/pretrained.py --minutes vqvae=15 transformer=38 pixelcnn=45 codegan=10

Each training takes one core of a CPU, or a GPU; one that was stopped goes on. Weights are rounded to half precision,
the VQ-VAE's before anything is encoded with it. What is shipped agrees with a run's own model folders, file by file.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
from pathlib import Path

from oasis_lib.check import environment_line
from oasis_lib.cohort import Cohort, prepare
from oasis_lib.config import PRIORS, profile
from oasis_lib.models import load
from oasis_lib.models.vqvae import CRISP
from oasis_lib.paths import PROJECT, project_path
from oasis_lib.pretrained import MANIFEST
from oasis_lib.run import default_cohort
from oasis_lib.storage import WEIGHTS, content_hash, fingerprint, read_config, save_model, write_json
from oasis_lib.training import train_prior, train_vqvae

MINUTES = {"vqvae": 15.0, "transformer": 38.0, "pixelcnn": 45.0, "codegan": 10.0}
VALIDATE_EVERY = 400  # steps, of priors; the laptop profile trains them for a minute
KEPT = ("history.csv", "snapshots.npz", "warnings.txt", "README.md", "DATA.md")


def rounded(folder: Path, out: Path) -> None:
    """The model in `folder`, its weights in half precision, with all that a run's own folder has."""
    from safetensors.torch import load_file

    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in load_file(folder / WEIGHTS).items()
    }
    config = {name: value for name, value in read_config(folder).items() if name not in ("format", "weights")}
    if folder.name == CRISP:
        config["vqvae"] = fingerprint(load(out.parent, crisp=False))
    save_model(out, state, config)
    for name in KEPT:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    if (folder / CRISP / WEIGHTS).is_file():
        rounded(folder / CRISP, out / CRISP)


def say(out: Path, cohort: Cohort, minutes: dict[str, float]) -> None:
    """What was made, from what, by which command and commit, and every file's hash."""
    shutil.rmtree(out / "codes", ignore_errors=True)  # tokens of the cohort: a run makes its own
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name not in (MANIFEST, "README.md"))
    longer = " ".join(f"{kind}={value:g}" for kind, value in minutes.items())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True).stdout.strip()
    about = {
        "data": "SYNTHETIC subjects alone",
        "cohort": cohort.info["request"],
        "command": f"python benchmarks/pretrained.py --minutes {longer}",
        "commit": commit,
        "machine": environment_line(),
        "files": {str(path.relative_to(out)): content_hash(path) for path in files},
    }
    write_json(out / MANIFEST, about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", nargs="*", default=[], metavar="MODEL=MINUTES", help=f"default: {MINUTES}")
    parser.add_argument("--only", nargs="*", default=["vqvae", *PRIORS], help="train these, in this order")
    parser.add_argument("--work", default="runs/pretrained", help="where trainings go on")
    parser.add_argument("--out", default="data/pretrained")
    given = parser.parse_args()
    minutes = MINUTES | {name: float(value) for name, value in (one.split("=") for one in given.minutes)}
    laptop, work, out = profile("laptop"), project_path(given.work), project_path(given.out)
    made = laptop.cohort
    sizes = {"size": made.size, "subjects": made.subjects, "lesions": made.lesions, "seed": made.seed}
    cohort = prepare("phantom", default_cohort(laptop), **sizes)
    for kind in given.only:
        part = getattr(laptop, kind)
        every = part.training.validate_every if kind == "vqvae" else VALIDATE_EVERY
        longer = dataclasses.replace(part.training, minutes=minutes[kind], validate_every=every)
        part = dataclasses.replace(part, training=longer)
        if kind == "vqvae":
            history = train_vqvae(cohort, work / kind, part)
        else:
            history = train_prior(kind, cohort, out / "vqvae", work / kind, part)
        rounded(work / kind, out / kind)
        say(out, cohort, minutes)
        print(history.tail(1).T.to_string())


if __name__ == "__main__":
    main()
