"""The earlier projects' VQ-VAEs and PixelCNNs, layer for layer, with their faults repaired: what ours is measured beside.

Importing this module adds them to the library's kinds: `models.build` and `models.load` know them, and both trainers
take them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from oasis_lib.config import MODEL_CONFIGS, Part, PixelCNNConfig, TrainingConfig, VQVAEConfig
from oasis_lib.models import KINDS, VQVAE, ResidualBlock
from oasis_lib.models.pixelcnn import GatedPixelCNN, Layer, Reach

PLAIN = {"weight_decay": 0.0, "beta2": 0.999, "warmup": 0.0, "clip": 0.0, "ema": 0.0}  # Adam, the last weights
PLAIN |= {"flip": False}  # images as they are


@dataclass(frozen=True)
class Recipe:
    """Two strided 4 x 4 convolutions, residual blocks, and their mirror; what differs between the recipes."""

    stem: tuple[int, int]
    residual: int  # channels inside a block
    encoder_blocks: int = 2
    decoder_blocks: int = 2
    batch_norm: bool = False
    project: bool = True  # 1 x 1 to the code dimension, and 3 x 3 back from it
    extra: bool = False  # one more 3 x 3 before the encoder's blocks
    bias: bool = False  # inside a block

    def blocks(self, count: int) -> list[nn.Module]:
        blocks = [
            ResidualBlock(self.stem[1], self.residual, self.bias) for _ in range(count)
        ]  # every block its own weights
        for block in blocks if self.batch_norm else []:
            block.layers.insert(2, nn.BatchNorm2d(self.residual))
        return blocks

    def encoder(self, channels: int, code_dim: int) -> nn.Sequential:
        first, second = self.stem
        layers: list[nn.Module] = [nn.Conv2d(channels, first, 4, 2, 1), nn.ReLU(), nn.Conv2d(first, second, 4, 2, 1)]
        layers += [nn.ReLU(), nn.Conv2d(second, second, 3, padding=1)] if self.extra else []
        layers += [nn.ReLU()] if self.batch_norm else []
        layers += self.blocks(self.encoder_blocks)
        return nn.Sequential(*layers, *([nn.Conv2d(second, code_dim, 1)] if self.project else []))

    def decoder(self, channels: int, code_dim: int) -> nn.Sequential:
        """Repaired: 000 had nothing between its transposed convolutions, 002 ended encoder and decoder in a ReLU."""
        first, second = self.stem
        layers = [nn.Conv2d(code_dim, second, 3, padding=1)] if self.project else []
        layers += [*self.blocks(self.decoder_blocks), nn.ConvTranspose2d(second, first, 4, 2, 1), nn.ReLU()]
        return nn.Sequential(*layers, nn.ConvTranspose2d(first, channels, 4, 2, 1))


RECIPES = {
    "paper": Recipe((256, 256), 256, bias=True),
    "seed-000": Recipe((64, 128), 32),
    "seed-001": Recipe((64, 128), 32, decoder_blocks=1),
    "seed-002": Recipe((64, 64), 64, batch_norm=True, project=False),
    "seed-003": Recipe((32, 64), 32),
    "seed-004": Recipe((64, 128), 32, extra=True),
}


@dataclass(frozen=True)
class BaselineConfig(VQVAEConfig):
    """A codebook of 512 x 64 that begins uniform and learns by gradient, as all recipes have it."""

    recipe: str = "seed-003"
    code_dim: int = 64
    codebook: str = "gradient"
    autoencoder_steps: int = 0
    dead_code_threshold: float = 0.0
    loss: str = "l2"
    normalise: bool = False
    adversarial: float = 0.0


class BaselineVQVAE(VQVAE):
    def __init__(self, config: BaselineConfig):
        super().__init__(config)
        recipe = RECIPES[config.recipe]
        self.encoder, self.decoder = (
            make(config.channels, config.code_dim) for make in (recipe.encoder, recipe.decoder)
        )


def _recipe(recipe: str, commitment: float = 0.25, channels: int = 1, **training: float) -> Part:
    model = BaselineConfig(recipe=recipe, channels=channels, commitment=commitment)
    return Part(model, TrainingConfig(**PLAIN | training))


VQVAES = {
    "paper": _recipe("paper", steps=250_000, batch=128, lr=2e-4),
    "seed-000": _recipe("seed-000", channels=3, epochs=2, lr=1e-3),
    "seed-001": _recipe("seed-001", channels=3, epochs=5, lr=2e-4),
    "seed-002": _recipe("seed-002", commitment=1.0, epochs=20, lr=2e-3),
    "seed-003": _recipe("seed-003", epochs=12, lr=1e-3),
    "seed-004": _recipe("seed-004", channels=3, epochs=2, lr=3e-4),
}


def untrained_codebook(part: Part) -> Part:
    """The fault of one recipe: the codebook term was computed and thrown away, so entries stay where chance put them.

    A moving average that never moves (decay 1) is exactly that: commitment alone pulls, and the codebook has no gradient.
    """
    return Part(dataclasses.replace(part.model, codebook="ema", decay=1.0), part.training)


class BaselinePixelCNN(GatedPixelCNN):
    """Mask A 7 x 7, then 3 x 3 with mask B: a token sees 12 rows (or 17) and no further. No positions, no counting."""

    def __init__(self, config: PixelCNNConfig, layers: int, labels: bool, **shape: object):
        super().__init__(config, **shape)
        hidden = config.hidden
        self.reaches = (Reach(3, strict=True), *[Reach(1)] * (layers - 1))
        self.layers = nn.ModuleList(Layer(hidden, reach, 0.0) for reach in self.reaches)
        for layer in self.layers:
            layer.up = None
        self.label_table = type(self.label_table)(self.slice_indices, self.cdrs, 2 * hidden * layers)
        self.head = nn.Sequential(nn.Linear(hidden, 512), nn.ReLU(), nn.Linear(512, self.codebook_size))
        self.places.requires_grad_(False)
        self.label_table.requires_grad_(labels)
        for table in () if labels else (self.label_table.slice_index, self.label_table.cdr):
            nn.init.zeros_(table.weight)

    def start(
        self, codes: Tensor, slice_index: Tensor | None = None, mirrored: Tensor | None = None, vectors=None
    ) -> None:
        """Nothing is counted, no position is background, and no token knows its codebook vector."""

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x)


PIXELCNNS = {
    "pixelcnn-002": Part(PixelCNNConfig(hidden=64, dropout=0.0), TrainingConfig(**PLAIN, lr=1e-3)),
    "pixelcnn-004": Part(PixelCNNConfig(hidden=64, dropout=0.0), TrainingConfig(**PLAIN, lr=3e-4)),
}

KINDS["baseline"] = BaselineVQVAE
KINDS["pixelcnn-002"] = partial(BaselinePixelCNN, layers=10, labels=False)
KINDS["pixelcnn-004"] = partial(BaselinePixelCNN, layers=15, labels=True)
MODEL_CONFIGS |= {"baseline": BaselineConfig} | dict.fromkeys(PIXELCNNS, PixelCNNConfig)
