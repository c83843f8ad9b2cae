"""What keeping earlier work saves when a map is drawn: the cached sampler beside one whole pass a token.

python benchmarks/sampling.py --grid 32 --maps 64 --whole

The plain loop makes one whole pass a code, all alike, so a few rows of it are timed and the rest reckoned, unless
--whole is given.
"""

from __future__ import annotations

import argparse
import functools
import time

import pandas as pd
import torch
from common import keep

from oasis_lib.check import environment_line
from oasis_lib.config import PixelCNNConfig, TransformerConfig
from oasis_lib.models import build
from oasis_lib.models.prior import Autoregressive
from oasis_lib.training import best_device

KINDS = {"transformer": TransformerConfig(), "pixelcnn": PixelCNNConfig()}


def timed(prior, count: int, rows: int) -> float:
    """Seconds to draw the first rows of so many maps."""
    h, w = prior.grid
    codes = torch.zeros(count, h, w, dtype=torch.int64, device=prior.device)
    wanted = torch.zeros(h, w, dtype=torch.bool, device=prior.device)
    wanted[:rows] = True
    started = time.perf_counter()
    prior.fill(codes, wanted, generator=torch.Generator().manual_seed(0)).cpu()  # .cpu() waits for a GPU
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--grid", type=int, default=32, help="codes a side")
    parser.add_argument("--entries", type=int, default=1024)
    parser.add_argument("--maps", type=int, default=64, help="drawn together, cached")
    parser.add_argument("--rows", type=int, default=1, help="of the plain loop that are timed")
    parser.add_argument("--whole", action="store_true", help="time all of the plain loop")
    given = parser.parse_args()
    rows, table = given.grid if given.whole else given.rows, {}
    for kind, config in KINDS.items():
        torch.manual_seed(0)
        prior = (
            build(kind, config, grid=(given.grid, given.grid), codebook_size=given.codebook_size, slice_indices=32)
            .eval()
            .to(best_device())
        )
        timed(prior, 1, 1)
        row = {"seconds a map, cached": timed(prior, 1, given.grid)}
        together = timed(prior, given.maps, given.grid)
        prior.stepper = functools.partial(Autoregressive.stepper, prior)
        row["plain loop"] = timed(prior, 1, rows) * given.grid / rows
        row["times faster"] = row["plain loop"] / row["seconds a map, cached"]
        table[kind] = row | {f"{given.maps} maps": together, "a map of those": together / given.maps}
    table = pd.DataFrame(table).T
    over = f"{given.grid} x {given.grid} codes out of {given.codebook_size}"
    print(f"{environment_line()}\n{over}; the plain loop timed over {rows} rows\n")
    print(table.round(3).to_string())
    keep("sampling", given, table)


if __name__ == "__main__":
    main()
