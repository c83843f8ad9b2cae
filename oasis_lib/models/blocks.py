"""What encoders and decoders are built from, and the two of them."""

from __future__ import annotations

from torch import Tensor, nn

from oasis_lib.config import VQVAEConfig


class ResidualBlock(nn.Module):
    """x + (ReLU, 3 x 3, ReLU, kernel x kernel)(x): the paper's block ends in 1 x 1, ours in 3 x 3, which sees further."""

    def __init__(self, channels: int, middle: int | None = None, kernel: int = 1, batch_norm: bool = False, bias: bool = True):
        super().__init__()
        middle = middle or channels
        layers: list[nn.Module] = [nn.ReLU(), nn.Conv2d(channels, middle, 3, padding=1, bias=bias)]
        layers += [nn.BatchNorm2d(middle)] if batch_norm else []
        layers += [nn.ReLU(), nn.Conv2d(middle, channels, kernel, padding=kernel // 2, bias=bias)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def residual_stack(channels: int, count: int, **options) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels, **options) for _ in range(count)))  # every block its own weights


STEM = 4  # pixels a side that become channels at once: all the work is done at a quarter of the size and below


class Encoder(nn.Module):
    """(B, C, H, W) -> (B, code_dim, H / factor, W / factor)."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        hidden, kernel = config.hidden, 3
        if config.stem == "space-to-depth":
            layers = [nn.PixelUnshuffle(STEM), nn.Conv2d(config.channels * STEM**2, hidden, 3, padding=1)]
        else:
            layers = [nn.Conv2d(config.channels, hidden // 2, 4, 2, 1), nn.ReLU(), nn.Conv2d(hidden // 2, hidden, 4, 2, 1)]
        layers.append(residual_stack(hidden, config.blocks, kernel=kernel))
        for _ in range(halvings(config)):
            layers += [nn.ReLU(), nn.Conv2d(hidden, hidden, 4, 2, 1), residual_stack(hidden, config.blocks, kernel=kernel)]
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(hidden, config.code_dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Decoder(nn.Module):
    """(B, code_dim, h, w) -> (B, C, h * factor, w * factor)."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        hidden, kernel = config.hidden, 3
        layers: list[nn.Module] = [
            nn.Conv2d(config.code_dim, hidden, 3, padding=1),
            residual_stack(hidden, config.blocks, kernel=kernel),
        ]
        for _ in range(halvings(config)):
            layers += [nn.ReLU(), nn.Conv2d(hidden, hidden * 4, 3, padding=1), nn.PixelShuffle(2)]
            layers.append(residual_stack(hidden, config.blocks, kernel=kernel))
        if config.stem == "space-to-depth":
            layers += [nn.ReLU(), nn.Conv2d(hidden, config.channels * STEM**2, 3, padding=1), nn.PixelShuffle(STEM)]
        else:
            layers += [nn.ReLU(), nn.ConvTranspose2d(hidden, hidden // 2, 4, 2, 1)]
            layers += [nn.ReLU(), nn.ConvTranspose2d(hidden // 2, config.channels, 4, 2, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, quantized: Tensor) -> Tensor:
        return self.layers(quantized)


def halvings(config: VQVAEConfig) -> int:
    """How often the grid is halved after the stem."""
    if config.factor not in (4, 8, 16):
        raise ValueError(f"vqvae.factor={config.factor} must be 4, 8 or 16")
    return (4, 8, 16).index(config.factor)
