"""Sets of slices to be judged, and the feature space of distances: a small network, trained on half of the subjects."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oasis_lib.cohort import Split
from oasis_lib.device import full_precision
from oasis_lib.metrics import batch_size_for
from oasis_lib.storage import CONFIG, read_config, read_weights, save_model

FEATURES = 32 + 64 + 4 * 128
VERSION = 4  # of network and training: a cached network of another version is trained again


@dataclass(frozen=True, eq=False)
class Samples:
    """A set of slices to be judged. Without `subjects`, as for generated slices, each slice is a subject of its own."""

    images: np.ndarray  # (N, H, W) uint8, or floats in [0, 1]
    slice_indices: np.ndarray  # (N,) asked for, or drawn; -1 where open
    subjects: np.ndarray | None = None
    raw: np.ndarray | None = None  # (N, features), where these are known already

    @classmethod
    def of(cls, split: Split, rows: np.ndarray | slice = slice(None)) -> Samples:
        """Real slices."""
        return cls(np.asarray(split.images[rows]), split.slice_indices[rows], split.subjects[rows])

    def some(self, rows: np.ndarray) -> Samples:
        """Those rows alone."""
        parts = (self.images, self.slice_indices, self.subjects, self.raw)
        return Samples(*(None if part is None else np.asarray(part)[rows] for part in parts))

    @property
    def groups(self) -> np.ndarray:
        return np.arange(len(self.images)) if self.subjects is None else np.asarray(self.subjects)


def shared_counts(*sides: np.ndarray) -> dict[int, int]:
    """slice index -> how many slices of it every side (an array of slice indices) can give."""
    counts = [dict(zip(*np.unique(side, return_counts=True))) for side in sides]
    if not (shared := set.intersection(*map(set, counts))):
        raise ValueError("samples and cohort have no slice index in common; draw samples with `slice_index=`")
    return {int(index): int(min(count[index] for count in counts)) for index in sorted(shared)}


class FeatureNet(nn.Module):
    """Classifies slice index and subject of (B, 1, H, W) slices; its pooled maps (B, FEATURES) are the features."""

    def __init__(self, size: int, slice_indices: int, subjects: int):
        super().__init__()
        stride = max(1, size // 64)
        layers = ((1, 16, 2 * stride + 1, stride), (16, 32, 3, 2), (32, 64, 3, 2), (64, 128, 3, 2))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, kernel, step, kernel // 2), nn.BatchNorm2d(outputs), nn.ReLU())
            for inputs, outputs, kernel, step in layers
        )
        classes = {"slice_index": max(slice_indices, 1), "subject": subjects}
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, count) for name, count in classes.items()})
        self.config = {"size": size, "slice_indices": slice_indices, "subjects": subjects}

    def forward(self, images: Tensor) -> Tensor:
        pooled, x = [], images * 2 - 0.5
        for stage in self.stages:
            x = stage(x)
            pooled.append(x.mean((2, 3)))
        quarters = F.adaptive_avg_pool2d(x, 2).flatten(1)  # the last stage keeps places, the earlier ones averages
        return torch.cat([*pooled[1:-1], quarters], dim=1)


def train_network(samples: Samples, *, steps: int, seed: int, device: str = "cpu") -> FeatureNet:
    """Half a minute on two idle cores. The same subjects and seed give the same network."""
    images, slice_indices = samples.images, samples.slice_indices
    _, numbers = np.unique(samples.groups, return_inverse=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = FeatureNet(images.shape[-1], int(slice_indices.max()) + 1, int(numbers.max()) + 1).to(device)
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=max(steps, 2))
        targets = {"slice_index": torch.as_tensor(slice_indices.copy()), "subject": torch.as_tensor(numbers)}
        for _ in range(steps):
            rows = torch.randint(len(images), (32,), generator=generator)
            batch = to_tensor(images[rows.numpy()], device)
            batch = batch * (0.9 + 0.2 * torch.rand(len(rows), 1, 1, 1, generator=generator)).to(device)
            batch = torch.roll(batch, torch.randint(-3, 4, (2,), generator=generator).tolist(), dims=(2, 3))
            hidden, loss = F.dropout(net(batch), 0.2), torch.zeros((), device=device)
            for name, target in targets.items():
                if (target >= 0).all():
                    loss = loss + F.cross_entropy(net.heads[name](hidden), target[rows].to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


def cached_network(cache: Path | None, key: dict, make: Callable[[], FeatureNet]) -> FeatureNet:
    """The network of this key from the folder `cache`, or made and kept there."""
    if cache and (cache / CONFIG).is_file():
        try:
            config = read_config(cache)
            if config.get("key") == key:
                net = FeatureNet(**config["model"])
                net.load_state_dict(read_weights(cache, config, net.state_dict()))
                return net.eval()
        except (ValueError, FileNotFoundError) as error:
            warnings.warn(f"{error}; the feature network is trained anew", stacklevel=2)
    net = make()
    if cache:
        save_model(cache, net.state_dict(), {"kind": "features", "model": net.config, "key": key})
    return net


def to_tensor(images: np.ndarray, device: str = "cpu") -> Tensor:
    """(N, H, W), uint8 or already in [0, 1] -> (N, 1, H, W) float in [0, 1]."""
    tensor = torch.as_tensor(np.array(images))[:, None]
    return tensor.to(device).float() / 255 if tensor.dtype == torch.uint8 else tensor.float().to(device)


@torch.no_grad()
def extract(network: nn.Module, images: np.ndarray, device: str = "cpu") -> np.ndarray:
    """(N, H, W) -> (N, FEATURES) float32, in full precision: features of two devices are compared."""
    network, few = network.to(device), batch_size_for(images[0].size, device)
    with full_precision(device):
        parts = [network(to_tensor(images[i : i + few], device)).cpu() for i in range(0, len(images), few)]
    return torch.cat(parts).numpy()


@dataclass(frozen=True)
class Space:
    """Features standardised, projected on their first principal components, whitened; fitted on training subjects."""

    mean: np.ndarray
    basis: np.ndarray  # (FEATURES, components)

    @classmethod
    def fit(cls, features: np.ndarray, components: int) -> Space:
        mean, spread = features.mean(0), features.std(0)
        spread = np.maximum(spread, 0.1 * np.median(spread[spread > 0]))  # corners that hold only background stay small
        standard = (features - mean) / spread
        values, vectors = np.linalg.eigh(standard.T @ standard / len(features))
        keep = np.argsort(values)[::-1][: min(components, (len(features) - 1) // 2)]
        basis = vectors[:, keep] / np.sqrt(values[keep])  # whitened: else size and slice index outweigh all detail
        return cls(mean, (basis / spread[:, None]).astype(np.float32))

    def project(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) @ self.basis
