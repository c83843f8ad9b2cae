"""Seconds to evaluate samples, step by step. The samples are training slices: how long it takes does not hang on what they show.

python benchmarks/evaluation.py --samples 1000 --cohort data/oasis1 --vqvae runs/o8/vqvae
"""

from __future__ import annotations

import time
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from common import cohort_of, limited, options, report

from oasis_lib.config import profile
from oasis_lib.evaluation.evaluator import Evaluator
from oasis_lib.evaluation.features import Samples
from oasis_lib.evaluation.generation import compare, detect, references
from oasis_lib.models import load
from oasis_lib.paths import user_path
from oasis_lib.training import best_device, codes_of, train_vqvae

KEPT = "subjects' codes, which a prior's training leaves"


def main() -> None:
    parser = options(__doc__.splitlines()[0], minutes=0.3)
    parser.add_argument(
        "--vqvae", default="", help="a trained VQ-VAE's folder; empty trains the laptop profile's for --minutes"
    )
    parser.add_argument("--samples", type=int, default=1000)
    given = parser.parse_args()
    cohort, settings, seconds = cohort_of(given), profile("laptop").evaluation, {}
    rows = np.random.default_rng(given.seed).integers(0, len(cohort["train"]), given.samples)
    made = Samples(
        cohort["train"].images[np.sort(rows)], cohort["train"].slice_indices[np.sort(rows)]
    )  # of nobody known
    with TemporaryDirectory() as scratch:
        if not given.vqvae:
            train_vqvae(cohort, scratch, limited(profile("laptop").vqvae, given), progress=False)
        vqvae = load(user_path(given.vqvae) if given.vqvae else scratch)

    def timed(name: str, work, *arguments: object):
        begun = time.perf_counter()
        found = work(*arguments)
        seconds[name] = time.perf_counter() - begun
        print(f"{name:<48} {seconds[name]:6.1f} s", flush=True)
        return found

    timed(KEPT, lambda: [codes_of(vqvae, cohort, split, best_device()) for split in ("train", "validate", "test")])
    options_of_it = {"device": str(best_device()), "vqvae": vqvae}
    evaluator = timed("feature network, and features of subjects", lambda: Evaluator(cohort, settings, **options_of_it))
    timed("subjects through the codes, for the audit", lambda: evaluator.audit)
    timed("slice index reader", lambda: evaluator.reader)
    sets = timed("references", references, evaluator)
    timed("detectability", detect, evaluator, {"samples": made} | sets)
    timed("the table, with baseline and references", compare, evaluator, {"samples": made} | sets)
    table = pd.DataFrame({"seconds": seconds})
    table.loc["all but the first"] = table["seconds"].sum() - seconds[KEPT]
    report("evaluation", given, cohort, table, table.round(1))


if __name__ == "__main__":
    main()
