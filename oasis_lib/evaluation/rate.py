"""Rate against distortion: bytes an image as tokens, and the stored table of `benchmarks/rate_distortion.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from oasis_lib.cohort import Cohort
from oasis_lib.evaluation.reconstruction import scores
from oasis_lib.models import load
from oasis_lib.paths import PROJECT
from oasis_lib.training import encode_images
from oasis_lib.training.data import linspace_rows

MEASURED = 96  # test slices, spread over all subjects
STORED = PROJECT / "data" / "pretrained" / "rate.csv"


def stored(path: Path = STORED) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Grids and codebook sizes after short trainings, and codecs: a row a point (method, bytes, ssim, ssim_brain)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make it with: python benchmarks/rate_distortion.py --out {path}")
    table = pd.read_csv(path)
    learned = table["codebook_size"].notna()
    return table[learned], table[~learned]


def code_bytes(codes: np.ndarray, known: np.ndarray, codebook_size: int) -> np.ndarray:
    """(N,) bytes of token maps (N, h, w) under one fixed table: how often training maps (`known`) use each token.

    An arithmetic coder reaches this to within a byte or two. A prior, which knows the neighbours too, needs less.
    """
    counts = np.bincount(np.asarray(known).ravel(), minlength=codebook_size) + 1.0  # none has probability 0
    bits = -np.log2(counts / counts.sum())
    return bits[np.asarray(codes)].sum(axis=(1, 2)) / 8


def point(folder: str | Path, cohort: Cohort, most: int = MEASURED) -> dict[str, float]:
    """One trained model: bytes an image, and SSIM of test slices (mean over subjects)."""
    model = load(folder)
    table, size = scores(model, cohort["test"], most, ("ssim",)), model.config.codebook_size
    model.cpu()
    known = encode_images(model, cohort["train"].images[linspace_rows(len(cohort["train"]), 256)])
    codes = encode_images(model, cohort["test"].images[table["row"].to_numpy()])
    side, steps = codes.shape[-1], int(pd.read_csv(Path(folder) / "history.csv")["step"].iloc[-1])
    found = {"method": f"{side} x {side} tokens", "grid": side, "codebook_size": size, "steps": steps}
    found |= {"bytes": float(code_bytes(codes, known, size).mean()), "plain_bytes": side**2 * np.log2(size) / 8}
    return found | mean_ssim(table)


def mean_ssim(table: pd.DataFrame) -> dict[str, float]:
    subjects = table.groupby("subject")[["ssim", "ssim_brain"]].mean()
    return {"ssim": float(subjects["ssim"].mean()), "ssim_brain": float(subjects["ssim_brain"].mean())}
