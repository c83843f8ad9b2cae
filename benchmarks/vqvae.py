"""The earlier recipes and ours, side by side: the same slices, the same minutes, one run, one protocol.

    python benchmarks/vqvae.py --minutes 10 --cohort data/oasis1-256

Recipes keep their network, codebook, loss, optimiser, rate and batch. Repaired is what kept them from running or
learning (benchmarks/baselines.py says what); the loop around them, its half precision and its falling learning rate
are ours for all.
"""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from baselines import VQVAES, BaselineConfig, untrained_codebook
from common import cohort_of, limited, options, ours, report
from rate_distortion import point

from oasis_lib.cohort import Cohort
from oasis_lib.config import Part
from oasis_lib.evaluation import reconstruction
from oasis_lib.models import load, perplexity
from oasis_lib.training import encode_images, train_vqvae


def contestants(batch: int) -> dict[str, Part]:
    seeds = {name: VQVAES[name] for name in ("seed-000", "seed-001", "seed-002", "seed-003")}
    return seeds | {
        "seed-003, codebook untrained": untrained_codebook(VQVAES["seed-003"]),
        "ours, 4 x 4 pixels a code": ours(batch=batch),
        "ours, 8 x 8 pixels a code": ours(factor=8, codebook_size=1024, batch=batch),
    }


def contest(name: str, part: Part, cohort: Cohort, folder: Path, slices: int) -> tuple[pd.DataFrame, dict[str, float]]:
    print(f"training {name} ...", flush=True)
    kind = "baseline" if isinstance(part.model, BaselineConfig) else "vqvae"
    history = train_vqvae(cohort, folder, part, kind=kind, progress=False)
    model = load(folder)
    table = reconstruction.scores(model, cohort["test"], slices)
    codes = encode_images(model.cpu(), cohort["test"].images[table["row"].to_numpy()])
    used = np.bincount(codes.ravel(), minlength=model.config.codebook_size)
    cost = {
        "codes_used": int((used > 0).sum()),
        "codebook_size": model.config.codebook_size,
        "perplexity": _perplexity(used),
    }
    cost |= {"images_per_second": float(history["images_per_second"].median()), "steps": int(history["step"].iloc[-1])}
    cost["parameters"] = (
        sum(p.numel() for p in [*model.encoder.parameters(), *model.decoder.parameters()])
        + model.quantizer.codebook.numel()
    )
    cost["bytes"] = point(folder, cohort)["bytes"]
    cost["plain_bytes"] = math.prod(codes.shape[1:]) * math.log2(model.config.codebook_size) / 8
    return table, cost


def _perplexity(counts: np.ndarray) -> float:
    import torch

    return perplexity(torch.from_numpy(counts))


def main() -> None:
    parser = options(__doc__.splitlines()[0], minutes=0.5)
    parser.add_argument("--only", nargs="*", default=[], help="names that begin like these; the default is all")
    parser.add_argument("--batch", type=int, default=16, help="of ours; the recipes keep theirs")
    parser.add_argument(
        "--slices", type=int, default=100_000, help="of test subjects that models are scored by, at most"
    )
    parser.add_argument("--keep", default="", help="a folder to keep the models in; the default throws them away")
    given = parser.parse_args()
    cohort, tables, costs = cohort_of(given), {}, {}
    with TemporaryDirectory() as scratch:
        for name, part in contestants(given.batch).items():
            if given.only and not name.startswith(tuple(given.only)):
                continue
            folder = Path(given.keep or scratch) / name.replace(",", "").replace(" ", "-").replace("'", "")
            tables[name], costs[name] = contest(name, limited(part, given), cohort, folder, given.slices)
    summary = reconstruction.summary(reconstruction.baselines(cohort) | tables).join(pd.DataFrame(costs).T)
    shown = reconstruction.readable(summary).iloc[:, :2].join(pd.DataFrame(costs).T.round(1).astype(object)).fillna("")
    report("vqvae", given, cohort, summary, shown)


if __name__ == "__main__":
    main()
