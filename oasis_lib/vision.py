"""torchvision for the library, also beside a torch of another build. The only place that imports it.

The index's torchvision links CUDA. Beside a CPU-only torch its compiled part does not load, and two operators' schemas
are missing. Declared here, they let transforms, datasets and utils work; the operators themselves still raise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
COMPLETE = True

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    COMPLETE = False
    _library = torch.library.Library("torchvision", "DEF")  # kept alive: the schemas go when it does
    for _name in ("nms", "qnms"):
        _library.define(_name + _SCHEMA)
    import torchvision

from torchvision.transforms.v2 import functional  # noqa: E402

__all__ = ["COMPLETE", "blur", "functional", "torchvision"]


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (..., H, W) out to 3 sigma, mirrored at the border. Axis by axis: faster from sigma 4 on."""
    window = 2 * max(1, math.ceil(3 * sigma)) + 1
    images = functional.gaussian_blur(images, [1, window], [sigma, sigma])
    return functional.gaussian_blur(images, [window, 1], [sigma, sigma])
