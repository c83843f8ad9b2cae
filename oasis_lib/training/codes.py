"""A cohort's codes: found once for each VQ-VAE, kept beside it, and written into a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from oasis_lib import metrics
from oasis_lib.checkpoint import WEIGHTS, fingerprint, kept_arrays
from oasis_lib.cohort import Cohort
from oasis_lib.models import VQVAE, load
from oasis_lib.paths import atomic
from oasis_lib.training.data import ends, evenly, swapped, to_images
from oasis_lib.training.vqvae import best_device, in_channels


def encode_images(vqvae: VQVAE, pixels: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """(N, H, W) uint8 -> (N, h, w) int16."""
    vqvae = vqvae.to(device)
    few = metrics.at_once(pixels[0].size, device)
    parts = [vqvae.encode(in_channels(to_images(pixels[i : i + few], device), vqvae)).cpu() for i in range(0, len(pixels), few)]
    return torch.cat(parts).numpy().astype(np.int16)


def decode_codes(vqvae: VQVAE, codes: np.ndarray, device: torch.device | str = "cpu", *, crisp: bool = False) -> np.ndarray:
    """(N, h, w) -> (N, H, W) uint8, by the faithful decoder or the crisp one."""
    vqvae = vqvae.to(device)
    parts, few = [], metrics.at_once(codes[0].size * vqvae.config.factor**2, device)
    for start in range(0, len(codes), few):
        part = torch.from_numpy(codes[start : start + few].astype(np.int64)).to(device)
        parts.append((vqvae.decode(part, crisp=crisp).mean(1) * 255).round().to(torch.uint8).cpu())
    return torch.cat(parts).numpy()


def codes_of(vqvae: VQVAE, cohort: Cohort, split: str, device: torch.device | str = "cpu", *, mirrored: bool = False) -> np.ndarray:
    """A whole split's codes (N, h, w) int16, of its mirrored slices if so asked.

    Those of a model from a folder are kept beside it, not in it: a model may be given away, and codes give back people's scans.
    """
    images = cohort[split].images

    def encode() -> dict[str, np.ndarray]:
        seen = swapped(images, ends(images[evenly(len(images), 256)])) if mirrored else images
        return {"codes": encode_images(vqvae, seen, device)}

    key = {"cohort": cohort.hash, "vqvae": fingerprint(vqvae), "slices": len(images)}
    folder = vqvae.folder and vqvae.folder.with_name(f"{vqvae.folder.name}-codes")
    return kept_arrays(folder, f"{split}-mirrored" if mirrored else split, key, encode)["codes"]


def encode_cohort(vqvae_folder: str | Path, cohort: Cohort, out: str | Path) -> dict[str, np.ndarray]:
    """Every split's codes, written once and read back at once the next time: (N, h, w) int16 each."""
    vqvae, out = load(vqvae_folder), Path(out)
    weights = Path(vqvae_folder) / WEIGHTS
    codes = {}
    for name, split in cohort.splits.items():
        path = out / f"{name}.npy"
        if not path.is_file() or path.stat().st_mtime < weights.stat().st_mtime or len(np.load(path, mmap_mode="r")) != len(split):
            with atomic(path) as beside, beside.open("wb") as file:
                np.save(file, codes_of(vqvae, cohort, name, best_device()))
        codes[name] = np.load(path, mmap_mode="r")
    return codes
