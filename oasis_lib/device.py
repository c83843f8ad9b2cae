"""Where tensors live, how much of them fits, and in which precision to compute."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import psutil
import torch
from torch import Tensor

SHARE = 0.4  # of the free memory that images, sampled maps, or a training step may take
ENOUGH = 12e9  # bytes of a card on which any training step of the profile `full` fits (tests/test_gpu.py)


def best_device() -> torch.device:
    if os.environ.get("ACCELERATE_USE_CPU") == "true":  # `--device cpu`, in Accelerate's own word
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """To the device without waiting for it: a GPU copies from pinned memory while the host goes on."""
    cuda = torch.device(device).type == "cuda"
    return tensor.pin_memory().to(device, non_blocking=True) if cuda else tensor.to(device)


def card_memory(device: torch.device) -> tuple[float, float]:
    """Bytes that are free (what torch holds and does not use included) and bytes in all: of a card, or of the host."""
    if device.type != "cuda":
        return psutil.virtual_memory().available, psutil.virtual_memory().total
    free, total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total


def together(device: torch.device | str, few: int, size: int = 1) -> int:
    """How many maps of `size` bytes to sample together: `few`, or as many as keep a GPU busy and fit its memory."""
    device = torch.device(device)
    return min(512, max(1, int(SHARE * card_memory(device)[0] / size))) if device.type == "cuda" else few


def step_room(device: torch.device) -> float:
    """Bytes of a small card that a training step may fill with what its backward pass needs; no limit elsewhere."""
    free, total = card_memory(device)
    return SHARE * free if device.type == "cuda" and total < ENOUGH else math.inf


def spilled(room: float) -> AbstractContextManager:
    """What the backward pass needs beyond `room` bytes waits in the host's memory: slower, for the same numbers."""
    if room == math.inf:
        return nullcontext()
    held = 0

    @torch.compiler.disable
    def pack(tensor: Tensor) -> tuple[Tensor, torch.device]:
        nonlocal held
        held += tensor.nbytes
        return tensor if held <= room else tensor.cpu(), tensor.device

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept[0].to(kept[1]))


def in_half(device: torch.device, precision: str = "auto") -> bool:
    """Whether to compute in bf16. "auto": as OASIS_PRECISION says (bf16 or no); without it, wherever that is quicker.

    On a CPU that is with matrix units (AMX) only: by AVX-512 alone bf16 takes 1.5 times as long as float32.
    """
    precision = os.environ.get("OASIS_PRECISION", "auto") if precision == "auto" else precision
    if precision not in ("auto", "bf16", "no"):
        raise ValueError(f"OASIS_PRECISION={precision!r} must be auto, bf16 or no")
    quick = {"cuda": torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)}
    quick["cpu"] = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return precision == "bf16" or (precision == "auto" and quick.get(device.type, False))


def sampling_precision(device: torch.device) -> AbstractContextManager:
    """bf16 on CUDA, or where OASIS_PRECISION asks for it; elsewhere true float32, where a batch changes no sample."""
    if in_half(device) and (device.type == "cuda" or "OASIS_PRECISION" in os.environ):
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=device.type != "cuda")  # a graph can't
    return full_precision(device)


def computed_in(device: torch.device) -> torch.dtype:
    """What a linear layer gives here and now."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


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
