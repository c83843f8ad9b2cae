"""What preparing saves an epoch: the store beside decoding PNG files each time, kept codes beside encoding each time.

    python benchmarks/loading.py --cohort data/oasis1-256

All four give the same batches in the same shuffled order; files come from the disk's cache. The first epoch of the
store opens the cohort and reads it into memory; that of kept codes encodes and writes them. The VQ-VAE is untrained,
and as fast as a trained one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from common import cohort_of, keep, ours
from PIL import Image

from oasis_lib.check import environment_line
from oasis_lib.cohort import open_cohort
from oasis_lib.models import VQVAE
from oasis_lib.training import best_device, encode_images, to_images
from oasis_lib.training.data import linspace_rows


def epoch(read: Callable[[np.ndarray], np.ndarray | torch.Tensor], order: np.ndarray, batch: int) -> float:
    """Seconds to read every row once, batch by batch."""
    started = time.perf_counter()
    for start in range(0, len(order), batch):
        read(order[start : start + batch])
    return time.perf_counter() - started


def decoded(files: np.ndarray) -> np.ndarray:
    return np.stack([np.array(Image.open(file)) for file in files])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--cohort", default="", help="a prepared cohort's folder; empty is the synthetic one of 128 x 128 pixels"
    )
    parser.add_argument("--slices", type=int, default=256, help="of training subjects, spread over all of them")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="later epochs; the quickest counts")
    given = parser.parse_args()
    cohort, device = cohort_of(given), best_device()
    rows = linspace_rows(len(cohort["train"]), given.slices)
    order = np.random.default_rng(0).permutation(len(rows))
    torch.manual_seed(0)
    vqvae, table = VQVAE(ours().model).eval().to(device), {}
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        pixels = np.array(open_cohort(cohort.folder)["train"].images[rows])
        opened = time.perf_counter()
        np.save(Path(folder) / "codes.npy", encode_images(vqvae, pixels, device))
        encoded = time.perf_counter()
        codes = np.load(Path(folder) / "codes.npy", mmap_mode="r")
        files = np.array([Path(folder) / f"{row}.png" for row in rows])
        for file, image in zip(files, pixels):
            Image.fromarray(image).save(file)
        ways = {  # how a batch is come by, and what it takes before the first
            "images, PNG files": (lambda batch: to_images(decoded(files[batch]), device), 0.0),
            "images, prepared store": (lambda batch: to_images(pixels[batch], device), opened - started),
            "codes, encoded each time": (lambda batch: encode_images(vqvae, pixels[batch], device), 0.0),
            "codes, kept": (lambda batch: np.array(codes[batch]), encoded - opened),
        }
        for name, (read, before) in ways.items():
            seconds = min(epoch(read, order, given.batch) for _ in range(given.repeats))
            table[name] = {
                "first epoch, s": before + seconds,
                "later epochs, s": seconds,
                "ms a slice": 1000 * seconds / len(rows),
            }
        plain, stored, anew, kept = (read(order[: given.batch]) for read, _ in ways.values())
    assert torch.equal(plain, stored), "the store holds other pixels than the files"
    assert (anew == kept).mean() > 0.999, "the kept codes are others"  # a batch may round otherwise than the whole
    table = pd.DataFrame(table).T
    later = table["later epochs, s"].to_numpy()
    table["times faster"] = [np.nan, later[0] / later[1], np.nan, later[2] / later[3]]
    print(f"{environment_line()}, {torch.get_num_threads()} threads")
    print(f"{cohort.folder.name}, {cohort.size} x {cohort.size}, {len(rows)} slices\n")
    print(table.round(4).to_string(na_rep=""))
    keep(f"loading-{cohort.folder.name}", given, table)


if __name__ == "__main__":
    main()
