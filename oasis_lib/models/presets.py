"""Earlier recipes, layer for layer, with their faults repaired: what ours is measured beside."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from oasis_lib.config import VQVAEConfig
from oasis_lib.models.blocks import ResidualBlock


@dataclass(frozen=True)
class Recipe:
    """Two 4 x 4 strided convolutions, residual blocks, and their mirror; what differs between the recipes."""

    stem: tuple[int, int]
    residual: int  # channels inside a block
    encoder_blocks: int = 2
    decoder_blocks: int = 2
    batch_norm: bool = False
    project: bool = True  # 1 x 1 to the code dimension, and 3 x 3 back from it
    extra: bool = False  # one more 3 x 3 before the encoder's blocks
    bias: bool = False  # inside a block


RECIPES = {
    "paper": Recipe((256, 256), 256, bias=True),
    "seed-000": Recipe((64, 128), 32),
    "seed-001": Recipe((64, 128), 32, decoder_blocks=1),
    "seed-002": Recipe((64, 64), 64, batch_norm=True, project=False),
    "seed-003": Recipe((32, 64), 32),
    "seed-004": Recipe((64, 128), 32, extra=True),
}


def preset_layers(config: VQVAEConfig) -> tuple[nn.Sequential, nn.Sequential]:
    recipe = RECIPES[config.preset]
    first, second = recipe.stem
    encoder: list[nn.Module] = [nn.Conv2d(config.channels, first, 4, 2, 1), nn.ReLU(), nn.Conv2d(first, second, 4, 2, 1)]
    encoder += [nn.ReLU(), nn.Conv2d(second, second, 3, padding=1)] if recipe.extra else []
    encoder += [nn.ReLU()] if recipe.batch_norm else []
    block = {"middle": recipe.residual, "batch_norm": recipe.batch_norm, "bias": recipe.bias}
    encoder += [ResidualBlock(second, **block) for _ in range(recipe.encoder_blocks)]
    encoder += [nn.Conv2d(second, config.code_dim, 1)] if recipe.project else []

    decoder: list[nn.Module] = [nn.Conv2d(config.code_dim, second, 3, padding=1)] if recipe.project else []
    decoder += [ResidualBlock(second, **block) for _ in range(recipe.decoder_blocks)]
    # Repaired here: 000 had nothing between its transposed convolutions, 002 ended encoder and decoder in a ReLU.
    decoder += [nn.ConvTranspose2d(second, first, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(first, config.channels, 4, 2, 1)]
    return nn.Sequential(*encoder), nn.Sequential(*decoder)
