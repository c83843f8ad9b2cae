"""Every model, and one way to load any of them from its folder."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm

from oasis_lib.config import MODEL_CONFIGS, TokenMaps, as_dict, from_dict, unknown
from oasis_lib.models.blocks import Decoder, Encoder, ResidualBlock
from oasis_lib.models.quantizer import VectorQuantizer, perplexity
from oasis_lib.models.vqvae import CRISP, VQVAE, VQOutput
from oasis_lib.storage import CONFIG, FORMAT, WEIGHTS, fingerprint, read_config, read_weights

# kind in config.json: module, class. A program may add ("", a class of its own), and its settings to MODEL_CONFIGS.
KINDS: dict[str, tuple[str, Any]] = {
    "vqvae": ("vqvae", "VQVAE"),
    "pixelcnn": ("pixelcnn", "GatedPixelCNN"),
    "transformer": ("transformer", "CodeTransformer"),
    "codegan": ("codegan", "CodeGAN"),
}
SHAPE = tuple(field.name for field in dataclasses.fields(TokenMaps))
_LATE = {cls: module for module, cls in KINDS.values()} | {"Generator": "codegan", "Discriminator": "codegan"}


def build(kind: str, model: dict[str, Any] | Any, **shape: Any) -> nn.Module:
    """A fresh model. Priors also take grid=(h, w), entries, slice indices and CDRs."""
    if kind not in KINDS:
        raise unknown("model", kind, KINDS)
    config = from_dict(MODEL_CONFIGS[kind], model) if isinstance(model, dict) else model
    module, cls = KINDS[kind]
    make = cls if callable(cls) else getattr(import_module(f"oasis_lib.models.{module}"), cls)
    return make(config, **shape)


def load(folder: str | Path, *, crisp: bool = True) -> Any:
    """The model of a folder, in eval mode, on the CPU; a VQ-VAE with its crisp decoder, unless `crisp` is false.

    Reads tensors and JSON; executes nothing. `config.json` is compared with the weights before memory is taken.
    """
    folder = Path(folder)
    config = read_config(folder)
    if config["kind"] not in KINDS:
        raise ValueError(f"{folder / CONFIG}: no model {config['kind']!r}; there are {', '.join(KINDS)}")
    state = read_weights(folder, config, _built(folder, config, "meta").state_dict())
    model = _built(folder, config, "cpu")
    model.load_state_dict(state)
    model.folder = folder  # what is found with it may be kept there
    if crisp and config["kind"] == "vqvae" and (folder / CRISP / WEIGHTS).is_file():
        _load_crisp(model)
    return model.eval().to(memory_format=torch.channels_last)  # as it was trained: convolutions are a fifth quicker


def _built(folder: Path, config: dict[str, Any], device: str) -> nn.Module:
    """A fresh model of what a config.json says. On the meta device it takes no memory, whatever its size."""
    try:
        settings = from_dict(MODEL_CONFIGS[config["kind"]], config["model"], whole=config.get("format") == FORMAT)
        over = {name: config[name] for name in SHAPE if name in config}  # of a prior: what it is over
        shape = as_dict(from_dict(TokenMaps, over)) if over else {}
        iterated = patch.object(_SpectralNorm, "_power_method", lambda *_: None)  # half a second on no numbers
        with torch.device(device), iterated if device == "meta" else nullcontext():
            return build(config["kind"], settings, **shape)
    except Exception as error:  # whatever a constructor says of such settings: they are the file's
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def _load_crisp(vqvae: VQVAE) -> None:
    folder = vqvae.folder / CRISP
    config = read_config(folder)
    if config["kind"] != "decoder" or config.get("vqvae") != fingerprint(vqvae):
        raise ValueError(f"{folder} belongs to another VQ-VAE than {vqvae.folder}; move it away, and train it anew")
    vqvae.crisp = copy.deepcopy(vqvae.decoder)
    vqvae.crisp.load_state_dict(read_weights(folder, config, vqvae.decoder.state_dict()))


def __getattr__(name: str) -> Any:
    """Priors are imported when they are first asked for."""
    if name in _LATE:
        return getattr(import_module(f"oasis_lib.models.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "VQVAE",
    "CodeGAN",
    "CodeTransformer",
    "Decoder",
    "Discriminator",
    "Encoder",
    "GatedPixelCNN",
    "Generator",
    "ResidualBlock",
    "VQOutput",
    "VectorQuantizer",
    "build",
    "load",
    "perplexity",
]
