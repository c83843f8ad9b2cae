"""Every model, and one way to load any of them from its folder."""

from __future__ import annotations

import copy
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oasis_lib.checkpoint import WEIGHTS, fingerprint, read_model
from oasis_lib.config import MODEL_CONFIGS, from_dict, near
from oasis_lib.models.blocks import Decoder, Encoder, ResidualBlock
from oasis_lib.models.quantizer import VectorQuantizer, perplexity
from oasis_lib.models.vqvae import CRISP, VQVAE, VQOutput

# kind in config.json: module, class. A program may add ("", a class of its own), and its settings to MODEL_CONFIGS.
KINDS: dict[str, tuple[str, Any]] = {
    "vqvae": ("vqvae", "VQVAE"),
    "pixelcnn": ("pixelcnn", "GatedPixelCNN"),
    "transformer": ("transformer", "CodeTransformer"),
    "codegan": ("codegan", "CodeGAN"),
}
_LATE = {cls: module for module, cls in KINDS.values()} | {"Generator": "codegan", "Discriminator": "codegan"}


def build(kind: str, model: dict[str, Any] | Any, **shape: Any) -> nn.Module:
    """A fresh model. Priors also take grid=(h, w), entries, levels and ratings."""
    if kind not in KINDS:
        raise ValueError(f"no model {kind!r}; there are {', '.join(KINDS)}{near(kind, KINDS)}")
    module, cls = KINDS[kind]
    config = from_dict(MODEL_CONFIGS[kind], model) if isinstance(model, dict) else model
    make = cls if callable(cls) else getattr(import_module(f"oasis_lib.models.{module}"), cls)
    return make(config, **shape)


def load(folder: str | Path, *, crisp: bool = True) -> Any:
    """The model of a folder, in eval mode, on the CPU; a VQ-VAE with its crisp decoder, if there is one and `crisp` is true.

    Reads tensors and JSON; executes nothing.
    """
    state, config = read_model(folder)
    shape = {key: config[key] for key in ("grid", "entries", "levels", "ratings") if key in config}
    if "grid" in shape:
        shape["grid"] = tuple(shape["grid"])
    model = build(config["kind"], config["model"], **shape)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{folder}: weights and configuration disagree ({str(error).splitlines()[0]})") from error
    model.folder = Path(folder)  # what is found with it may be kept there
    if crisp and config["kind"] == "vqvae" and (model.folder / CRISP / WEIGHTS).is_file():
        _load_crisp(model)
    return model.eval().to(memory_format=torch.channels_last)  # as it was trained: convolutions are a fifth quicker


def _load_crisp(vqvae: VQVAE) -> None:
    state, config = read_model(vqvae.folder / CRISP)
    if config.get("vqvae") != fingerprint(vqvae):
        raise ValueError(f"{vqvae.folder / CRISP} belongs to another VQ-VAE than {vqvae.folder}; move it away, and train it anew")
    vqvae.crisp = copy.deepcopy(vqvae.decoder)
    vqvae.crisp.load_state_dict(state)


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
