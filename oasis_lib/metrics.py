"""SSIM (score, map and loss), MS-SSIM, PSNR, MAE: batched, on the device, one number an image, in full or in a mask.

Everywhere: images (B, C, H, W) in [0, 1], data range 1, Gaussian window of 11 pixels with sigma 1.5;
equal to scikit-image to 1e-4.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from oasis_lib.device import together

WINDOW, SIGMA = 11, 1.5
STRIP = 64
BORDER = WINDOW // 2
INNER = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))  # where a whole window fits
C1, C2 = 0.01**2, 0.03**2
MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003


def batch_size_for(pixels: int, device: torch.device | str = "cpu") -> int:
    """How many images to work on together; on a CPU few: memory beyond 32 MB is given back and fetched each time."""
    on_cpu = torch.device(device).type == "cpu"
    return max(1, 2**19 // pixels) if on_cpu else min(256, together(device, 256, 512 * pixels))


@lru_cache(maxsize=32)
def _band(size: int, device: torch.device) -> Tensor:
    """The Gaussian window as a banded matrix (size - 10, size): on a CPU its products are five times a convolution."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - BORDER
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    rows = size - WINDOW + 1
    band = torch.zeros(rows, size, dtype=torch.float64)
    for row in range(rows):
        band[row, row : row + WINDOW] = window / window.sum()
    return band.float().to(device)  # MPS has no float64


def _blur(images: Tensor) -> Tensor:
    """On a CPU strip by strip: most of the whole matrix is zeros, and a third of the time is enough for the rest."""
    height, width = images.shape[-2:]
    strip = STRIP if images.device.type == "cpu" else max(height, width)
    across, done = _strips(width, strip), []
    for rows in _strips(height, strip):
        part = _band(rows.stop - rows.start, images.device) @ images[..., rows, :]
        bands = ((part[..., columns], _band(columns.stop - columns.start, images.device)) for columns in across)
        done.append(torch.cat([piece @ band.T for piece, band in bands], -1))
    return torch.cat(done, -2)


def _strips(size: int, strip: int) -> list[slice]:
    """Where windows start that give `strip` values at a time: each reaches over the next one's first ten pixels."""
    last = size - WINDOW + 1
    return [slice(start, min(start + strip, last) + WINDOW - 1) for start in range(0, last, strip)]


