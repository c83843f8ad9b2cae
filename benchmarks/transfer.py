"""What the synthetic weights are worth on real subjects: the same steps from scratch and from data/pretrained.

    python benchmarks/transfer.py ../shared/oasis1 --subjects 10 30 120

SOURCE holds the folders train, validate and test with one image a slice. Scores are of validation subjects, all at
128 x 128: SSIM of each VQ-VAE, and bits of each transformer on the tokens of the VQ-VAE that went on from
data/pretrained.
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
from oasis_lib.config import Part, profile
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


def limited(part: Part, steps: int, **model: float) -> Part:
    training = dataclasses.replace(part.training, minutes=0, steps=steps, validate_every=steps)
    return dataclasses.replace(part, model=dataclasses.replace(part.model, **model), training=training)


def main() -> None:
    shown = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=shown)
    parser.add_argument("source", type=user_path)
    parser.add_argument("--subjects", type=int, nargs="+", default=[10, 30, 120])
    parser.add_argument("--steps", type=int, default=300, help="of the VQ-VAE")
    parser.add_argument("--prior-steps", type=int, default=150)
    given, laptop, rows = parser.parse_args(), profile("laptop"), []
    for count in given.subjects:
        with TemporaryDirectory() as folder:
            root = Path(folder)
            cohort, vqvaes, priors = fewer(given.source, count, root), {}, {}
            for start in ("scratch", "pretrained"):
                begin = HOME / "vqvae" if start == "pretrained" else ""
                part = limited(laptop.vqvae, given.steps, adversarial=0.0)
                history = train_vqvae(cohort, root / start, part, begin=begin, progress=False)
                vqvaes[start] = history["validate_ssim_brain"].max()
            for start in ("scratch", "pretrained"):  # both on the second VQ-VAE's tokens: bits of others don't compare
                begin = HOME / "transformer" if start == "pretrained" else ""
                part = limited(laptop.transformer, given.prior_steps)
                folders = root / "pretrained", root / f"transformer-{start}"
                history = train_prior("transformer", cohort, *folders, part, begin=begin, progress=False)
                priors[start] = history["validate_bits"].min()
        for start in vqvaes:
            found = {"SSIM, brain": vqvaes[start], "bits/image": priors[start]}
            rows.append({"training subjects": count, "start": start} | found)
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    print(table.round(4).to_string(index=False))
    keep("transfer", given, table)


if __name__ == "__main__":
    main()
