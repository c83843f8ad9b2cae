"""SSIM over bytes an image: code grids and codebook sizes after short trainings, beside JPEG, WebP and AVIF.

    python benchmarks/rate_distortion.py --steps 300 --minutes 60 --out data/pretrained/rate.csv

At 128 pixels the grids are 32, 16 and 8 tokens a side. Bytes are of an entropy coder that knows how often training
subjects use each token; a codec's are its file's, less what a blank image takes.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from common import cohort_of, limited, options, ours, report
from PIL import Image
from torch import Tensor

from oasis_lib.cohort import Cohort
from oasis_lib.config import Part
from oasis_lib.evaluation.codebook import code_bytes
from oasis_lib.evaluation.reconstruction import measure, scores
from oasis_lib.models import load
from oasis_lib.paths import user_path
from oasis_lib.training import encode_images, train_vqvae
from oasis_lib.training.data import linspace_rows

CODECS = {"JPEG": (5, 15, 30, 60), "WebP": (1, 10, 30, 60), "AVIF": (5, 20, 40, 60)}
MEASURED = 96  # test slices, spread over all subjects
SLOWLY = {"JPEG": {"optimize": True}, "WebP": {"method": 4}, "AVIF": {"speed": 6}}


def learned(cohort: Cohort, out: Path, part: Part, factors: list[int], sizes: list[int]) -> pd.DataFrame:
    """The recipe trained afresh for each grid and codebook size."""
    rows = []
    for factor in factors:
        for size in sizes:
            model = dataclasses.replace(part.model, factor=factor, codebook_size=size)
            train_vqvae(cohort, out / f"{factor}-{size}", Part(model, part.training), progress=False)
            rows.append(point(out / f"{factor}-{size}", cohort))
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def point(folder: Path, cohort: Cohort, most: int = MEASURED) -> dict[str, float]:
    """One trained model: bytes an image, and SSIM of test slices (mean over subjects)."""
    model = load(folder)
    table, size = scores(model, cohort["test"], most, ("ssim",)), model.config.codebook_size
    model.cpu()
    known = encode_images(model, cohort["train"].images[linspace_rows(len(cohort["train"]), 256)])
    codes = encode_images(model, cohort["test"].images[table["row"].to_numpy()])
    side, steps = codes.shape[-1], int(pd.read_csv(folder / "history.csv")["step"].iloc[-1])
    found = {"method": f"{side} x {side} tokens", "grid": side, "codebook_size": size, "steps": steps}
    found |= {"bytes": float(code_bytes(codes, known, size).mean()), "plain_bytes": side**2 * np.log2(size) / 8}
    return found | mean_ssim(table)


def mean_ssim(table: pd.DataFrame) -> dict[str, float]:
    return table.groupby("subject")[["ssim", "ssim_brain"]].mean().mean().to_dict()


def classical(cohort: Cohort, codecs: dict[str, tuple[int, ...]] = CODECS, most: int = MEASURED) -> pd.DataFrame:
    """The same slices through Pillow's codecs."""
    split, rows = cohort["test"], []
    blank = np.zeros(split.images.shape[1:], np.uint8)
    for codec, quality in ((codec, quality) for codec, qualities in codecs.items() for quality in qualities):
        sizes: list[int] = []

        def through(images: Tensor, places: np.ndarray, codec=codec, quality=quality, sizes=sizes) -> Tensor:
            files = [packed(np.asarray(split.images[place]), codec, quality) for place in places]
            sizes.extend(len(file) for file in files)
            return torch.stack([unpacked(file) for file in files])[:, None].to(images.device)

        table, least = measure(split, through, most, ("ssim",)), len(packed(blank, codec, quality))
        cost = {"bytes": float(np.maximum(0, np.array(sizes) - least).mean())}
        rows.append({"method": codec, "quality": quality} | cost | mean_ssim(table))
    return pd.DataFrame(rows)


def packed(pixels: np.ndarray, codec: str, quality: int) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, format=codec.upper(), quality=quality, **SLOWLY[codec])
        return file.getvalue()


def unpacked(file: bytes) -> Tensor:
    with Image.open(io.BytesIO(file)) as image:
        return torch.from_numpy(np.array(image.convert("L"), dtype=np.float32) / 255)


def main() -> None:
    parser = options(__doc__.splitlines()[0], minutes=0.1)
    parser.add_argument("--factors", type=int, nargs="+", default=[4, 8, 16], help="pixels a token, each way")
    parser.add_argument("--codebooks", type=int, nargs="+", default=[128, 1024], help="sizes of codebooks")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", default="", help="a CSV file for the table that notebook 02 shows")
    given = parser.parse_args()
    cohort = cohort_of(given)
    with TemporaryDirectory() as scratch:
        part = limited(ours(batch=given.batch), given)
        trained = learned(cohort, Path(scratch), part, given.factors, given.codebooks)
    table = pd.concat([trained, classical(cohort)], ignore_index=True).assign(size=cohort.size)
    if given.out:
        user_path(given.out).parent.mkdir(parents=True, exist_ok=True)
        table.round(5).to_csv(user_path(given.out), index=False)
    report("rate_distortion", given, cohort, table.set_index("method"))


if __name__ == "__main__":
    main()