def _terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast with structure: (B, C, H - 10, W - 10) each. Their product is the SSIM map."""
    if x.shape != y.shape or x.dim() != 4:
        raise ValueError(f"two batches (B, C, H, W) of one shape are needed, not {tuple(x.shape)} and {tuple(y.shape)}")
    if min(x.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs at least {WINDOW} x {WINDOW} pixels, not {tuple(x.shape[-2:])}")
    with torch.autocast(x.device.type, enabled=False):  # variances as differences of squares: no half precision here
        x, y = x.float(), y.float()
        mx, my, xx, yy, xy = _blur(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
        luminance = (2 * mx * my + C1) / (mx * mx + my * my + C1)
        structure = (2 * (xy - mx * my) + C2) / ((xx - mx * mx) + (yy - my * my) + C2)
    return luminance, structure


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Per image: the plain mean, or the mean where the mask holds (NaN where it holds nowhere)."""
    if mask is None:
        return values.mean(dim=(1, 2, 3))
    mask = mask.to(values.dtype).expand_as(values)
    return (values * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


def ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """The map at the images' own size; within 5 pixels of the edge, where no window fits, it repeats its border."""
    luminance, structure = _terms(x, y)
    return F.pad(luminance * structure, (BORDER,) * 4, mode="replicate")


def ssim(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    luminance, structure = _terms(x, y)
    return _mean(luminance * structure, None if mask is None else mask[INNER])


def ms_ssim(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Over five scales, or as many as the size allows (weights rescaled): 64 pixels take three, 256 take five."""
    scales = 1
    while scales < len(MS_WEIGHTS) and min(x.shape[-2:]) >> scales >= WINDOW:
        scales += 1
    weights = torch.tensor(MS_WEIGHTS[:scales], device=x.device)
    factors = []
    mask = None if mask is None else mask.float()
    for scale in range(scales):
        luminance, structure = _terms(x, y)
        inside = None if mask is None else mask[INNER] > 0.5
        last = scale == scales - 1
        factors.append(_mean(luminance * structure if last else structure, inside).clamp(min=0))
        if not last:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
            mask = None if mask is None else F.avg_pool2d(mask, 2)
    return torch.stack(factors, dim=1).pow(weights / weights.sum()).prod(dim=1)


def mae(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    return _mean((x - y).abs(), mask)


def psnr(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """In decibels; infinite for equal images."""
    return -10 * torch.log10(_mean((x - y) ** 2, mask))


def sharpness(images: Tensor, masks: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels inside the masks."""
    steps = (images[..., 1:] - images[..., :-1]).abs() * masks[..., 1:]
    return steps.sum() / masks[..., 1:].sum()


def brain_mask(images: np.ndarray) -> np.ndarray:
    """Foreground of skull-stripped slices (N, H, W), uint8 or [0, 1]: above 4 % of white, opened by a cross, filled."""
    mask = images > (10 if images.dtype == np.uint8 else 10 / 255)
    for start in range(0, len(mask), 32):  # a few at a time: labels take four bytes a pixel
        _open_and_fill(mask[start : start + 32])
    return mask


def _open_and_fill(mask: np.ndarray) -> None:
    """Opening, then filling of holes, of (N, H, W) in place: all slices in one pass, within their common box."""
    from skimage.measure import label

    rows, columns = np.flatnonzero(mask.any((0, 2))), np.flatnonzero(mask.any((0, 1)))
    if not len(rows):
        return
    box = np.s_[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inner = np.pad(mask[box], ((0, 0), (1, 1), (1, 1)))  # a rim that parts the slices
    for both in (np.logical_and, np.logical_or):  # erosion, dilation: morphology.opening takes 7 times as long
        around, middle = inner.copy(), inner[:, 1:-1, 1:-1]
        for side in (np.s_[:, :-2, 1:-1], np.s_[:, 2:, 1:-1], np.s_[:, 1:-1, :-2], np.s_[:, 1:-1, 2:]):
            both(middle, around[side], out=middle)
    parts = label(~inner.reshape(-1, inner.shape[2]), connectivity=1)  # of the background: the rim's part is outside
    mask[box] = (parts != parts[0, 0]).reshape(inner.shape)[:, 1:-1, 1:-1]


def bootstrap_by_subject(
    values: np.ndarray, subjects: np.ndarray, repeats: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean over subjects of each subject's mean, and its 95 % interval from resampling subjects, never slices."""
    values = np.array(values, float)
    values[~np.isfinite(values)] = np.nan
    means = pd.Series(values).groupby(np.asarray(subjects)).mean().dropna().to_numpy()
    draws = np.random.default_rng(seed).integers(len(means), size=(repeats, len(means)))
    low, high = np.quantile(means[draws].mean(axis=1), [0.025, 0.975])
    return float(means.mean()), float(low), float(high)


PAIRS = 4096  # buckets of neighbouring tokens


def apart(real: Tensor, drawn: Tensor, count: int) -> float:
    """Half the summed difference of two histograms: 0 alike, 1 nothing in common."""
    a, b = (torch.bincount(x.flatten(), minlength=count).float() / x.numel() for x in (real, drawn))
    return float((a - b).abs().sum() / 2)


def in_regions(codes: Tensor, codebook_size: int) -> Tensor:
    """A code together with which of 4 x 4 regions of the map it lies in."""
    h, w = codes.shape[1:]
    down, across = (torch.arange(side, device=codes.device) * 4 // side for side in (h, w))
    return codes + (down[:, None] * 4 + across) * codebook_size


def pairs(codes: Tensor) -> Tensor:
    """A code and its right neighbour, in one of a few thousand buckets."""
    return (codes[:, :, :-1] * 2_654_435_761 + codes[:, :, 1:] * 40_503 & 0x7FFFFFFF) % PAIRS
