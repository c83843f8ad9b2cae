"""Where tensors live, how much of them fits, and in which precision to compute."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    return tensor.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else tensor.to(device)


def card_memory(device: torch.device) -> tuple[float, float]:
    """Bytes that are free, those that torch holds and does not use included, and bytes in all: of a card, or of the host."""
    if device.type != "cuda":
        return psutil.virtual_memory().available, psutil.virtual_memory().total
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free, total = torch.cuda.mem_get_info(device)
    return free + unused, total


def together(device: torch.device | str, few: int, size: int = 1) -> int:
    """How many maps of `size` bytes to sample together: `few`, or as many as keep a GPU busy and fit its memory."""
    device = torch.device(device)
    return min(512, max(1, int(SHARE * card_memory(device)[0] / size))) if device.type == "cuda" else few


def step_room(device: torch.device) -> float:
    """Bytes of a small card that a training step may fill with what its backward pass needs; no limit elsewhere."""
    free, total = card_memory(device)
    return SHARE * free if device.type == "cuda" and total < ENOUGH else math.inf


@contextmanager
def spilled(room: float) -> Iterator[None]:
    """What the backward pass needs beyond `room` bytes waits in the host's memory: slower, the same numbers, whatever the batch."""
    if room == math.inf:
        yield
        return
    held = 0

    def pack(tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        nonlocal held
        held += tensor.nbytes
        return tensor if held <= room else (tensor.device, tensor.to("cpu", copy=True))

    def unpack(kept: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept[1].to(kept[0])

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def in_half(device: torch.device, precision: str = "auto") -> bool:
    """Whether to compute in bf16. "auto" is what OASIS_PRECISION says (bf16 or no); without it, wherever that is quicker.

    On a CPU that is with matrix units (AMX) only: by AVX-512 alone bf16 takes 1.5 times as long as float32.
    """
    precision = os.environ.get("OASIS_PRECISION", "auto") if precision == "auto" else precision
    if precision not in ("auto", "bf16", "no"):
        raise ValueError(f"OASIS_PRECISION={precision!r} must be auto, bf16 or no")
    quick = {"cuda": torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)}
    quick["cpu"] = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return precision == "bf16" or (precision == "auto" and quick.get(device.type, False))


@contextmanager
def sampling_precision(device: torch.device) -> Iterator[None]:
    """bf16 on CUDA, and where OASIS_PRECISION asks for it. Elsewhere true float32: samples do not depend on the batch there."""
    half = in_half(device) and (device.type == "cuda" or "OASIS_PRECISION" in os.environ)
    with torch.autocast(device.type, torch.bfloat16) if half else full_precision(device):
        yield


def recorded(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`work`, whose shapes and addresses are fixed, as one CUDA graph: one launch. Each call writes over the last one's result."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what only a first call does is not recorded
        work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return lambda: (graph.replay(), result)[1]


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
