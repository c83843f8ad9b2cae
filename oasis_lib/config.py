"""Every setting of the study: one frozen dataclass a part, gathered in profiles. A profile is data, never an `if`."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

# The smallest and largest value of each number, by its name; others: see `checked`.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("subjects", "samples", "bootstrap", "batch", "components", "neighbours", "draws"), (1, 1e6)),
    **dict.fromkeys(("decay", "dropout", "token_dropout", "beta1", "beta2", "ema", "warmup", "intensity"), (0, 1)),
    **dict.fromkeys(("code_dim", "hidden", "noise"), (1, 8192)),
    **dict.fromkeys(("lesions", "slice_indices", "cdrs", "knots"), (0, 4096)),
    "size": (8, 2048),
    "grid": (1, 1024),
    "channels": (1, 64),
    "factor": (4, 16),
    "codebook_size": (1, 32_768),  # tokens are kept in 16 bits
    "blocks": (0, 64),
    "layers": (1, 256),
    "heads": (1, 256),
    "width": (1, 16_384),
    "smoothing": (0, 0.5),
    "lr": (0, 100),
    "weight_decay": (0, 100),
    "shift": (0, 512),
    "seed": (0, 2**31),
}
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class Checked:
    """Settings that are looked at when they are made, wherever they come from: field by field, type and range."""

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            checked(name, kind, getattr(self, name))


@cache
def _kinds(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def checked(name: str, kind: Any, value: Any) -> None:
    """Whole numbers pass as decimals, but nothing else as what it isn't. Numbers without a range are 0 to a thousand million."""
    shown = f"{name}={str(value)[:40]!r}" if isinstance(value, str) else f"{name}={str(value)[:40]}"
    if typing.get_origin(kind) is tuple:
        if type(value) is not tuple or len(value) != len(typing.get_args(kind)):
            raise ValueError(f"{shown} must be {len(typing.get_args(kind))} numbers")
        for part, one in zip(typing.get_args(kind), value):
            checked(name, part, one)
    elif typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if type(value) is not str or value not in choices:
            raise ValueError(f"{shown} must be one of {', '.join(map(repr, choices))}")
    elif type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{shown} must be {WORDS[kind]}, not {type(value).__name__}")
    elif kind in (int, float):
        low, high = RANGES.get(name, (0, 1e9))
        if not low <= value <= high:
            raise ValueError(f"{shown} must lie in {low:g} .. {high:g}")


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
    dead_code_threshold: float = 0.05  # an entry used less than this fraction of the mean is put onto a live vector; 0 is off
    commitment: float = 0.25
    loss: Literal["l1", "l2", "l1+ssim"] = "l1+ssim"  # "l2" is divided by the variance of the training pixels
    autoencoder_steps: int = 60  # steps as a plain autoencoder, before k-means initialises the codebook; 0 leaves it uniform
    normalise: bool = True  # pixels to mean 0 and variance 1 on the way in
    adversarial: float = 0.0  # length of the stage that trains the crisp decoder, relative to the first; 0 is off


@dataclass(frozen=True)
class PixelCNNConfig(Checked):
    hidden: int = 64
    layers: int = 12
    dropout: float = 0.1
    knots: int = 8  # slice indices at which tokens are counted position by position; between them in a straight line
    code_dim: int = 8  # of the VQ-VAE's codebook; training fills it in


@dataclass(frozen=True)
class TransformerConfig(Checked):
    width: int = 192
    layers: int = 6
    heads: int = 3
    dropout: float = 0.0
    token_dropout: float = 0.05  # share of the codes that are not read, in training
    knots: int = 8  # as the PixelCNN's
    code_dim: int = 8  # of the VQ-VAE's codebook; training fills it in


@dataclass(frozen=True)
class CodeGANConfig(Checked):
    noise: int = 48  # standard normal numbers of a subject: scores of as many principal components
    knots: int = 12  # slice indices at which mean and components are kept; between them in a straight line
    hidden: int = 48  # channels of both networks at half the grid
    discriminator_lr_scale: float = 2.0  # the discriminator learns this many times as fast
    code_dim: int = 8  # of the VQ-VAE's codebook; training fills it in


