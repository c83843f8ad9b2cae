"""Sampling from a prior: slices, inpainting, whole brains, interpolation."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from oasis_lib.config import PRIORS
from oasis_lib.models import load
from oasis_lib.models.prior import Inpainting, Likelihood
from oasis_lib.run import Run
from oasis_lib.storage import atomic
from oasis_lib.training import best_device, decode_codes, even_slice_indices
from oasis_lib.training.data import seeded

Drawn = dict[str, np.ndarray]  # as stored: `codes` (N, h, w) int16, `slice_index` (N,) int16, `images` (N, H, W) uint8


def draw(prior: Any, vqvae: Any, slice_indices: np.ndarray, *, seed: int = 0, **options: Any) -> Drawn:
    """One sample for each slice index (-1 where open). Options are those of the prior's `sample`: cdr, top_p ..."""
    device, slice_indices = best_device(), np.asarray(slice_indices, np.int64)
    options |= {"slice_index": torch.as_tensor(slice_indices), "generator": seeded(seed)}
    tokens = prior.to(device).sample(len(slice_indices), **options)
    codes = tokens.cpu().numpy().astype(np.int16)
    return {"codes": codes, "slice_index": slice_indices.astype(np.int16), "images": decode_codes(vqvae, codes, device)}


def save(path: str | Path, drawn: Drawn) -> None:
    with atomic(path) as beside, beside.open("wb") as file:
        np.savez(file, **drawn)


def read(path: str | Path) -> Drawn:
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in ("codes", "slice_index", "images")}
    except (ValueError, KeyError, EOFError, BadZipFile) as error:  # each array has a checksum
        raise ValueError(f"{path} is damaged, or holds no samples ({error}); draw them again") from error


def trained_priors(run: Run) -> dict[str, Any]:
    """The trained priors of a run, the default first."""
    found = {name: load(run.path(name)) for name in PRIORS if run.path(name, "model.safetensors").is_file()}
    if not found:
        raise FileNotFoundError(f"{run.folder} has no trained prior: run notebook 04 first")
    return found


def draw_all(run: Run, priors: dict[str, Any], vqvae: Any, **options: Any) -> dict[str, Drawn]:
    """The run's number of samples of every prior, spread over the slice indices, stored as samples/<prior>.npz.

    `options` are of priors with token probabilities; others sample as they were trained.
    """
    config, found = run.profile.evaluation, {}
    wanted = even_slice_indices(config.samples, run.cohort.slice_indices)
    for name, prior in priors.items():
        own = options if isinstance(prior, Likelihood) else {}
        found[name] = draw(prior, vqvae, wanted, seed=config.seed, **own)
        save(run.path("samples", f"{name}.npz"), found[name])
    return found


def read_all(run: Run) -> dict[str, Drawn]:
    """What `draw_all` stored."""
    paths = {name: run.path("samples", f"{name}.npz") for name in PRIORS}
    found = {name: read(path) for name, path in paths.items() if path.is_file()}
    if not found:
        raise FileNotFoundError(f"{run.folder}/samples is empty: run notebook 05 first")
    return found


def inpaint(prior: Any, codes: np.ndarray, mask: np.ndarray, slice_index: int, seed: int = 0, **options) -> np.ndarray:
    """(N, h, w) token maps of one slice index, resampled where `mask` (h, w) or (N, h, w) is true."""
    if not isinstance(prior, Inpainting):
        raise ValueError(f"a {prior.kind} prior draws whole maps only; a transformer or PixelCNN prior can inpaint")
    options |= {"slice_index": slice_index if prior.slice_indices else None, "generator": seeded(seed)}
    maps = torch.as_tensor(np.asarray(codes, np.int64))
    return prior.to(best_device()).fill(maps, torch.as_tensor(mask), **options).cpu().numpy().astype(np.int16)


def fill_box(prior: Any, codes: np.ndarray, slice_index: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """One map (h, w), its middle resampled five times: (5, h, w) tokens, and the mask (h, w) of that box."""
    sides = [max(1, round(side * 0.35)) for side in codes.shape]
    mask, starts = np.zeros(codes.shape, bool), [(whole - side) // 2 for whole, side in zip(codes.shape, sides)]
    mask[tuple(slice(start, start + side) for start, side in zip(starts, sides))] = True
    return inpaint(prior, np.repeat(codes[None], 5, 0), mask, slice_index, **options), mask


def kept_between_slices(codes: np.ndarray, subjects: np.ndarray, slice_indices: np.ndarray, count: int) -> np.ndarray:
    """(count - 1, h, w): how often a subject's token at a position is the same in the next slice."""
    found = np.zeros((count - 1, *codes.shape[1:]))
    place = {key: row for row, key in enumerate(zip(subjects, slice_indices))}
    for index in range(count - 1):
        low = [row for (subject, own), row in place.items() if own == index and (subject, index + 1) in place]
        high = [place[subjects[row], index + 1] for row in low]
        if low:
            found[index] = (codes[low] == codes[high]).mean(0)
    return found


def whole_brain(prior: Any, kept: np.ndarray, *, brains: int = 1, seed: int = 0, **options: Any) -> np.ndarray:
    """(brains, slices, h, w): the lowest slice from the prior, then each slice given the one below.

    A token of the slice below stays as often as between these slices of training subjects, at its position (`kept`).
    The prior samples the others for the new slice index, given those that stayed.
    """
    chance = seeded(seed)
    first = torch.zeros(brains, dtype=torch.int64) if prior.slice_indices else None
    lowest = prior.to(best_device()).sample(brains, slice_index=first, generator=seeded(seed), **options)
    codes = [lowest.cpu().numpy().astype(np.int16)]
    for index, share in enumerate(kept, start=1):
        stay = torch.rand(brains, *share.shape, generator=chance) < torch.as_tensor(share)
        codes.append(inpaint(prior, codes[-1], ~stay.numpy(), index, seed=seed + index, **options))
    return np.stack(codes, axis=1)


def walk(vqvae: Any, first: np.ndarray, last: np.ndarray, steps: int = 7) -> dict[str, np.ndarray]:
    """From one map (h, w) to another, decoded (steps, H, W): vectors mixed, and tokens exchanged one by one."""
    device, share = best_device(), np.linspace(0, 1, steps)[:, None, None]
    start, end = vqvae.quantizer.codebook.detach().cpu().numpy()[np.stack([first, last])].transpose(0, 3, 1, 2)
    mixed = torch.as_tensor(start + share[..., None] * (end - start), dtype=torch.float32, device=device)
    with torch.no_grad():
        images = vqvae.to(device).pixels(mixed, crisp=vqvae.crisp is not None)
    shown = (images.mean(1) * 255).round().to(torch.uint8).cpu().numpy()
    order = np.random.default_rng(0).permutation(first.size).reshape(first.shape) / first.size
    exchanged = np.where(order < share, last, first)
    return {"mixed vectors": shown, "exchanged tokens": decode_codes(vqvae, exchanged, device)}
