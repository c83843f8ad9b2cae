"""torchvision, also where its compiled part can't load: the index's build links CUDA, and then misses two operators' schemas.

Import it from here (`from oasis_lib.vision import transforms`). Declared schemas let transforms, datasets and utils work beside a
CPU-only torch; the operators themselves still say plainly that they can't run.
"""

from __future__ import annotations

import torch

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

from torchvision.transforms import v2 as transforms  # noqa: E402

__all__ = ["COMPLETE", "torchvision", "transforms"]
