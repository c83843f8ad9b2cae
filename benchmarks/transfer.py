"""What the synthetic weights are worth on real subjects: the same steps from scratch and from data/pretrained.

    python benchmarks/transfer.py ../shared/oasis1 --subjects 10 30 120

SOURCE holds the folders train, validate and test with one image a slice. Scores are of validation subjects, all at 128 x 128.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from common import keep

from oasis_lib.cohort import Cohort, prepare
from oasis_lib.config import profile
from oasis_lib.paths import user_path
from oasis_lib.pretrained import HOME
from oasis_lib.training import train_prior, train_vqvae


def fewer(source: Path, count: int, root: Path) -> Cohort:
    """The cohort with the first `count` of its training subjects."""
    names = sorted({path.name.split("_")[0] for path in (source / "train").iterdir()})[:count]
    for split in ("train", "validate", "test"):
        (root / "in" / split).mkdir(parents=True)
        for path in (source / split).iterdir():
            if split != "train" or path.name.split("_")[0] in names:
                os.symlink(path, root / "in" / split / path.name)
    return prepare(root / "in", root / "cohort", size=128, progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("source", type=user_path)
    parser.add_argument("--subjects", type=int, nargs="+", default=[10, 30, 120])
    parser.add_argument("--steps", type=int, default=300, help="of the VQ-VAE")
    parser.add_argument("--prior-steps", type=int, default=150)
    given, laptop, rows = parser.parse_args(), profile("laptop"), []
    for count in given.subjects:
        for start in ("scratch", "pretrained"):
            with TemporaryDirectory() as folder:
                root = Path(folder)
                cohort, found = fewer(given.source, count, root), {"training subjects": count, "start": start}
                for kind, steps in (("vqvae", given.steps), ("transformer", given.prior_steps)):
                    part = getattr(laptop, kind)
                    model = dataclasses.replace(part.model, adversarial=0.0) if kind == "vqvae" else part.model
                    limits = {"minutes": 0, "steps": steps, "validate_every": steps}
                    part = dataclasses.replace(part, model=model, training=dataclasses.replace(part.training, **limits))
                    begin = HOME / kind if start == "pretrained" else ""
                    if kind == "vqvae":
                        history = train_vqvae(cohort, root / kind, part, begin=begin, progress=False)
                        found["SSIM, brain"] = history["validate_ssim_brain"].max()
                    else:
                        history = train_prior(kind, cohort, root / "vqvae", root / kind, part, begin=begin, progress=False)
                        found["bits/image"] = history["validate_bits"].min()
                rows.append(found)
                print(found, flush=True)
    table = pd.DataFrame(rows)
    print(table.round(4).to_string(index=False))
    keep("transfer", given, table)


if __name__ == "__main__":
    main()
