"""Batches of training slices: uint8 on the device when it fits, streamed from the memory map when not, varied there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from oasis_lib.cohort import Cohort
from oasis_lib.config import TrainingConfig
from oasis_lib.device import SHARE, card_memory, upload

BLACK = 10  # grey values up to this are noise, not head


@dataclass(frozen=True)
class Batch:
    images: Tensor  # (B, 1, H, W) in [0, 1]
    rows: Tensor  # (B,) rows of the split
    slice_index: Tensor  # (B,) -1 where it is not known
    cdr: Tensor  # (B,) index into cohort.cdrs, -1 where it is not known
    mirrored: Tensor  # (B,) whether left and right were swapped
    chance: Tensor  # (2, B) uniform draws, one a label: whether a prior leaves it open


class Batches:
    """`batch(step)` depends on nothing but the seed and the step, so a resumed run needs no state of its own.

    Of `world` processes each takes its share of the same global batch, variation included. `crop` leaves out the frame
    that is black in every training slice: a convolution learns nothing there.
    """

    def __init__(self, cohort: Cohort, training: TrainingConfig, device: torch.device, rank=0, world=1, *, crop=False):
        part = cohort["train"]
        if len(part) == 0:
            raise ValueError(f"{cohort.folder} has no slices to train on")
        self.training, self.device, self.rank, self.world = training, device, rank, world
        self.size, self.count = min(training.batch, len(part)), len(part)
        if self.size % world:
            raise ValueError(f"{world} processes can't share a batch of {self.size}; set it to a multiple of {world}")
        self.steps_an_epoch = self.count // self.size
        self.box = content_box(part.images, training.shift) if crop else (slice(None), slice(None))
        cropped = part.images[:, *self.box]
        fits = cropped.nbytes < SHARE * card_memory(device)[0]
        self.images = torch.from_numpy(np.array(cropped)).to(device) if fits else cropped
        self.slice_index, self.cdr = labels_of(cohort, "train", device)
        self.flip, self.ends = flips(cohort, training), ends(cropped[linspace_rows(len(part), 256)])
        self._epoch, self._order = -1, torch.empty(0)

    def batch(self, step: int) -> Batch:
        epoch, place = divmod(step, self.steps_an_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(self.count, generator=seeded(self.training.seed, 1, epoch))
        mine = slice(self.rank, None, self.world)
        rows = self._order[place * self.size : (place + 1) * self.size][mine]
        draws = torch.rand(self.size, 4, generator=seeded(self.training.seed, 2, step))[mine]
        pixels = self._pixels(rows)
        rows, draws = upload(rows, self.device), upload(draws, self.device)
        mirrored = (draws[:, 2] >= 0.5) & self.flip
        images = vary(pixels, draws, self.training, mirrored, self.ends)
        chance = upload(torch.rand(2, self.size, generator=seeded(self.training.seed, 5, step))[:, mine], self.device)
        return Batch(images, rows, self.slice_index[rows], self.cdr[rows], mirrored, chance)

    def _pixels(self, rows: Tensor) -> Tensor:
        if isinstance(self.images, Tensor):
            return self.images[upload(rows, self.device)]
        order = np.argsort(rows.numpy())  # the disk is read in its own order
        pixels = np.empty((len(rows), *self.images.shape[1:]), np.uint8)
        pixels[order] = self.images[rows.numpy()[order]]
        return upload(torch.from_numpy(pixels), self.device)


def vary(pixels: Tensor, draws: Tensor, training: TrainingConfig, mirrored: Tensor, ends: int) -> Tensor:
    """(B, H, W) uint8 and (B, 4) uniform draws -> (B, 1, H, W): each image its own shift and brightness, some mirrored.

    A mirror puts column x at `ends` - x. torchvision draws once a batch, or goes image by image.
    """
    count, height, width = pixels.shape
    span = 2 * training.shift + 1
    down, across = ((draws[:, :2] * span).long() - training.shift).T
    rows = (torch.arange(height, device=pixels.device) + down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=pixels.device) + across[:, None]).clamp(0, width - 1)
    columns = torch.where(mirrored[:, None], (ends - columns).clamp(0, width - 1), columns)
    index = torch.arange(count, device=pixels.device)[:, None, None]
    images = pixels[index, rows[:, :, None], columns[:, None, :]][:, None].float() / 255
    if training.intensity:
        images = (images * (1 + training.intensity * (2 * draws[:, 3] - 1))[:, None, None, None]).clamp(max=1)
    return images


def flips(cohort: Cohort, training: TrainingConfig) -> bool:
    """Whether brains are mirrored: only where that gives another plausible head."""
    return training.flip and cohort.info.get("left_right") == "columns"


def mirrored(images: np.ndarray, like: np.ndarray) -> np.ndarray:
    """All of these (..., W) mirrored as `vary` does it, about the middle of the brains in `like`."""
    columns = ends(like[linspace_rows(len(like), 256)]) - np.arange(width := images.shape[-1])
    return images[..., np.clip(columns, 0, width - 1)]


def ends(images: np.ndarray) -> int:
    """Twice the column of the brains' middle: a mirror there leaves them in place, one amid the frame moves them."""
    lit = (np.asarray(images) > BLACK).sum((0, 1))
    return round(2 * float((lit * np.arange(len(lit))).sum() / lit.sum())) if lit.any() else len(lit) - 1


