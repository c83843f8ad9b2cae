"""What each choice is worth: our recipe with one thing changed at a time, the same minutes for all.

python benchmarks/ablations.py --minutes 2 --seeds 2 --cohort data/oasis1-256
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from common import cohort_of, limited, options, ours, report

from oasis_lib.cohort import Cohort
from oasis_lib.config import Part
from oasis_lib.evaluation import reconstruction
from oasis_lib.models import load
from oasis_lib.training import train_vqvae

BASE = {"factor": 8, "codebook_size": 512}
CHANGES = {
    "ours": {},
    "code dimension 64": {"code_dim": 64},
    "no revival": {"dead_code_threshold": 0.0},
    "no revival, uniform start": {"dead_code_threshold": 0.0, "autoencoder_steps": 0},
    "codebook by gradient": {"codebook": "gradient"},
    "L1 alone": {"loss": "l1"},
    "L2 over variance": {"loss": "l2"},
    "pixels as they are": {"normalise": False},
    "images not varied": {"shift": 0, "flip": False, "intensity": 0.0},
    "three residual blocks, not two": {"blocks": 3},
    "4 x 4 pixels a code": {"factor": 4},
    "16 x 16 pixels a code": {"factor": 16},
}


def measure(part: Part, cohort: Cohort, folder: Path) -> dict[str, float]:
    history = train_vqvae(cohort, folder, part, progress=False)
    row = reconstruction.summary({"test": reconstruction.scores(load(folder), cohort["test"])}).loc["test"]
    last = history.iloc[-1]
    shown = row[["ssim", "ssim_brain", "ssim_brain_low", "ssim_brain_high", "psnr"]].to_dict()
    return shown | {"codes_used": last["codes_used"], "perplexity": last["perplexity"], "steps": last["step"]}


def main() -> None:
    parser = options(__doc__.splitlines()[0], minutes=0.1)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each; the table shows their mean and spread")
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    cohort, rows = cohort_of(given), {}
    for name, change in CHANGES.items():
        print(f"training {name} ...", flush=True)
        found = []
        for seed in range(given.seed, given.seed + given.seeds):
            part = limited(
                ours(**(BASE | change), batch=given.batch), argparse.Namespace(**(vars(given) | {"seed": seed}))
            )
            with TemporaryDirectory() as scratch:
                found.append(measure(part, cohort, Path(scratch)))
        found = pd.DataFrame(found)
        rows[name] = found.mean().to_dict() | {"spread": float(found["ssim_brain"].max() - found["ssim_brain"].min())}
    table = pd.DataFrame(rows).T
    table.insert(2, "against ours", table["ssim_brain"] - table.loc["ours", "ssim_brain"])
    report("ablations", given, cohort, table)


if __name__ == "__main__":
    main()
