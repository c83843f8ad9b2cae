"""Where tensors live, and exact arithmetic on any device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def best_device() -> torch.device:
    if os.environ.get("ACCELERATE_USE_CPU") == "true":  # `--device cpu`, in Accelerate's own word
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """To the device without waiting for it: a GPU copies from pinned memory while the host goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else tensor.to(device)


def together(device: torch.device | str, few: int) -> int:
    """How many maps to sample together: `few`, or as many as keep a GPU busy."""
    return 512 if torch.device(device).type == "cuda" else few


@contextmanager
def full_precision(device: torch.device | str) -> Iterator[None]:
    """True float32 (no TF32, no autocast), for tokens are decided by small differences; all is put back after."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
