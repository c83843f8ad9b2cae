"""Few codes or many: how well a grid keeps a head, and how well a prior of equal minutes draws one from it.

    python benchmarks/grids.py --vqvae-minutes 9 --minutes 9 --cohort data/oasis1-256 --keep runs/grids

Every row has a VQ-VAE and a prior of its own. "codes" are floor people encoded and decoded: what a perfect prior would reach.
With --keep, a VQ-VAE that is there already (vqvae-4 and so on) is taken as it is. Temperature 1 and top-p 0.95 for all: nothing is
chosen here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from common import RESULTS, cohort_of, limited, options, ours, report

from oasis_lib import sampling
from oasis_lib.checkpoint import WEIGHTS
from oasis_lib.cohort import Cohort
from oasis_lib.config import EvaluationConfig, Part, TrainingConfig, TransformerConfig
from oasis_lib.evaluation import rate, samples
from oasis_lib.evaluation.evaluator import Evaluator, Samples
from oasis_lib.evaluation.generation import compare
from oasis_lib.figures.priors import grids as draw_figure
from oasis_lib.figures.style import synthetic
from oasis_lib.models import load
from oasis_lib.paths import user_path
from oasis_lib.training import best_device, decode_codes, encode_images, train_prior, train_vqvae

TRAINING = TrainingConfig(batch=16, lr=1.5e-3, weight_decay=0.05, shift=0, intensity=0.0, validate_every=100)
FLAT = TransformerConfig(dropout=0.0, hide=0.02)
ROWS = {"16 x 16": (16, 1024), "32 x 32": (8, 1024), "64 x 64": (4, 512)}  # pixels a token, codebook entries
SHOWN = ("frechet_trained_ratio", "frechet_fixed_ratio", "coverage_trained_ratio", "coverage_fixed_ratio", "two_sample")


def measure(name: str, cohort: Cohort, evaluator: Evaluator, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    factor, entries = ROWS[name]
    vqvae, prior = folder / f"vqvae-{factor}", folder / name.replace(" ", "-")
    part = limited(ours(factor=factor, entries=entries), argparse.Namespace(**vars(given) | {"minutes": given.vqvae_minutes}))
    if not (vqvae / WEIGHTS).is_file():
        train_vqvae(cohort, vqvae, part, progress=False)
    history = train_prior("transformer", cohort, vqvae, prior, limited(Part(FLAT, TRAINING), given))
    model, people, device = load(vqvae), evaluator.floor, best_device()
    kept = decode_codes(model, encode_images(model, people.images, device), device)
    levels = sampling.even_levels(given.samples, cohort.levels)
    drawn = samples.as_samples(sampling.draw(load(prior), model, levels, seed=given.seed, top_p=0.95))
    found = compare(evaluator, {"codes": Samples(kept, people.levels, people.people), "samples": drawn})
    row = rate.point(vqvae, cohort, given.samples)
    row = {key: row[key] for key in ("ssim", "ssim_brain", "bytes")} | {"validate bits": -history["score"].max()}
    row |= {f"{side} {column}": found.loc[side, column] for column in SHOWN for side in ("codes", "samples")}
    level = {} if "level_within_one" not in found else {"level_within_one": found.loc["samples", "level_within_one"]}
    return row | level | {"steps": history["step"].iloc[-1]}


def main() -> None:
    parser = options(__doc__.splitlines()[0], minutes=0.1)
    parser.add_argument("--vqvae-minutes", type=float, default=0.1, help="of training, for each VQ-VAE that is not kept")
    parser.add_argument("--samples", type=int, default=240, help="drawn from each prior")
    parser.add_argument("--only", nargs="*", default=list(ROWS), help="rows of the table")
    parser.add_argument("--keep", default="", help="a folder to keep the models in; the default throws them away")
    given = parser.parse_args()
    cohort, rows = cohort_of(given), {}
    with TemporaryDirectory() as scratch:
        folder = user_path(given.keep) if given.keep else Path(scratch)
        evaluator = Evaluator(cohort, EvaluationConfig(), device=str(best_device()), cache=folder)
        for name in given.only:
            print(f"training {name} ...", flush=True)
            rows[name] = measure(name, cohort, evaluator, folder, given)
    table = pd.DataFrame(rows).T
    path = report("grids", given, cohort, table)
    synthetic(draw_figure(table), cohort.synthetic).savefig(path.with_suffix(".png"))
    print(f"drawn in {RESULTS.name}/{path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
