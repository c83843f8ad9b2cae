"""What encoders and decoders are built from, and the two of them: ours and, by the same recipe with other numbers, earlier ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


class ResidualBlock(nn.Module):
    """x + (ReLU, 3 x 3, ReLU, 1 x 1)(x), as in the paper."""

    def __init__(self, channels: int, middle: int | None = None, batch_norm: bool = False, bias: bool = True):
        super().__init__()
        middle = middle or channels
        layers: list[nn.Module] = [nn.ReLU(), nn.Conv2d(channels, middle, 3, padding=1, bias=bias)]
        layers += [nn.BatchNorm2d(middle)] if batch_norm else []
        layers += [nn.ReLU(), nn.Conv2d(middle, channels, 1, bias=bias)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


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
    halvings: int = 0  # of the grid, after the stem: each is one more strided convolution and as many blocks again

    def blocks(self, count: int) -> list[nn.Module]:
        inside = {"middle": self.residual, "batch_norm": self.batch_norm, "bias": self.bias}
        return [ResidualBlock(self.stem[1], **inside) for _ in range(count)]  # every block its own weights


class Encoder(nn.Sequential):
    """(B, C, H, W) -> (B, code_dim, h, w), a quarter of the size each way and half of that for every halving."""

    def __init__(self, recipe: Recipe, channels: int, code_dim: int):
        first, second = recipe.stem
        layers: list[nn.Module] = [nn.Conv2d(channels, first, 4, 2, 1), nn.ReLU(), nn.Conv2d(first, second, 4, 2, 1)]
        layers += [nn.ReLU(), nn.Conv2d(second, second, 3, padding=1)] if recipe.extra else []
        layers += [nn.ReLU()] if recipe.batch_norm else []
        layers += recipe.blocks(recipe.encoder_blocks)
        for _ in range(recipe.halvings):
            layers += [nn.ReLU(), nn.Conv2d(second, second, 4, 2, 1), *recipe.blocks(recipe.encoder_blocks)]
        super().__init__(*layers, *([nn.Conv2d(second, code_dim, 1)] if recipe.project else []))


class Decoder(nn.Sequential):
    """(B, code_dim, h, w) -> (B, C, H, W)."""

    def __init__(self, recipe: Recipe, channels: int, code_dim: int):
        first, second = recipe.stem
        layers: list[nn.Module] = [nn.Conv2d(code_dim, second, 3, padding=1)] if recipe.project else []
        layers += recipe.blocks(recipe.decoder_blocks)
        for _ in range(recipe.halvings):
            layers += [nn.ReLU(), nn.ConvTranspose2d(second, second, 4, 2, 1), *recipe.blocks(recipe.decoder_blocks)]
        # Repaired here: 000 had nothing between its transposed convolutions, 002 ended encoder and decoder in a ReLU.
        layers += [nn.ConvTranspose2d(second, first, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(first, channels, 4, 2, 1)]
        super().__init__(*layers)


class PatchDiscriminator(nn.Module):
    """(B, C, H, W) -> the features of every layer, and last a map of logits, above zero where a patch looks real.

    Three strided convolutions: a logit sees 46 x 46 pixels. Spectral norm (Miyato 2018, arXiv:1802.05957) keeps it smooth.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        widths = [channels, hidden, 2 * hidden, 4 * hidden]
        strided = [nn.Conv2d(a, b, 4, 2, 1) for a, b in zip(widths, widths[1:])]
        last = [nn.Conv2d(widths[-1], widths[-1], 3, padding=1), nn.Conv2d(widths[-1], 1, 3, padding=1)]
        self.layers = nn.ModuleList(spectral_norm(layer) for layer in strided + last)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [images]
        for layer in self.layers[:-1]:
            features.append(F.leaky_relu(layer(features[-1]), 0.2))
        return [*features[1:], self.layers[-1](features[-1])]
