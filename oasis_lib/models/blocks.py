"""Encoder, decoder and patch discriminator, and the residual block they are built from."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from oasis_lib.config import VQVAEConfig


class ResidualBlock(nn.Module):
    """x + (ReLU, 3 x 3, ReLU, 1 x 1)(x), as in van den Oord 2017, arXiv:1711.00937."""

    def __init__(self, channels: int, middle: int, bias: bool = False):
        super().__init__()
        first, second = nn.Conv2d(channels, middle, 3, padding=1, bias=bias), nn.Conv2d(middle, channels, 1, bias=bias)
        self.layers = nn.Sequential(nn.ReLU(), first, nn.ReLU(), second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def halvings(config: VQVAEConfig) -> int:
    """Strided convolutions beyond the first two."""
    if config.factor not in (4, 8, 16):
        raise ValueError(f"vqvae.factor={config.factor} must be 4, 8 or 16")
    return (4, 8, 16).index(config.factor)


def residual(config: VQVAEConfig) -> list[nn.Module]:
    return [ResidualBlock(config.hidden, config.hidden // 2) for _ in range(config.blocks)]


class Encoder(nn.Sequential):
    """(B, C, H, W) -> (B, code_dim, h, w): strided convolutions, residual blocks after the second and later ones."""

    def __init__(self, config: VQVAEConfig):
        width = config.hidden
        layers: list[nn.Module] = [nn.Conv2d(config.channels, width // 2, 4, 2, 1), nn.ReLU()]
        layers += [nn.Conv2d(width // 2, width, 4, 2, 1), *residual(config)]
        for _ in range(halvings(config)):
            layers += [nn.ReLU(), nn.Conv2d(width, width, 4, 2, 1), *residual(config)]
        super().__init__(*layers, nn.Conv2d(width, config.code_dim, 1))


class Decoder(nn.Sequential):
    """(B, code_dim, h, w) -> (B, C, H, W): the encoder's mirror."""

    def __init__(self, config: VQVAEConfig):
        width = config.hidden
        layers: list[nn.Module] = [nn.Conv2d(config.code_dim, width, 3, padding=1), *residual(config)]
        for _ in range(halvings(config)):
            layers += [nn.ReLU(), nn.ConvTranspose2d(width, width, 4, 2, 1), *residual(config)]
        layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.ReLU()]
        super().__init__(*layers, nn.ConvTranspose2d(width // 2, config.channels, 4, 2, 1))


class PatchDiscriminator(nn.Module):
    """(B, C, H, W) -> each layer's features, and last logits, above 0 where a patch of 46 x 46 pixels looks real.

    Spectral norm (Miyato 2018, arXiv:1802.05957) bounds its slope.
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
