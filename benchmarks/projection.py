"""Seconds to put a codebook and the outputs around it into the plane: UMAP beside PCA.

python benchmarks/projection.py --outputs 20000
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
from common import keep

from oasis_lib.check import environment_line
from oasis_lib.projection import project


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=512)
    parser.add_argument("--outputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dice, rows = np.random.default_rng(given.seed), {}
    codebook = dice.normal(size=(given.codebook_size, 8))
    around = codebook[dice.integers(0, given.codebook_size, given.outputs)] + 0.3 * dice.normal(size=(given.outputs, 8))
    for method in ("PCA", "UMAP"):
        begun, used = time.perf_counter(), time.process_time()
        project(np.concatenate([codebook, around]), method, seed=given.seed)
        rows[method] = {"seconds": time.perf_counter() - begun, "processor seconds": time.process_time() - used}
    table = pd.DataFrame(rows).T
    table["times PCA"] = table["seconds"] / table.loc["PCA", "seconds"]
    print(
        f"\n{environment_line()}\n{given.codebook_size} entries, {given.outputs} outputs\n\n{table.round(3).to_string()}"
    )
    keep("projection", given, table)


if __name__ == "__main__":
    main()
