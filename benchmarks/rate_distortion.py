"""SSIM over bytes an image: code grids and codebook sizes after short trainings, beside JPEG, WebP and AVIF.

    python benchmarks/rate_distortion.py --minutes 2 --cohort data/oasis1-256

At 256 pixels the grids are 64, 32 and 16 codes a side. Bytes are of an entropy coder that knows how often training subjects use
each entry; a codec's are its file's, less what a blank picture takes.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from common import RESULTS, cohort_of, limited, options, ours, report

from oasis_lib.evaluation import rate
from oasis_lib.figures.reconstruction import rate as draw
from oasis_lib.figures.style import synthetic


def main() -> None:
    parser = options(__doc__.splitlines()[0], minutes=0.1)
    parser.add_argument("--factors", type=int, nargs="+", default=[4, 8, 16], help="pixels a code, each way")
    parser.add_argument("--entries", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    cohort = cohort_of(given)
    with TemporaryDirectory() as scratch:
        learned = rate.learned(cohort, Path(scratch), limited(ours(batch=given.batch), given), given.factors, given.codebook_size)
    codecs = rate.classical(cohort)
    table = pd.concat([learned, codecs], ignore_index=True).set_index("method")
    path = report("rate_distortion", given, cohort, table)
    synthetic(draw(learned, codecs), cohort.synthetic).savefig(path.with_suffix(".png"))
    print(f"drawn in {RESULTS.name}/{path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
