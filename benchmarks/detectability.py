"""How well small networks tell samples from real slices, at four scales, beside real-vs-real and reconstructions.

python benchmarks/detectability.py --cohort data/oasis1 --mm 1 --vqvae runs/oasis1/vqvae runs/oasis1/samples/transformer.npz
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import keep

from oasis_lib import sampling
from oasis_lib.cohort import Cohort, Split, open_cohort
from oasis_lib.evaluation.detectability import Recipe
from oasis_lib.evaluation.features import Samples
from oasis_lib.evaluation.generation import as_samples
from oasis_lib.evaluation.instrument import Instrument
from oasis_lib.models import VQVAE, load
from oasis_lib.paths import user_path
from oasis_lib.training import best_device, decode_codes
from oasis_lib.training.codes import codes_of, encode_images


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "samples",
        nargs="*",
        help="files with `images` and `slice_index`, as notebook 05 keeps them; NAME=FILE names a row",
    )
    parser.add_argument("--cohort", required=True)
    parser.add_argument("--mm", type=float, default=0, help="across a pixel, where the cohort does not tell")
    parser.add_argument("--vqvae", default="", help="for reconstructions and unigram tokens")
    parser.add_argument(
        "--decoded", action="store_true", help="real slices through tokens and decoder too: what is seen is the prior's"
    )
    parser.add_argument("--split", default="validate", help="whose subjects the detectors are tested on")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    given = parser.parse_args()
    cohort, device, begun = open_cohort(user_path(given.cohort)), str(best_device()), time.perf_counter()
    recipe = Recipe(steps=given.steps, seed=given.seed)
    if given.decoded:
        cohort = decoded(cohort, {"train", given.split}, load(user_path(given.vqvae)), device)
    instrument = Instrument(cohort, given.split, recipe, device=device, mm=given.mm)
    sets: dict[str, Samples] = {}
    for item in given.samples:
        name, _, path = item.rpartition("=")
        sets[name or f"{Path(path).parent.name}/{Path(path).stem}"] = as_samples(sampling.read(user_path(path)))
    if given.vqvae and not given.decoded:
        rows = instrument.others(instrument.counts([one.slice_indices for one in sets.values()]))
        real, vqvae = Samples.of(cohort["train"], rows), load(user_path(given.vqvae)).to(device).eval()
        codes = encode_images(vqvae, real.images, device)
        for name in ("faithful", "crisp")[: 1 + (vqvae.crisp is not None)]:
            images = decode_codes(vqvae, codes, device, crisp=name == "crisp")
            sets[f"{name} reconstructions"] = replace(real, images=images)
        mixed = np.random.default_rng(0).permutation(codes.ravel()).reshape(codes.shape)
        sets["unigram tokens"] = Samples(decode_codes(vqvae, mixed, device), real.slice_indices)
    found = instrument.compare(sets, progress=True)
    print(
        f"{given.split} subjects, {(time.perf_counter() - begun) / 60:.1f} min wall, {time.process_time() / 60:.1f} core-minutes"
    )
    print(found.table().round(3).to_string(index=False))
    print("\n" + found.summary().round(3).to_string())
    keep(f"detectability-{cohort.folder.name}", given, found.table().set_index("set"), cohort=cohort.info["hash"])


def decoded(cohort: Cohort, names: set[str], vqvae: VQVAE, device: str, most: int = 1280) -> Cohort:
    """These splits as their tokens decode, by the crisp decoder where there is one: so many slices, of all subjects.

    Fewer subjects will not do. Detectors that learned from 20 missed what detectors that learned from 60 found.
    """
    splits = {}
    for name in names:
        part = cohort[name]
        subject, every = np.unique(part.subjects, return_inverse=True)[1], -(-len(part) // most)
        rows = np.flatnonzero((part.slice_indices + subject) % every == 0)
        images = decode_codes(vqvae, codes_of(vqvae, cohort, name, device)[rows], device)
        splits[name] = Split(name, images, part.table.iloc[rows].reset_index(drop=True))
    return replace(cohort, splits=splits)


if __name__ == "__main__":
    main()