def content_box(images: np.ndarray, margin: int, multiple: int = 16) -> tuple[slice, slice]:
    """Rows and columns outside which every slice is black, grown by a margin to sizes that any code grid divides."""
    brightest, box = images.max(axis=0), []
    for axis in (1, 0):
        lit = np.flatnonzero(brightest.max(axis=axis) > BLACK)
        size = brightest.shape[1 - axis]
        low, high = (lit[0], lit[-1] + 1) if len(lit) else (0, size)
        wanted = min(size, -(-(high - low + 2 * margin) // multiple) * multiple)
        start = min(max(0, (low + high - wanted) // 2), size - wanted)
        box.append(slice(int(start), int(start + wanted)))
    return box[0], box[1]


def to_images(pixels: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """(N, H, W) uint8 -> (N, 1, H, W) in [0, 1]."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3:
        raise ValueError(f"prepared slices are (N, H, W) uint8, not {pixels.shape} {pixels.dtype}")
    return torch.from_numpy(np.array(pixels)).to(device)[:, None].float() / 255


def cdr_index(cohort: Cohort, split: str) -> np.ndarray:
    """Each slice's place in `cohort.cdrs`; -1 without one."""
    table, known = cohort[split].table, {cdr: place for place, cdr in enumerate(cohort.cdrs)}
    return np.array([known.get(cdr, -1) for cdr in table.get("cdr", [None] * len(table))], np.int64)


def labels_of(cohort: Cohort, split: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N,) slice index and CDR of each slice, as whole numbers."""
    found = cohort[split].slice_indices, cdr_index(cohort, split)
    return tuple(torch.from_numpy(label.astype(np.int64)).to(device) for label in found)


def linspace_rows(count: int, most: int) -> np.ndarray:
    """At most `most` rows, spread over all of them: what is validated on while training."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def even_slice_indices(count: int, slice_indices: int) -> np.ndarray:
    """`count` slice indices in order, each as often as any other to within one; -1 (open) where a cohort has none."""
    return (np.arange(count) * 2 + 1) * slice_indices // (2 * count) if slice_indices > 0 else np.full(count, -1)


def seeded(*numbers: int) -> torch.Generator:
    """A generator for one purpose and one step."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 12_345) % (2**63 - 1)
    return torch.Generator().manual_seed(seed)


def in_channels(images: Tensor, model: nn.Module) -> Tensor:
    """Grey slices for a model that wants colour: the same three times."""
    return images.expand(-1, model.config.channels, -1, -1)
