"""How well a VQ-VAE gives back subjects: one protocol for notebooks, command line and benchmarks, always beside baselines."""

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
SEEDS_BAR = 0.6  # what the task that started all this asked for; a black image passes it
Give = Callable[[Tensor, np.ndarray], Tensor]  # a batch (B, 1, H, W) and its rows -> the same, given back


@torch.no_grad()
def measure(split: Split, give_back: Give, most: int = 100_000, only: Iterable[str] = MEASURES) -> pd.DataFrame:
    """One row a slice: subject, slice index, and measures over the full frame and inside the brain (`ssim`, `ssim_brain`, ...)."""
    device, rows, parts = best_device(), linspace_rows(len(split), most), []
    few = metrics.batch_size_for(split.images[0].size, device)
    for start in range(0, len(rows), few):
        part = rows[start : start + few]
        pixels = split.images[part]
        images, mask = to_images(pixels, device), torch.from_numpy(metrics.brain_mask(pixels)).to(device)[:, None]
        shown = give_back(images, part)
        values = {name: MEASURES[name](images, shown) for name in only}
        values |= {f"{name}_brain": MEASURES[name](images, shown, mask) for name in only}
        parts.append(pd.DataFrame({name: value.cpu().double().numpy() for name, value in values.items()}))
    about = split.table.iloc[rows][["subject", "slice_index"]].reset_index(drop=True)
    return pd.concat([about.assign(row=rows), pd.concat(parts, ignore_index=True)], axis=1)


def scores(model: VQVAE, split: Split, most: int = 100_000, only: Iterable[str] = MEASURES, *, crisp: bool = False) -> pd.DataFrame:
    """Each slice through its tokens and the faithful decoder, or the crisp one."""
    model = model.to(best_device()).eval()

    def through(images: Tensor, rows: np.ndarray) -> Tensor:
        return model.decode(model.encode(in_channels(images, model)), crisp=crisp).mean(1, keepdim=True)

    return measure(split, through, most, only)


def decoders(model: VQVAE, split: Split, most: int = 100_000, only: Iterable[str] = MEASURES) -> dict[str, pd.DataFrame]:
    """The scores of every decoder that the model has, by name."""
    names = ["faithful decoder"] + ["crisp decoder"] * (model.crisp is not None)
    return {name: scores(model, split, most, only, crisp=name.startswith("crisp")) for name in names}


@torch.no_grad()
def sharpness_ratio(model: VQVAE, split: Split, most: int = 128, *, crisp: bool = False) -> float:
    """Mean absolute difference of neighbouring pixels inside the brain, relative to the input's: 1 is as sharp."""
    pixels = split.images[linspace_rows(len(split), most)]
    codes = encode_images(model, pixels, best_device())
    shown = to_images(decode_codes(model, codes, best_device(), crisp=crisp))
    masks = torch.from_numpy(metrics.brain_mask(pixels))[:, None]
    return float(metrics.sharpness(shown, masks) / metrics.sharpness(to_images(pixels), masks))


def baselines(cohort: Cohort, name: str = "test") -> dict[str, pd.DataFrame]:
    """What no model at all gets: a black image, the mean training image, another subject's slice of the same slice index."""
    train, split = cohort["train"], cohort[name]
    some = train.images[linspace_rows(len(train), 1024)]
    mean = torch.from_numpy(some.mean(axis=0, dtype=np.float64).astype(np.float32) / 255)[None, None]
    others = np.array([_stranger(train, row, slice_index) for row, slice_index in enumerate(split.slice_indices)])

    def other(images: Tensor, rows: np.ndarray) -> Tensor:
        order = np.argsort(others[rows], kind="stable")
        pixels = np.empty((len(rows), *train.images.shape[1:]), np.uint8)
        pixels[order] = train.images[others[rows][order]]
        return to_images(pixels, images.device)

    return {
        "black image": measure(split, lambda images, rows: torch.zeros_like(images)),
        "mean training image": measure(split, lambda images, rows: mean.to(images.device).expand_as(images)),
        "another subject": measure(split, other),
    }


def _stranger(train: Split, row: int, slice_index: int) -> int:
    """A training slice of the same slice index (of any, where slice indices are not known); always the same one for a row."""
    same = np.flatnonzero(train.slice_indices == slice_index)
    choices = same if len(same) else np.arange(len(train))
    return int(choices[(row * 7919) % len(choices)])


def summary(tables: dict[str, pd.DataFrame], repeats: int = 2000) -> pd.DataFrame:
    """A row a table: SSIM both ways with 95 % intervals from resampling subjects, extremes, and the share above the seeds' bar."""
    rows = {}
    for name, table in tables.items():
        row: dict[str, float] = {}
        for key in ("ssim", "ssim_brain", "psnr"):
            finite = table[key].replace(np.inf, np.nan).to_numpy()
            row[key], row[f"{key}_low"], row[f"{key}_high"] = metrics.bootstrap_by_subject(finite, table["subject"], repeats)
        row |= {"ssim_min": table["ssim"].min(), "ssim_max": table["ssim"].max(), "slices": len(table)}
        row |= {"subjects": table["subject"].nunique(), "above_0.6": float((table["ssim"] > SEEDS_BAR).mean())}
        rows[name] = row
    return pd.DataFrame(rows).T


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The summary as subjects read it: mean and interval in one cell."""

    def with_interval(key: str) -> list[str]:
        return [f"{r[key]:.3f} ({r[f'{key}_low']:.3f} to {r[f'{key}_high']:.3f})" for _, r in table.iterrows()]

    shown = {"SSIM, full frame": with_interval("ssim"), "SSIM, brain": with_interval("ssim_brain")}
    shown |= {"PSNR, dB": table["psnr"].round(1), "lowest": table["ssim_min"].round(3), "above 0.6": table["above_0.6"]}
    return pd.DataFrame(shown, index=table.index).assign(subjects=table["subjects"].astype(int))


def gap(tables: dict[str, pd.DataFrame], key: str = "ssim", repeats: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Training subjects minus test subjects: mean and 95 % interval, both sides resampled by subject."""
    subjects = [tables[name].groupby("subject")[key].mean().dropna().to_numpy() for name in ("train", "test")]
    rng = np.random.default_rng(seed)
    train, test = (values[rng.integers(len(values), size=(repeats, len(values)))].mean(axis=1) for values in subjects)
    low, high = np.quantile(train - test, [0.025, 0.975])
    return float(subjects[0].mean() - subjects[1].mean()), float(low), float(high)