@dataclass(frozen=True)
class TokenMaps(Checked):
    """What a prior is over: the maps' size, and how many tokens, slice indices and CDRs there are."""

    grid: tuple[int, int]
    codebook_size: int
    slice_indices: int
    cdrs: int


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """The loop. It ends at the first of `epochs`, `steps` and `minutes` that is set (not 0)."""

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
    shift: int = 4  # pixels, either way
    flip: bool = True  # left for right
    intensity: float = 0.05  # relative scale, either way
    warp: float = 0.0  # standard deviation in pixels of a smooth random warp: subjects that were not scanned
    seed: int = 0


@dataclass(frozen=True)
class EvaluationConfig(Checked):
    samples: int = 1000  # of each prior
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


@dataclass(frozen=True)
class Profile:
    name: str
    cohort: CohortConfig
    vqvae: Part
    pixelcnn: Part
    transformer: Part
    codegan: Part
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


PRIORS = ("transformer", "pixelcnn", "codegan")  # the first is the default
MODEL_CONFIGS = {
    "vqvae": VQVAEConfig,
    "pixelcnn": PixelCNNConfig,
    "transformer": TransformerConfig,
    "codegan": CodeGANConfig,
}
# Earlier settings: a model saved with this value still loads.
RETIRED = {"distance": "euclidean", "gradient": "straight-through", "preset": "", "start": "k-means"}
# Small batches: more steps. No shifts: mirrors are enough, and a prior that is shown moved heads draws them.
FEW_EPOCHS = {"batch": 8, "validate_every": 16, "shift": 0, "intensity": 0.0}
FULL = FEW_EPOCHS | {"batch": 16, "validate_every": 200}
# No momentum (beta1), as is usual for GANs; each map as it is.
ADVERSARIAL = {"lr": 3e-4, "beta1": 0.0, "beta2": 0.99, "weight_decay": 0.0, "clip": 0.0, "ema": 0.998}
ADVERSARIAL |= {"batch": 16, "validate_every": 250, "shift": 0, "intensity": 0.0}
PROFILES = {
    "smoke": Profile(
        name="smoke",
        cohort=CohortConfig(size=64, subjects=10, lesions=2),
        vqvae=Part(
            VQVAEConfig(codebook_size=64, hidden=32, autoencoder_steps=12, adversarial=0.5),
            TrainingConfig(epochs=4, batch=16, lr=2e-3, shift=2),
        ),
        pixelcnn=Part(PixelCNNConfig(hidden=16, layers=5), TrainingConfig(epochs=1, lr=2e-3, shift=2)),
        transformer=Part(TransformerConfig(width=32, layers=2, heads=2), TrainingConfig(epochs=2, batch=16, lr=4e-3, shift=2)),
        codegan=Part(CodeGANConfig(hidden=16), TrainingConfig(epochs=2, **ADVERSARIAL)),
        evaluation=EvaluationConfig(samples=64, bootstrap=200, feature_steps=40, detector_steps=20),
    ),
    "laptop": Profile(
        name="laptop",
        cohort=CohortConfig(size=128, subjects=60, lesions=8),
        vqvae=Part(
            VQVAEConfig(codebook_size=512, adversarial=0.6), TrainingConfig(minutes=1.0, batch=16, lr=2e-3, validate_every=100)
        ),
        pixelcnn=Part(PixelCNNConfig(layers=10, knots=4), TrainingConfig(minutes=0.25, **FEW_EPOCHS)),
        transformer=Part(
            TransformerConfig(width=128, layers=4, heads=4, dropout=0.1, knots=6),
            TrainingConfig(minutes=1.4, lr=1.5e-3, **FEW_EPOCHS | {"validate_every": 200}),
        ),
        codegan=Part(CodeGANConfig(noise=32, knots=6), TrainingConfig(minutes=0.2, **ADVERSARIAL)),
        evaluation=EvaluationConfig(samples=96),
    ),
    "full": Profile(
        name="full",
        cohort=CohortConfig(size=256, subjects=150, lesions=15),
        vqvae=Part(
            VQVAEConfig(factor=8, codebook_size=1024, hidden=128, adversarial=0.6),
            TrainingConfig(minutes=1.25, batch=32, validate_every=200),
        ),
        pixelcnn=Part(PixelCNNConfig(hidden=128, layers=16), TrainingConfig(minutes=0.5, **FULL)),
        transformer=Part(
            TransformerConfig(width=384, layers=8, heads=8, dropout=0.05),
            TrainingConfig(minutes=2.5, lr=6e-4, weight_decay=0.05, compile=True, **FULL),
        ),
        codegan=Part(CodeGANConfig(hidden=96), TrainingConfig(minutes=0.2, **ADVERSARIAL)),
        evaluation=EvaluationConfig(samples=480),
    ),
}


