"""Our network and the earlier recipes, layer for layer, with their faults repaired: what ours is measured beside."""

from __future__ import annotations

from dataclasses import replace

from oasis_lib.config import VQVAEConfig
from oasis_lib.models.blocks import Recipe

RECIPES = {
    "paper": Recipe((256, 256), 256, bias=True),
    "seed-000": Recipe((64, 128), 32),
    "seed-001": Recipe((64, 128), 32, decoder_blocks=1),
    "seed-002": Recipe((64, 64), 64, batch_norm=True, project=False),
    "seed-003": Recipe((32, 64), 32),
    "seed-004": Recipe((64, 128), 32, extra=True),
}


def recipe_of(config: VQVAEConfig) -> Recipe:
    """A preset's, or ours: the narrow layers of seed-003 in any width and number. Larger codes halve the grid once or twice."""
    if config.factor not in (4, 8, 16):
        raise ValueError(f"vqvae.factor={config.factor} must be 4, 8 or 16")
    half = config.hidden // 2
    recipe = RECIPES[config.preset] if config.preset else Recipe((half, config.hidden), half, config.blocks, config.blocks)
    return replace(recipe, halvings=(4, 8, 16).index(config.factor))