@torch.no_grad()
def look(model: VQVAE, pixels: np.ndarray, codes: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """What figures show of slices (N, H, W) uint8: `images`, `codes`, `decoded` (and `crisp`), the `map` of SSIM, and `ssim`.

    `codes` are their tokens where these are known: another device may find others where two entries are equally near.
    """
    images = to_images(np.asarray(pixels))
    model = model.cpu().eval()
    codes = model.encode(in_channels(images, model)) if codes is None else torch.from_numpy(np.asarray(codes, np.int64))
    decoded = model.decode(codes).mean(1, keepdim=True)
    each = metrics.ssim(images, decoded)
    shown = {"images": images[:, 0], "codes": codes, "decoded": decoded[:, 0], "ssim": each}
    if model.crisp is not None:
        shown["crisp"] = model.decode(codes, crisp=True).mean(1)
    return {name: value.numpy() for name, value in (shown | {"map": metrics.ssim_map(images, decoded)[:, 0]}).items()}


def probes(split: Split, lesion: Split | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Images that no training subject resembles, (H, W) uint8 each. Without planted lesions a bright disc stands in for one."""
    size, rng = split.images.shape[-1], np.random.default_rng(seed)
    if lesion is not None and lesion.lesion is not None:
        areas = lesion.lesion.reshape(len(lesion), -1).astype(bool).sum(axis=1)
        ill = lesion.images[int(np.argmax(areas))]
    else:
        lit = (split.images > 10).reshape(len(split), -1).sum(axis=1)
        ill = split.images[int(np.argmax(lit))].copy()
        down, across = np.mgrid[:size, :size] / size
        ill[np.hypot(down - 0.45, across - 0.38) < 0.06] = 255
    noise = rng.integers(0, 256, (size, size), dtype=np.uint8)
    return {"noise": noise, "blank": np.zeros((size, size), np.uint8), "a lesion": np.asarray(ill)}


def gradients(model: VQVAE, images: Tensor) -> pd.DataFrame:
    """Which loss term moves which part: lengths of the gradients, with the codebook as if it learned by gradient."""
    model = copy.deepcopy(model).cpu().train()  # as the loss sees it: not clamped
    vectors = model.quantizer.codebook.detach().clone().requires_grad_()
    target = in_channels(images, model)
    latents = model.latents(target)
    codes = model.quantizer.nearest(flatten(latents.detach())).view(latents.shape[0], *latents.shape[2:])
    codebook_size = F.embedding(codes, vectors).movedim(-1, 1)
    passed = latents + (codebook_size - latents).detach()  # straight through
    terms = {
        "reconstruction": reconstruction_loss(model.decode_latents(passed), target, model)[0],
        "codebook": F.mse_loss(codebook_size, latents.detach()),
        "commitment": model.config.commitment * F.mse_loss(latents, codebook_size.detach()),
    }
    parts = {"encoder": list(model.encoder.parameters()), "codebook": [vectors], "decoder": list(model.decoder.parameters())}
    table = {}
    for term, loss in terms.items():
        lengths = {}
        for part, weights in parts.items():
            found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            lengths[part] = sum(float(g.square().sum()) for g in found if g is not None) ** 0.5
        table[term] = lengths
    return pd.DataFrame(table).T


@torch.no_grad()
def plane(
    model: VQVAE, pixels: np.ndarray, most: int = 7, each: int = 12, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents (N, 2) of a few entries, all entries (K, 2), which each took (N,): in the widest plane of the few.

    They are the most used of those whose latents differ more than the median's.
    """
    model = model.cpu().eval()
    latents = model.latents(in_channels(to_images(pixels), model))
    flat, vectors = flatten(latents).numpy(), model.quantizer.codebook.detach().numpy()
    codes = model.quantizer.nearest(torch.from_numpy(flat)).numpy()
    counts, apart = np.bincount(codes, minlength=len(vectors)), ((flat - vectors[codes]) ** 2).sum(1)
    spread = np.bincount(codes, apart, len(vectors)) / np.maximum(counts, 1)
    known = counts >= min(each, counts.max())
    wide = known & (spread >= np.median(spread[known]))  # background's latents all but coincide
    popular = np.lexsort((counts, wide))[::-1][: min(most, max(3, wide.sum()))]
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.permutation(np.flatnonzero(codes == code))[:each] for code in popular])
    middle = vectors[popular].mean(axis=0)
    axes = np.linalg.svd(vectors[popular] - middle, full_matrices=False)[2][:2].T
    return (flat[rows] - middle) @ axes, (vectors - middle) @ axes, codes[rows]
