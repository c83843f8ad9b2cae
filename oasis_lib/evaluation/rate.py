"""Rate against distortion: what an image costs in bytes, and what those bytes buy, beside the codecs that everybody has."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from oasis_lib.cohort import Cohort
from oasis_lib.config import Part
from oasis_lib.evaluation.reconstruction import measure, scores
from oasis_lib.models import load
from oasis_lib.training import encode_images, train_vqvae
from oasis_lib.training.data import linspace_rows

MEASURED = 96  # test slices, spread over everybody
FACTORS, ENTRIES = (4, 8, 16), (128, 1024)
CODECS = {"JPEG": (5, 15, 30, 60), "WEBP": (1, 10, 30, 60), "AVIF": (5, 20, 40, 60)}


def code_bytes(codes: np.ndarray, known: np.ndarray, codebook_size: int) -> np.ndarray:
    """(N,) bytes of each map under one fixed table: how often training maps (`known`) use each entry.

    An arithmetic coder reaches this to within a byte or two. A prior, which knows the neighbours too, needs less.
    """
    counts = np.bincount(np.asarray(known).ravel(), minlength=codebook_size) + 1.0  # nothing is impossible
    bits = -np.log2(counts / counts.sum())
    return bits[np.asarray(codes)].sum(axis=(1, 2)) / 8


def point(folder: str | Path, cohort: Cohort, most: int = MEASURED) -> dict[str, float]:
    """One trained model as a point of the figure."""
    model = load(folder)
    table, config = scores(model, cohort["test"], most, ("ssim",)), model.config
    model.cpu()
    known = encode_images(model, cohort["train"].images[linspace_rows(len(cohort["train"]), 256)])
    codes = encode_images(model, cohort["test"].images[table["row"].to_numpy()])
    side, step = codes.shape[-1], pd.read_csv(Path(folder) / "history.csv")["step"].iloc[-1]
    cost = {
        "bytes": float(code_bytes(codes, known, config.codebook_size).mean()),
        "plain_bytes": side**2 * np.log2(config.codebook_size) / 8,
    }
    about = {"method": f"{side} x {side} codes", "grid": side, "codebook_size": config.codebook_size, "steps": int(step)}
    return about | cost | _means(table)


def short(part: Part, share: float) -> Part:
    """The same recipe with its limits cut down to a share, and the autoencoder's head start with them; in smaller batches."""
    limits = {name: math.ceil(getattr(part.training, name) * share) for name in ("epochs", "steps")}
    limits["minutes"] = part.training.minutes * share
    limits["batch"] = min(part.training.batch, max(8, part.training.batch // 4))
    model = dataclasses.replace(part.model, autoencoder_steps=max(1, round(part.model.autoencoder_steps * share)), adversarial=0.0)
    return Part(model, dataclasses.replace(part.training, **limits))


def learned(
    cohort: Cohort, out: str | Path, part: Part, factors: Iterable[int] = FACTORS, codebook_size: Iterable[int] = ENTRIES
) -> pd.DataFrame:
    """The recipe trained afresh for each grid and codebook; what was trained before is read back."""
    rows = []
    for factor in factors:
        for count in codebook_size:
            folder = Path(out) / f"{factor}-{count}"
            model = dataclasses.replace(part.model, factor=factor, codebook_size=count)
            train_vqvae(cohort, folder, Part(model, part.training), progress=False)
            rows.append(point(folder, cohort))
    return pd.DataFrame(rows)


def classical(cohort: Cohort, codecs: dict[str, tuple[int, ...]] = CODECS, most: int = MEASURED) -> pd.DataFrame:
    """The same slices through Pillow's codecs. What a blank picture takes, headers mostly, is not counted against them."""
    split, rows = cohort["test"], []
    blank = np.zeros(split.images.shape[1:], np.uint8)
    for codec, qualities in codecs.items():
        for quality in qualities:
            sizes, least = [], len(_pack(blank, codec, quality))

            def through(images: Tensor, places: np.ndarray, codec=codec, quality=quality, sizes=sizes, least=least) -> Tensor:
                files = [_pack(np.asarray(split.images[place]), codec, quality) for place in places]
                sizes.extend(max(0, len(file) - least) for file in files)
                return torch.stack([_unpack(file) for file in files])[:, None].to(images.device)

            table = measure(split, through, most, ("ssim",))
            rows.append({"method": codec.replace("WEBP", "WebP"), "quality": quality, "bytes": np.mean(sizes)} | _means(table))
    return pd.DataFrame(rows)


def _means(table: pd.DataFrame) -> dict[str, float]:
    subjects = table.groupby("subject")[["ssim", "ssim_brain"]].mean()
    return {"ssim": float(subjects["ssim"].mean()), "ssim_brain": float(subjects["ssim_brain"].mean())}


def _pack(pixels: np.ndarray, codec: str, quality: int) -> bytes:
    from PIL import Image

    slowly = {"JPEG": {"optimize": True}, "WEBP": {"method": 4}, "AVIF": {"speed": 6}}
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, format=codec, quality=quality, **slowly[codec])
        return file.getvalue()


def _unpack(file: bytes) -> Tensor:
    from PIL import Image

    with Image.open(io.BytesIO(file)) as image:
        return torch.from_numpy(np.array(image.convert("L"), dtype=np.float32) / 255)
