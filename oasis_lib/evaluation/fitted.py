"""What an evaluation fits on real subjects, once a cohort: features, tissue classes, a slice-index reader, the copy audit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from oasis_lib.cohort import Cohort
from oasis_lib.config import EvaluationConfig
from oasis_lib.evaluation import anatomy, features, memorisation
from oasis_lib.evaluation.features import Space, cached_network, extract, train_network
from oasis_lib.storage import fingerprint, kept_arrays
from oasis_lib.training import codes_of, decode_codes


@dataclass(frozen=True, eq=False)
class Samples:
    """A set of slices to be judged. `subjects` is who they show; generated slices are one subject each."""

    images: np.ndarray  # (N, H, W) uint8, or floats in [0, 1]
    slice_indices: np.ndarray  # (N,) asked for, or drawn; -1 where open
    subjects: np.ndarray | None = None
    raw: np.ndarray | None = None  # their features, where these are known already

    @property
    def given(self) -> tuple[np.ndarray, ...]:
        """Images, slice indices and, where known, subjects."""
        return (
            (self.images, self.slice_indices)
            if self.subjects is None
            else (self.images, self.slice_indices, np.asarray(self.subjects))
        )

    @property
    def groups(self) -> np.ndarray:
        return np.arange(len(self.images)) if self.subjects is None else np.asarray(self.subjects)


class Fitted:
    """Features are fitted on one half of the training subjects; the other half is the real-vs-real baseline (`floor`).

    `split` is "test", or "validate" while settings are still being chosen. With the `vqvae` that samples come from, the
    audit for copies sees real subjects through its tokens, as samples are seen.
    """

    def __init__(
        self,
        cohort: Cohort,
        config: EvaluationConfig | None = None,
        *,
        device: str = "cpu",
        cache: str | Path | None = None,
        split: str = "test",
        vqvae: Any | None = None,
    ):
        self.cohort, self.config, self.device, self.vqvae = cohort, config or EvaluationConfig(), str(device), vqvae
        train, real = cohort["train"], cohort[split]
        subjects = np.unique(train.subjects)
        if len(subjects) < 4 or len(np.unique(real.subjects)) < 1:
            raise ValueError(f"{cohort.folder}: an evaluation needs at least 4 training subjects and 1 in {split}")
        half = np.random.default_rng(self.config.seed).permutation(subjects)[: len(subjects) // 2]
        self.fit_rows = np.flatnonzero(np.isin(train.subjects, half))
        self.baseline_rows = np.flatnonzero(~np.isin(train.subjects, half))
        self.split, self.real = split, real
        key = {"cohort": cohort.hash, "features": features.VERSION, "steps": self.config.feature_steps, "seed": self.config.seed}
        self.cache = Path(cache) / "features" if cache else None
        self.network = cached_network(self.cache, key, self._train_network)
        self.key = key | {"network": fingerprint(self.network)}
        self.raw = {name: self._subjects(name) for name in sorted({"train", "validate", "test", split})}
        self.space = Space.fit(self.network, self.raw["train"][self.fit_rows], self.config.components)

    def _train_network(self) -> features.FeatureNet:
        train, rows, config = self.cohort["train"], self.fit_rows, self.config
        options = {"steps": config.feature_steps, "seed": config.seed, "device": self.device}
        return train_network(np.asarray(train.images[rows]), train.slice_indices[rows], train.subjects[rows], **options)

    def _subjects(self, name: str) -> np.ndarray:
        found = kept_arrays(self.cache, f"subjects-{name}", self.key, lambda: {"raw": self.extract(self.cohort[name].images)})
        return found["raw"]

    def extract(self, images: np.ndarray) -> np.ndarray:
        return extract(self.network, images, self.device)

    @cached_property
    def baseline(self) -> Samples:
        train, rows = self.cohort["train"], self.baseline_rows
        return Samples(train.images[rows], train.slice_indices[rows], train.subjects[rows], self.raw["train"][rows])

    @cached_property
    def thumbnails(self) -> np.ndarray:
        return memorisation.shrink(self.cohort["train"].images, self.device)

    @cached_property
    def mixture(self) -> anatomy.Mixture:
        return anatomy.Mixture.fit(self.cohort["train"].images, self.config.seed)

    @cached_property
    def real_areas(self) -> np.ndarray:
        return self.mixture.areas(np.asarray(self.real.images))

    @cached_property
    def reader(self) -> anatomy.SliceIndexRegressor | None:
        train = self.cohort["train"]
        if self.cohort.slice_indices < 2 or train.slice_indices.min() < 0:
            return None
        return anatomy.SliceIndexRegressor(
            np.concatenate([self.raw["train"], self.thumbnails], 1), train.slice_indices, train.subjects
        )

    def slice_index_errors(self, samples: Samples, raw: np.ndarray) -> np.ndarray:
        """(N,) distance of the slice index read from the one asked for; NaN where none can be read."""
        if self.reader is None:
            return np.full(len(samples.images), np.nan)
        seen = np.concatenate([raw, memorisation.shrink(samples.images, self.device)], 1)
        return np.abs(self.reader.read(seen, samples.subjects) - samples.slice_indices)

    @cached_property
    def audit(self) -> dict[str, Any]:
        """Training slices in pixels and in features, and the distances of held-out subjects from them.

        Through the tokens on both sides: a copy is as blurred as all that tokens give, and would lie far from its original.
        """
        bank, held = self._audited("train"), ("validate", "test")
        found, slice_indices = (
            [self._audited(name) for name in held],
            np.concatenate([self.cohort[name].slice_indices for name in held]),
        )
        out = {where: np.concatenate([one[where] for one in found]) for where in bank}
        lines = {where: memorisation.Calibration(self.nearest_to(out[where], where, bank), slice_indices) for where in bank}
        return {"bank": bank, "lines": lines}

    def _audited(self, name: str) -> dict[str, np.ndarray]:
        def look() -> dict[str, np.ndarray]:
            images, found = self.cohort[name].images, self.raw[name]
            if self.vqvae is not None:
                images = decode_codes(self.vqvae, codes_of(self.vqvae, self.cohort, name, self.device), self.device)
                found = self.extract(images)
            return {"pixels": memorisation.thumbnails(images, device=self.device).astype(np.float16), "features": found}

        key = self.key | {"vqvae": self.vqvae and fingerprint(self.vqvae)}
        kept = kept_arrays(self.cache, f"audit-{name}", key, look)
        return kept | {"features": self.space.project(kept["features"])}

    def nearest_to(
        self, points: np.ndarray, where: str, bank: dict[str, np.ndarray], own: np.ndarray | None = None
    ) -> memorisation.Nearest:
        flip = where == "pixels" and self.cohort.info.get("left_right")
        mirror = memorisation.mirrored(points) if flip else None
        return memorisation.nearest(points, bank[where], self.cohort["train"].subjects, mirror, own)

    def real_errors(self) -> dict[str, float]:
        """Errors of the instruments: the slice-index reader on real subjects, the tissue classes against truth."""
        real = Samples(np.asarray(self.real.images), self.real.slice_indices, self.real.subjects)
        errors = self.slice_index_errors(real, self.raw[self.split])
        found = (
            {"slice_index_within_one": float((errors < 1.5).mean()), "slice_index_error": float(errors.mean())}
            if self.reader
            else {}
        )
        truth = anatomy.segmentation_error(self.mixture, self.real) if self.real.tissue is not None else {}
        return found | truth
