"""Every model, and one way to load any of them from its folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm

from oasis_lib.config import MODEL_CONFIGS, TokenMaps, as_dict, from_dict, unknown
from oasis_lib.models.blocks import Decoder, Encoder, ResidualBlock
from oasis_lib.models.codegan import CodeGAN, Discriminator, Generator
from oasis_lib.models.pixelcnn import GatedPixelCNN
from oasis_lib.models.quantizer import VectorQuantizer, perplexity
from oasis_lib.models.transformer import CodeTransformer
from oasis_lib.models.vqvae import CRISP, VQVAE, VQOutput
from oasis_lib.storage import CONFIG, FORMAT, WEIGHTS, fingerprint, read_config, read_weights

# By the kind in config.json. A program may add classes of its own, and their settings to MODEL_CONFIGS.
KINDS: dict[str, Callable[..., nn.Module]] = {
    "vqvae": VQVAE,
    "transformer": CodeTransformer,
    "pixelcnn": GatedPixelCNN,
    "codegan": CodeGAN,
}


def build(kind: str, model: dict[str, Any] | Any, **shape: Any) -> nn.Module:
    """A fresh model. Priors also take grid=(h, w), entries, slice indices and CDRs."""
    if kind not in KINDS:
        raise unknown("model", kind, KINDS)
    return KINDS[kind](from_dict(MODEL_CONFIGS[kind], model) if isinstance(model, dict) else model, **shape)


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
        over = {field.name: config[field.name] for field in fields(TokenMaps) if field.name in config}  # a prior's
        shape = as_dict(from_dict(TokenMaps, over)) if over else {}
        # Spectral norms would iterate for half a second, on weights that are replaced.
        with torch.device(device), patch.object(_SpectralNorm, "_power_method"):
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
