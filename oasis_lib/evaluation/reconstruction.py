"""How well a VQ-VAE reconstructs slices: one protocol for notebooks, command line and benchmarks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from oasis_lib import metrics
from oasis_lib.cohort import Cohort, Split
from oasis_lib.device import best_device
from oasis_lib.models import VQVAE
from oasis_lib.models.quantizer import flatten
from oasis_lib.training.codes import decode_codes, encode_images
from oasis_lib.training.data import in_channels, linspace_rows, to_images
from oasis_lib.training.vqvae import reconstruction_loss

MEASURES = {"ssim": metrics.ssim, "ms_ssim": metrics.ms_ssim, "psnr": metrics.psnr, "mae": metrics.mae}
ALL = 100_000
SEEDS_BAR = 0.6  # SSIM that the earlier projects were asked for
Reconstruct = Callable[[Tensor, np.ndarray], Tensor]  # a batch (B, 1, H, W) and its rows -> its reconstruction


@torch.no_grad()
def measure(split: Split, through: Reconstruct, most: int = ALL, only: Iterable[str] = MEASURES) -> pd.DataFrame:
    """One row a slice: subject, slice index, each measure over the full frame and inside the brain (`ssim_brain`)."""
    device, rows, parts = best_device(), linspace_rows(len(split), most), []
    few = metrics.batch_size_for(split.images[0].size, device)
    for start in range(0, len(rows), few):
        part = rows[start : start + few]
        pixels = split.images[part]
        images, mask = to_images(pixels, device), torch.from_numpy(metrics.brain_mask(pixels)).to(device)[:, None]
        shown = through(images, part)
        values = {name: MEASURES[name](images, shown) for name in only}
        values |= {f"{name}_brain": MEASURES[name](images, shown, mask) for name in only}
        parts.append(pd.DataFrame({name: value.cpu().double().numpy() for name, value in values.items()}))
    about = split.table.iloc[rows][["subject", "slice_index"]].reset_index(drop=True)
    return pd.concat([about.assign(row=rows), pd.concat(parts, ignore_index=True)], axis=1)


def scores(model: VQVAE, split: Split, most: int = ALL, only: Iterable = MEASURES, crisp: bool = False) -> pd.DataFrame:
    """`measure` of the faithful decoder, or the crisp one."""
    model = model.to(best_device()).eval()

    def through(images: Tensor, rows: np.ndarray) -> Tensor:
        return model.decode(model.encode(in_channels(images, model)), crisp=crisp).mean(1, keepdim=True)

    return measure(split, through, most, only)


def decoders(model: VQVAE, split: Split, most: int = ALL) -> dict[str, pd.DataFrame]:
    """The scores of every decoder that the model has, by name."""
    names = ["faithful decoder"] + ["crisp decoder"] * (model.crisp is not None)
    return {name: scores(model, split, most, crisp=name.startswith("crisp")) for name in names}


@torch.no_grad()
def sharpness_ratio(model: VQVAE, split: Split, *, crisp: bool = False) -> float:
    """Mean absolute difference of neighbouring pixels inside the brain, relative to the input's: 1 is as sharp."""
    pixels = split.images[linspace_rows(len(split), 128)]
    shown = to_images(decode_codes(model, encode_images(model, pixels, best_device()), best_device(), crisp=crisp))
    masks = torch.from_numpy(metrics.brain_mask(pixels))[:, None]
    return float(metrics.sharpness(shown, masks) / metrics.sharpness(to_images(pixels), masks))


def baselines(cohort: Cohort, name: str = "test") -> dict[str, pd.DataFrame]:
    """A black image, the mean training image, and another subject's slice of the same slice index."""
    train, split = cohort["train"], cohort[name]
    some = train.images[linspace_rows(len(train), 1024)]
    mean = torch.from_numpy(some.mean(axis=0, dtype=np.float64).astype(np.float32) / 255)[None, None]
    others = strangers(train, split.slice_indices)
    return {
        "black image": measure(split, lambda images, rows: torch.zeros_like(images)),
        "mean training image": measure(split, lambda images, rows: mean.to(images.device).expand_as(images)),
        "another subject": measure(split, lambda images, rows: to_images(train.images[others[rows]], images.device)),
    }


def strangers(train: Split, slice_indices: np.ndarray) -> np.ndarray:
    """A training slice of each slice index (any, where none has it); always the same one at a place."""
    known = {index: np.flatnonzero(train.slice_indices == index) for index in np.unique(slice_indices)}
    pools = [known[index] if len(known[index]) else np.arange(len(train)) for index in slice_indices]
    return np.array([pool[place * 7919 % len(pool)] for place, pool in enumerate(pools)])


