"""What the sections of gpu.py share: device, cohort, models trained for a few steps, and looks into a training step."""

from __future__ import annotations

import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from oasis_lib.cohort import Cohort, Split, open_cohort
from oasis_lib.config import DEFAULT_PRIOR, Part, profile
from oasis_lib.device import best_device
from oasis_lib.training import Batches, train_prior, train_vqvae

WAITING = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "_unique2")


class Waits(TorchDispatchMode):
    """Counts, by file and line, operations whose result a GPU must hand to the host before the next can be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[-1].split(".")[0]
        by_mask = name.startswith("index") and any(getattr(x, "dtype", None) == torch.bool for x in flattened(args[1:]))
        if name in WAITING or by_mask:
            ours = [f for f in traceback.extract_stack() if "oasis_lib" in f.filename] or traceback.extract_stack()[
                -2:-1
            ]
            self.found[f"{name} {Path(ours[-1].filename).name}:{ours[-1].lineno}"] += 1
        return function(*args, **(kwargs or {}))


def flattened(values: Any) -> Iterator[Any]:
    for value in values:
        yield from flattened(value) if isinstance(value, list | tuple) else [value]


@contextmanager
def at_each_step(look: Callable[[int], Any]) -> Iterator[list[Any]]:
    """The list that takes what `look` gives before each training step."""
    batch, seen = Batches.batch, []

    def noted(self: Batches, step: int) -> Any:
        seen.append(look(step))
        return batch(self, step)

    Batches.batch = noted
    try:
        yield seen
    finally:
        Batches.batch = batch


def discs(size: int, subjects: int, slices: int) -> Cohort:
    """Grey discs with stripes, in memory: enough to train on, and no more."""
    rng, splits = np.random.default_rng(0), {}
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    for name, count in (("train", subjects), ("validate", max(2, subjects // 4)), ("test", max(2, subjects // 4))):
        radius = rng.uniform(0.2, 0.35, (count * slices, 1, 1)) * size
        images = (np.hypot(x, y) < radius) * (150 + 60 * np.sin(x / rng.uniform(1, 3, radius.shape)))
        subject = np.repeat([f"{name}-{i}" for i in range(count)], slices)
        table = pd.DataFrame({"subject": subject, "slice_index": np.tile(np.arange(slices), count), "cdr": 0.0})
        splits[name] = Split(name, (images + rng.uniform(0, 20, images.shape)).astype(np.uint8), table)
    info = {
        "hash": "discs",
        "size": size,
        "slice_indices": slices,
        "cdrs": [0.0],
        "synthetic": True,
        "left_right": "columns",
    }
    return Cohort(Path("discs"), info, splits)


@dataclass
class Bench:
    """What all sections share: device, cohort, settings, and models trained for as few steps as will do."""

    folder: Path
    cohort: Cohort
    tiny: bool
    done: dict[str, Any]

    @cached_property
    def device(self) -> torch.device:
        return best_device()

    @cached_property
    def steps(self) -> int:
        return 12 if self.tiny else 60

    def part(self, kind: str, **changes: Any) -> Part:
        """The full profile's settings (smoke's where tiny), for `steps` steps unless told otherwise."""
        part = getattr(profile("smoke" if self.tiny else "full"), kind)
        limits = {"epochs": 0, "minutes": 0.0, "steps": self.steps, "compile": False, "precision": "auto"} | changes
        model = part.model
        if kind == "vqvae":
            model = replace(model, factor=8 if self.cohort.size >= 256 else 4, adversarial=0.0, autoencoder_steps=4)
        return Part(model, replace(part.training, **{"validate_every": limits["steps"]} | limits))

    def train(self, kind: str, name: str, part: Part) -> pd.DataFrame:
        out = self.folder / name
        if kind == "vqvae":
            return train_vqvae(self.cohort, out, part, progress=False)
        return train_prior(kind, self.cohort, self.vqvae, out, part, progress=False)

    @cached_property
    def vqvae(self) -> Path:
        self.train("vqvae", "vqvae", self.part("vqvae", steps=5 * self.steps, precision="no"))
        return self.folder / "vqvae"

    @cached_property
    def prior(self) -> Path:
        self.train(DEFAULT_PRIOR, "prior", self.part(DEFAULT_PRIOR, precision="no"))
        return self.folder / "prior"

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], least: float = 0.3) -> float:
        """A call's mean time, after two that don't count."""
        least, count = 0.02 if self.tiny else least, 0
        work(), work(), self.wait()
        begun = time.perf_counter()
        while (passed := time.perf_counter() - begun) < least or not count:
            work(), self.wait()
            count += 1
            passed = time.perf_counter() - begun
        return passed / count


def bench_of(folder: str, cohort: str, tiny: bool, done: dict[str, Any]) -> Bench:
    """On a prepared cohort; without one, on discs. Compiled code of earlier runs is not taken."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "inductor")
    made = open_cohort(Path(cohort).absolute()) if cohort else discs(*((32, 24, 4) if tiny else (128, 40, 32)))
    return Bench(Path(folder), made, tiny, done)
