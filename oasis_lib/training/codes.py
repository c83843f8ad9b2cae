"""A cohort's tokens: found once for each VQ-VAE, and kept beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from oasis_lib import metrics
from oasis_lib.cohort import Cohort
from oasis_lib.device import best_device
from oasis_lib.models import VQVAE, load
from oasis_lib.storage import fingerprint, kept_arrays
from oasis_lib.training import data
from oasis_lib.training.data import in_channels, to_images

Device = torch.device | str


def encode_images(vqvae: VQVAE, pixels: np.ndarray, device: Device = "cpu") -> np.ndarray:
    """(N, H, W) uint8 -> (N, h, w) int16."""
    if not len(pixels):
        raise ValueError("no images to encode: the batch is empty")
    vqvae = vqvae.to(device)
    few = metrics.batch_size_for(pixels[0].size, device)
    slices = (to_images(pixels[i : i + few], device) for i in range(0, len(pixels), few))
    return torch.cat([vqvae.encode(in_channels(part, vqvae)).cpu() for part in slices]).numpy().astype(np.int16)


def decode_codes(vqvae: VQVAE, codes: np.ndarray, device: Device = "cpu", *, crisp: bool | None = None) -> np.ndarray:
    """(N, h, w) -> (N, H, W) uint8, by the faithful or the crisp decoder; None is the crisp one where there is one."""
    if not len(codes):
        raise ValueError("no tokens to decode: the batch is empty")
    vqvae, crisp = vqvae.to(device), vqvae.crisp is not None if crisp is None else crisp
    few = metrics.batch_size_for(codes[0].size * vqvae.config.factor**2, device)
    parts = torch.from_numpy(codes.astype(np.int64)).split(few)
    shown = (vqvae.decode(part.to(device), crisp=crisp).mean(1) for part in parts)
    return torch.cat([(part * 255).round().to(torch.uint8).cpu() for part in shown]).numpy()


def codes_of(vqvae: VQVAE, cohort: Cohort, split: str, device: Device = "cpu", *, mirrored: bool = False) -> np.ndarray:
    """A whole split's tokens (N, h, w) int16, of its mirrored slices if so asked.

    Those of a model from a folder are kept beside it, not in it: a model may be given away, and tokens give back scans.
    """
    images, own = cohort[split].images, vqvae.folder
    beside = own and own.with_name("codes" if own.name == "vqvae" else f"{own.name}-codes")
    key = {"cohort": cohort.hash, "vqvae": fingerprint(vqvae), "slices": len(images)}

    def encode() -> dict[str, np.ndarray]:
        return {"": encode_images(vqvae, data.mirrored(images, images) if mirrored else images, device)}

    return kept_arrays(beside, f"{split}-mirrored" if mirrored else split, key, encode)[""]


def encode_cohort(vqvae_folder: str | Path, cohort: Cohort) -> dict[str, np.ndarray]:
    """Every split's tokens, (N, h, w) int16 each."""
    vqvae = load(vqvae_folder)
    return {name: codes_of(vqvae, cohort, name, best_device()) for name in cohort.splits}
