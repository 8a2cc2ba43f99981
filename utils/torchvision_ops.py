"""Make torchvision importable beside a CPU-only torch.

The registry's torchvision wheel is compiled against a CUDA torch; beside a CPU-only torch its library does not load,
and `import torchvision` fails because it registers shape functions for two undeclared operators. Nothing here uses
them, so their schemas are declared if the library is missing. Call this before importing torchvision or timm.
"""

import functools
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def declare_missing_operators() -> torch.library.Library | None:
    """Declare the two operators if torchvision's library does not load; the cached result keeps them alive."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None  # no torchvision: its own import error is the right one
    try:
        torch.ops.load_library(str(next(Path(spec.origin).parent.glob("_C*"))))
    except (OSError, StopIteration):
        declarations = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            declarations.define(schema)
        return declarations
    return None