def profile(name: str, settings: Iterable[str] = ()) -> Profile:
    """A profile by name, with settings such as "vqvae.epochs=20" applied."""
    if name not in PROFILES:
        raise ValueError(f"no profile {name!r}; there are {', '.join(PROFILES)}{suggest(name, PROFILES)}")
    chosen = PROFILES[name]
    sections = [field.name for field in dataclasses.fields(Profile) if field.name != "name"]
    for setting in settings:
        section = _split(setting)[0]
        if section not in sections:
            raise ValueError(f"no section {section!r} in {setting!r}; there are {', '.join(sections)}{suggest(section, sections)}")
        chosen = dataclasses.replace(chosen, **{section: apply_settings(getattr(chosen, section), section, [setting])})
    return chosen


def apply_settings(config: Any, section: str, settings: Iterable[str]) -> Any:
    """The same for one section alone, a `Part` or a config: settings of other sections are refused."""
    for setting in settings:
        name, key, text = _split(setting)
        if name != section:
            raise ValueError(f"setting {setting!r} is not of {section!r}")
        parts = [config.training, config.model] if isinstance(config, Part) else [config]
        kinds = {key: kind for part in parts for key, kind in typing.get_type_hints(type(part)).items()}
        if key not in kinds:
            raise ValueError(f"no setting {section}.{key}; {section} has {', '.join(kinds)}{suggest(key, kinds)}")
        value = _parse(f"{section}.{key}", kinds[key], text)
        changed = [dataclasses.replace(part, **{key: value}) if hasattr(part, key) else part for part in parts]
        config = Part(changed[1], changed[0]) if isinstance(config, Part) else changed[0]
    return config


def suggest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?", or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def as_dict(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)


def from_dict(cls: type, values: dict[str, Any], *, whole: bool = False) -> Any:
    """A config from a saved file. An unknown name is an error: a config of another version must not load quietly.

    `whole`: all names must be there. Else those without a default must.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {name: value for name, value in values.items() if name in fields or value != RETIRED.get(name, ...)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"{cls.__name__} has no setting {unknown[0]!r}{suggest(unknown[0], fields)}")
    missing = [name for name, field in fields.items() if name not in values and (whole or field.default is dataclasses.MISSING)]
    if missing:
        raise ValueError(f"{cls.__name__} needs {missing[0]!r}, which is missing")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _split(setting: str) -> tuple[str, str, str]:
    """ "vqvae.epochs=20" in its three pieces."""
    found = re.fullmatch(r"\s*(\w+)\.(\w+)\s*=(.*)", setting)
    if not found:
        raise ValueError(f"setting {setting!r} must look like vqvae.epochs=20")
    return found[1], found[2], found[3].strip()


def _parse(name: str, kind: Any, text: str) -> Any:
    """Text as the declared type, or an error that says what was expected."""
    choices = {"true": True, "false": False} if kind is bool else {choice: choice for choice in typing.get_args(kind)}
    try:
        return choices[text.lower() if kind is bool else text] if choices else kind(text)
    except KeyError:
        raise ValueError(f"{name}={text!r} must be one of {', '.join(choices)}{suggest(text, choices)}") from None
    except ValueError:
        raise ValueError(f"{name}={text!r} must be {kind.__name__}") from None
