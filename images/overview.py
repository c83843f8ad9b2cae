"""The first picture of README, from a finished run on synthetic subjects: `make publish RUN=runs/latest`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from oasis_lib.cohort import open_cohort
from oasis_lib.config import DEFAULT_PRIOR
from oasis_lib.evaluation.codebook import CodebookStatistics
from oasis_lib.figures.grid import Row, image_grid
from oasis_lib.figures.style import synthetic
from oasis_lib.models import load
from oasis_lib.paths import project_path
from oasis_lib.storage import read_json
from oasis_lib.training import decode_codes


def main(run: str, out: str = "images/overview.webp") -> None:
    folder = Path(run)
    manifest = read_json(folder / "run.json")
    if not manifest["cohort_info"]["synthetic"]:
        sys.exit(f"{folder} shows real subjects: only a run on the synthetic cohort is published")
    cohort = open_cohort(project_path(manifest["cohort_folder"]))
    test, shares = cohort["test"], np.linspace(0.2, 0.8, 8)
    places = [np.flatnonzero(test.slice_indices == round(share * (cohort.slice_indices - 1))) for share in shares]
    rows = [int(found[i % len(found)]) for i, found in enumerate(places)]  # another subject in each column
    drawn = np.load(folder / "samples" / f"{DEFAULT_PRIOR}.npz")
    picks = [int(np.abs(drawn["slice_index"] - test.slice_indices[row]).argmin()) for row in rows]
    maps = {name: np.load(folder / "codes" / f"{name}.npy", mmap_mode="r") for name in ("train", "test")}
    book, codes = CodebookStatistics(load(folder / "vqvae"), cohort, maps), maps["test"][rows]
    shown = {
        "test subjects": test.images[rows],
        "their tokens": Row(book.shades[codes], cmap="viridis"),
        "reconstructions": decode_codes(book.model, codes),
        "new slices, from the prior": drawn["images"][picks],
    }
    synthetic(image_grid(shown), cohort.synthetic).savefig(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
