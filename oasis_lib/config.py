"""Every setting of the study: one frozen dataclass per part, gathered in profiles. A profile is data, never an `if`."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

# The smallest and largest value of a number, by its name; of all others 0 and 1e9.
LIMITS = {
    (0, 1): "decay dropout token_dropout beta1 beta2 ema warmup intensity",
    (0, 100): "lr weight_decay",
    (0.01, 100): "mm",
    (0, 512): "shift blocks",
    (0, 4096): "lesions slice_indices cdrs knots",
    (0, 2**31): "seed",
    (1, 256): "channels layers heads",
    (1, 1024): "grid",
    (1, 16_384): "code_dim hidden noise width",
    (1, 32_768): "codebook_size",  # tokens are kept in 16 bits
    (1, 1e6): "subjects samples bootstrap batch components neighbours",
    (4, 16): "factor",
    (16, 4096): "size",
}
RANGES = {name: limits for limits, names in LIMITS.items() for name in names.split()}
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class Checked:
    """A dataclass whose fields are checked when it is made, by type and range."""

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            _check(name, kind, getattr(self, name))


as_dict, _kinds = dataclasses.asdict, cache(typing.get_type_hints)


def _check(name: str, kind: Any, value: Any) -> None:
    given, inner, error = repr(value) if isinstance(value, str) else str(value), typing.get_args(kind), ""
    if type(None) in inner:  # such a field may be left open
        return None if value is None else _check(name, inner[0], value)
    if typing.get_origin(kind) is tuple:
        if type(value) is tuple and len(value) == len(inner):
            for one, part in zip(value, inner):
                _check(name, part, one)
        else:
            error = f"{len(inner)} numbers"
    elif typing.get_origin(kind) is Literal:
        error = "" if type(value) is str and value in inner else f"one of {', '.join(map(repr, inner))}"
    elif type(value) is not kind and (kind, type(value)) != (float, int):
        error = f"{WORDS[kind]}, not {type(value).__name__}"
    elif kind in (int, float):
        low, high = RANGES.get(name, (0, 1e9))
        error = "" if low <= value <= high else f"from {low:g} to {high:g}"
    if error:
        raise ValueError(f"{name}={given[:40]} must be {error}")


@dataclass(frozen=True)
class CohortConfig(Checked):
    size: int = 128  # slices are square, this many pixels a side
    subjects: int = 60  # of the phantom
    lesions: int = 8  # further copies of phantom test subjects, with a planted lesion
    seed: int = 0


@dataclass(frozen=True)
class VQVAEConfig(Checked):
    channels: int = 1
    factor: int = 4  # pixels a code covers, each way: 4, 8 or 16
    codebook_size: int = 512
    code_dim: int = 8
    hidden: int = 64  # channels; half as many inside a residual block
    blocks: int = 2  # residual, at each size
    codebook: Literal["ema", "gradient"] = "ema"
    decay: float = 0.99
    dead_code_threshold: float = 0.05  # an entry used less than this fraction of the mean restarts; 0 is off
    commitment: float = 0.25
    loss: Literal["l1", "l2", "l1+ssim"] = "l1+ssim"  # "l2" is divided by the variance of the training pixels
    autoencoder_steps: int = 60  # as a plain autoencoder, before k-means initialises the codebook; 0 leaves it uniform
    normalise: bool = True  # pixels to mean 0 and variance 1
    adversarial: float = 0.0  # length of the stage that trains the crisp decoder, relative to the first; 0 is off


@dataclass(frozen=True)
class PriorConfig(Checked):
    knots: int = 8  # slice indices at which tokens are counted position by position; linear between them
    code_dim: int = 8  # of the VQ-VAE's codebook; training fills it in


@dataclass(frozen=True)
class TransformerConfig(PriorConfig):
    width: int = 192
    layers: int = 6
    heads: int = 3
    dropout: float = 0.0
    token_dropout: float = 0.05  # fraction of tokens hidden from the network in training


@dataclass(frozen=True)
class PixelCNNConfig(PriorConfig):
    hidden: int = 64
    layers: int = 12
    dropout: float = 0.1


@dataclass(frozen=True)
class CodeGANConfig(PriorConfig):
    knots: int = 12  # slice indices at which mean and components are kept; linear between them
    noise: int = 48  # standard normal numbers per subject: scores of as many principal components
    hidden: int = 48  # channels of both networks at half the grid
    discriminator_lr_scale: float = 2.0


@dataclass(frozen=True)
class TokenMaps(Checked):
    """What a prior is over."""

    grid: tuple[int, int]
    codebook_size: int
    slice_indices: int
    cdrs: int


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """Training ends at the first of `epochs`, `steps` and `minutes` that is not 0."""

    epochs: int = 0
    steps: int = 0
    minutes: float = 0.0
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    warmup: float = 0.03  # fraction of the run
    clip: float = 1.0
    ema: float = 0.999  # of the weights; 0 is off
    precision: Literal["auto", "bf16", "no"] = "auto"
    compile: bool = False
    validate_every: int = 0  # steps; 0 is once an epoch
    shift: int = 0  # pixels, either way; a VQ-VAE's
    flip: bool = True  # left-right
    intensity: float = 0.0  # relative scale, either way; a VQ-VAE's
    seed: int = 0


@dataclass(frozen=True)
class EvaluationConfig(Checked):
    samples: int = 1000  # per prior
    bootstrap: int = 2000
    feature_steps: int = 300  # of the feature network's training
    components: int = 32  # of the feature space
    neighbours: int = 5  # of precision and recall
    detector_steps: int = 200  # of each detector's training
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """A model and how it is trained; `--set vqvae.epochs=3` finds its field in either."""

    model: Any
    training: TrainingConfig

    @classmethod
    def of(cls, model: Any, **training: Any) -> Part:
        return cls(model, TrainingConfig(**training))


@dataclass(frozen=True)
class Profile:
    name: str
    cohort: CohortConfig
    vqvae: Part
    pixelcnn: Part
    transformer: Part
    codegan: Part
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


DEFAULT_PRIOR = "transformer"
PRIORS = {
    "transformer": TransformerConfig,
    "pixelcnn": PixelCNNConfig,
    "codegan": CodeGANConfig,
}
MODEL_CONFIGS = {"vqvae": VQVAEConfig} | PRIORS
VARIED = {"shift": 4, "intensity": 0.05}
FEW_EPOCHS = {"batch": 8, "validate_every": 16}  # small batches: more steps
FULL = FEW_EPOCHS | {"batch": 16, "validate_every": 200}
ADVERSARIAL = {"lr": 3e-4, "beta1": 0.0, "weight_decay": 0.0, "clip": 0.0, "ema": 0.998}  # no momentum
ADVERSARIAL |= {"batch": 16, "validate_every": 250}


SMOKE_VQVAE = VQVAEConfig(codebook_size=64, hidden=32, autoencoder_steps=12, adversarial=0.5)
LAPTOP_TRANSFORMER = TransformerConfig(width=128, layers=4, heads=4, dropout=0.1, knots=6)
FULL_VQVAE = VQVAEConfig(factor=8, codebook_size=1024, hidden=128, adversarial=0.6)
FULL_TRANSFORMER = TransformerConfig(width=384, layers=8, heads=8, dropout=0.05)
PROFILES = {
    "smoke": Profile(
        name="smoke",
        cohort=CohortConfig(size=64, subjects=10, lesions=2),
        vqvae=Part.of(SMOKE_VQVAE, epochs=4, batch=16, lr=2e-3, shift=2, intensity=0.05),
        pixelcnn=Part.of(PixelCNNConfig(hidden=16, layers=5), epochs=1, lr=2e-3),
        transformer=Part.of(TransformerConfig(width=32, layers=2, heads=2), epochs=2, batch=16, lr=4e-3),
        codegan=Part.of(CodeGANConfig(hidden=16), epochs=2, **ADVERSARIAL),
        evaluation=EvaluationConfig(samples=64, bootstrap=200, feature_steps=40, detector_steps=20),
    ),
    "laptop": Profile(
        name="laptop",
        cohort=CohortConfig(size=128, subjects=60, lesions=8),
        vqvae=Part.of(VQVAEConfig(adversarial=0.6), minutes=1.0, batch=16, lr=2e-3, validate_every=100, **VARIED),
        pixelcnn=Part.of(PixelCNNConfig(layers=10, knots=4), minutes=0.25, **FEW_EPOCHS),
        transformer=Part.of(LAPTOP_TRANSFORMER, minutes=1.4, lr=1.5e-3, **FEW_EPOCHS | {"validate_every": 200}),
        codegan=Part.of(CodeGANConfig(noise=32, knots=6), minutes=0.2, **ADVERSARIAL),
        evaluation=EvaluationConfig(samples=96),
    ),
    "full": Profile(
        name="full",
        cohort=CohortConfig(size=256, subjects=150, lesions=15),
        vqvae=Part.of(FULL_VQVAE, minutes=1.25, validate_every=200, **VARIED),
        pixelcnn=Part.of(PixelCNNConfig(hidden=128, layers=16), minutes=0.5, **FULL),
        transformer=Part.of(FULL_TRANSFORMER, minutes=2.5, lr=6e-4, weight_decay=0.05, compile=True, **FULL),
        codegan=Part.of(CodeGANConfig(hidden=96), minutes=0.2, **ADVERSARIAL),
        evaluation=EvaluationConfig(samples=480),
    ),
}


def profile(name: str, settings: Iterable[str] = (), **parts: Part) -> Profile:
    """A profile by name, with other `parts`, and settings such as "vqvae.epochs=20" applied."""
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    chosen = dataclasses.replace(PROFILES[name], **parts)
    sections = [field.name for field in dataclasses.fields(Profile) if field.name != "name"]
    for setting in settings:
        found = re.fullmatch(r"\s*(\w+)\.(\w+)\s*=\s*(.*?)\s*", setting)
        if not found:
            raise ValueError(f"setting {setting!r} must look like vqvae.epochs=20")
        section, key, text = found.groups()
        if section not in sections:
            raise unknown("section", section, sections)
        part = getattr(chosen, section)
        configs = [part.model, part.training] if isinstance(part, Part) else [part]
        if key not in (known := [name for config in configs for name in as_dict(config)]):
            raise unknown(f"{section} setting", key, known)
        at = next(at for at, config in enumerate(configs) if hasattr(config, key))
        try:
            configs[at] = dataclasses.replace(configs[at], **{key: literal(text)})
        except ValueError as error:
            raise ValueError(f"{section}.{error}") from None
        part = Part(*configs) if isinstance(part, Part) else configs[0]
        chosen = dataclasses.replace(chosen, **{section: part})
    return chosen


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that does not exist, with the nearest one that does."""
    close = difflib.get_close_matches(name, known := list(known), n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return ValueError(f"no {what} {name!r}{meant} (known: {', '.join(known)})")


def from_dict(cls: type, values: dict[str, Any], *, whole: bool = False) -> Any:
    """A config from a saved file. Unknown names are refused; so are missing ones, if `whole` or without a default."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in sorted(values.keys() - fields.keys()):
        raise unknown("setting", name, fields)
    for name, one in fields.items():
        if name not in values and (whole or one.default is dataclasses.MISSING):
            raise ValueError(f"{cls.__name__} needs {name!r}, which is missing")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def literal(text: str) -> Any:
    """What a word of the command line stands for, as JSON or Python writes it; else the word itself."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, TypeError):
            return read(text)
    return text
