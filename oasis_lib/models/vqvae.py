"""The VQ-VAE (van den Oord 2017, arXiv:1711.00937): images to a grid of tokens, and back."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oasis_lib.config import VQVAEConfig
from oasis_lib.device import full_precision
from oasis_lib.models.blocks import Decoder, Encoder
from oasis_lib.models.quantizer import VectorQuantizer
from oasis_lib.models.tokens import check_tokens

BLACK = 2 / 255  # what is at most as bright is background
SLACK = 1e-3  # outside [0, 1] that resampling and rounding may leave
CRISP = "crisp"  # the folder, inside a VQ-VAE's own, of its adversarial decoder


class VQOutput(NamedTuple):
    images: Tensor  # (B, C, H, W)
    codes: Tensor  # (B, h, w) int64
    latents: Tensor  # (B, D, h, w), before quantising
    quantized: Tensor  # (B, D, h, w)
    commitment: Tensor  # the loss terms of the quantizer


class VQVAE(nn.Module):
    kind = "vqvae"
    folder: Path | None = None  # where it was loaded from

    def __init__(self, config: VQVAEConfig | None = None):
        super().__init__()
        self.config = config = config or VQVAEConfig()
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantizer = VectorQuantizer(config)
        self.crisp: Decoder | None = None  # trained against a discriminator: sharp, at some cost in SSIM
        self.register_buffer("mean", torch.tensor(0.0))  # of training pixels
        self.register_buffer("variance", torch.tensor(1.0))

    def _scale(self) -> tuple[Tensor | float, Tensor | float]:
        return (self.mean, self.variance.sqrt()) if self.config.normalise else (0.0, 1.0)

    def latents(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, D, h, w), before quantising."""
        factor, size = self.config.factor, tuple(images.shape[2:])
        if images.dim() != 4 or images.shape[1] != self.config.channels:
            raise ValueError(f"images must be (B, {self.config.channels}, H, W), not {tuple(images.shape)}")
        if size[0] % factor or size[1] % factor:
            raise ValueError(f"images of {size} pixels can't be cut in tokens of {factor} pixels a side")
        if not images.is_floating_point():
            raise ValueError(f"images must be floats in [0, 1], not {images.dtype}; divide uint8 by 255")
        mean, deviation = self._scale()
        return self.encoder((images - mean) / deviation)

    def scaled(self, decoded: Tensor) -> Tensor:
        """A decoder's output -> pixels."""
        mean, deviation = self._scale()
        return decoded * deviation + mean

    def decode_latents(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, C, H, W); not clamped to [0, 1] in training, so that the loss sees every error."""
        images = self.scaled(self.decoder(quantized))
        return images if self.training else images.clamp(0, 1)

    def forward(self, images: Tensor, quantize: bool = True) -> VQOutput:
        """`quantize=False` is the plain autoencoder that training begins with."""
        latents = self.latents(images)
        if not quantize:
            none = torch.zeros(latents.shape[0], *latents.shape[2:], dtype=torch.int64, device=latents.device)
            return VQOutput(self.decode_latents(latents), none, latents, latents, latents.new_zeros(()))
        quantized, codes, commitment = self.quantizer(latents)
        # Outside training the entries themselves: the straight-through sum rounds differently.
        shown = quantized if self.training else self.quantizer.embed(codes)
        return VQOutput(self.decode_latents(shown), codes, latents, quantized, commitment)

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, h, w) int64. Never moves the codebook."""
        if not images.numel():
            raise ValueError(f"images {tuple(images.shape)}: the batch is empty")
        low, high = (float(x) for x in images.aminmax())  # NaN if any is
        if not (low >= -SLACK and high <= 1 + SLACK):
            raise ValueError(f"images must lie in [0, 1], not {low:.4g} .. {high:.4g}; divide them by their maximum")
        return self.tokens(images)

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """`encode` without the check of values, which a GPU would have to wait for. Always in full precision."""
        with full_precision(images.device):
            return self.quantizer(self.latents(images))[1]

    def embed(self, codes: Tensor) -> Tensor:
        return self.quantizer.embed(codes)

    @torch.no_grad()
    def decode(self, codes: Tensor, crisp: bool = False) -> Tensor:
        """(B, h, w) -> (B, C, H, W) in [0, 1], by the faithful decoder (higher SSIM) or the crisp one (sharper)."""
        if crisp and self.crisp is None:
            raise ValueError(f"{self.folder or 'this VQ-VAE'} has no crisp decoder: train with vqvae.adversarial > 0")
        return self.pixels(self.embed(check_tokens(codes, self.config.codebook_size)), crisp)

    def pixels(self, quantized: Tensor, crisp: bool = False) -> Tensor:
        """(B, D, h, w) -> (B, C, H, W) in [0, 1].

        The crisp decoder was trained on brains alone: background is where the faithful one draws it.
        """
        images = self.scaled(self.decoder(quantized)).clamp(0, 1)
        if not crisp:
            return images
        brain = F.max_pool2d((images.amax(1, keepdim=True) > BLACK).float(), (9, 1), 1, (4, 0))
        brain = F.max_pool2d(brain, (1, 9), 1, (0, 4))  # a square in two passes: a fifth of the time
        return self.scaled(self.crisp(quantized)).clamp(0, 1) * brain