def summary(tables: dict[str, pd.DataFrame], repeats: int = 2000) -> pd.DataFrame:
    """A row a table: means over subjects with 95 % intervals, extremes, and the share of slices with SSIM > 0.6."""
    rows = {}
    for name, table in tables.items():
        row: dict[str, float] = {}
        for key in ("ssim", "ssim_brain", "psnr"):
            found = metrics.bootstrap_by_subject(table[key], table["subject"], repeats)
            row |= zip((key, f"{key}_low", f"{key}_high"), found)
        row |= {"ssim_min": table["ssim"].min(), "ssim_max": table["ssim"].max(), "slices": len(table)}
        row |= {"subjects": table["subject"].nunique(), "above_0.6": float((table["ssim"] > SEEDS_BAR).mean())}
        rows[name] = row
    return pd.DataFrame(rows).T


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The summary with mean and interval in one cell."""

    def with_interval(key: str) -> list[str]:
        return [f"{r[key]:.3f} ({r[f'{key}_low']:.3f} to {r[f'{key}_high']:.3f})" for _, r in table.iterrows()]

    shown = {"SSIM, full frame": with_interval("ssim"), "SSIM, brain": with_interval("ssim_brain")}
    shown |= {"PSNR, dB": table["psnr"].round(1), "lowest": table["ssim_min"].round(3), "above 0.6": table["above_0.6"]}
    return pd.DataFrame(shown, index=table.index).assign(subjects=table["subjects"].astype(int))


def gap(tables: dict[str, pd.DataFrame], repeats: int = 2000) -> tuple[float, float, float]:
    """SSIM of training subjects minus test subjects: mean and 95 % interval, both sides resampled by subject."""
    subjects = [tables[name].groupby("subject")["ssim"].mean().dropna().to_numpy() for name in ("train", "test")]
    rng = np.random.default_rng(0)
    train, test = (side[rng.integers(len(side), size=(repeats, len(side)))].mean(axis=1) for side in subjects)
    low, high = np.quantile(train - test, [0.025, 0.975])
    return float(subjects[0].mean() - subjects[1].mean()), float(low), float(high)


@torch.no_grad()
def look(model: VQVAE, pixels: np.ndarray, codes: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Of slices (N, H, W) uint8: `images`, `codes`, `decoded` (and `crisp`), the `map` of SSIM, and `ssim`.

    `codes` are their tokens where known: on another device, ties between tokens may fall otherwise.
    """
    images, model = to_images(np.asarray(pixels)), model.cpu().eval()
    codes = model.encode(in_channels(images, model)) if codes is None else torch.from_numpy(np.asarray(codes, np.int64))
    decoded = model.decode(codes).mean(1, keepdim=True)
    shown = {"images": images[:, 0], "codes": codes, "decoded": decoded[:, 0], "ssim": metrics.ssim(images, decoded)}
    if model.crisp is not None:
        shown["crisp"] = model.decode(codes, crisp=True).mean(1)
    return {name: value.numpy() for name, value in (shown | {"map": metrics.ssim_map(images, decoded)[:, 0]}).items()}


def probes(split: Split, lesion: Split | None = None) -> dict[str, np.ndarray]:
    """Images unlike all training slices, (H, W) uint8: noise, blank, a lesion (a bright disc where none is planted)."""
    size = split.images.shape[-1]
    if lesion is not None and lesion.lesion is not None:
        ill = lesion.images[int((lesion.lesion > 0).sum((1, 2)).argmax())]
    else:
        ill = split.images[int((split.images > 10).sum((1, 2)).argmax())].copy()
        down, across = np.mgrid[:size, :size] / size
        ill[np.hypot(down - 0.45, across - 0.38) < 0.06] = 255
    noise = np.random.default_rng(0).integers(0, 256, (size, size), dtype=np.uint8)
    return {"noise": noise, "blank": np.zeros((size, size), np.uint8), "a lesion": np.asarray(ill)}


def gradients(model: VQVAE, images: Tensor) -> pd.DataFrame:
    """Gradient norms, a row a loss term, a column a part; the codebook as if it were trained by gradient."""
    model = copy.deepcopy(model).cpu().train()  # as the loss sees it: not clamped
    vectors = model.quantizer.codebook.detach().clone().requires_grad_()
    target = in_channels(images, model)
    latents = model.latents(target)
    codes = model.quantizer.nearest(flatten(latents.detach())).view(latents.shape[0], *latents.shape[2:])
    quantised = F.embedding(codes, vectors).movedim(-1, 1)
    passed = latents + (quantised - latents).detach()  # straight through
    terms = {
        "reconstruction": reconstruction_loss(model.decode_latents(passed), target, model)[0],
        "codebook": F.mse_loss(quantised, latents.detach()),
        "commitment": model.config.commitment * F.mse_loss(latents, quantised.detach()),
    }
    parts = {"encoder": model.encoder.parameters(), "codebook": [vectors], "decoder": model.decoder.parameters()}
    table = pd.DataFrame(index=list(terms), columns=list(parts), dtype=float)
    for part, weights in ((part, list(weights)) for part, weights in parts.items()):
        for term, loss in terms.items():
            found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            table.loc[term, part] = sum(float(g.square().sum()) for g in found if g is not None) ** 0.5
    return table


@torch.no_grad()
def plane(model: VQVAE, pixels: np.ndarray, most: int = 7, each: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents (N, 2) of a few tokens, codebook vectors (K, 2), tokens (N,), in the main plane of those few vectors.

    They are the most used of the tokens whose latents differ more than the median's: background's all but coincide.
    """
    model, rng = model.cpu().eval(), np.random.default_rng(0)
    flat = flatten(model.latents(in_channels(to_images(pixels), model))).numpy()
    vectors = model.quantizer.codebook.detach().numpy()
    codes = model.quantizer.nearest(torch.from_numpy(flat)).numpy()
    counts, apart = np.bincount(codes, minlength=len(vectors)), ((flat - vectors[codes]) ** 2).sum(1)
    spread = np.bincount(codes, apart, len(vectors)) / np.maximum(counts, 1)
    known = counts >= min(each, counts.max())
    wide = known & (spread >= np.median(spread[known]))
    popular = np.lexsort((counts, wide))[::-1][: min(most, max(3, wide.sum()))]
    rows = np.concatenate([rng.permutation(np.flatnonzero(codes == code))[:each] for code in popular])
    middle = vectors[popular].mean(axis=0)
    axes = np.linalg.svd(vectors[popular] - middle, full_matrices=False)[2][:2].T
    return (flat[rows] - middle) @ axes, (vectors - middle) @ axes, codes[rows]
