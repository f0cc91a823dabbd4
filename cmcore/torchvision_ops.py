"""torchvision beside a CPU-only torch.

The default package index offers CUDA builds of torchvision only. Beside a CPU torch their compiled operators do not
load, and the import fails on one that nothing here uses. Declaring the schemas of the missing operators lets the Python
part be imported.
"""

import importlib
import logging
import sys
import warnings
from types import ModuleType

import torch

_MISSING = "torchvision::nms does not exist"
_declared: list[torch.library.Library] = []  # a library's operators live as long as the object


def import_torchvision() -> ModuleType:
    """Import torchvision; only where its operators fail to load, without them (`nms` then raises its own error).

    Raises:
        ImportError: torchvision is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the image codecs, which are not used either
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            if _MISSING not in str(error):
                raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare_operators()
        module = importlib.import_module("torchvision")
    logging.getLogger(__name__).warning(
        "torchvision's compiled operators do not match this torch; its Python part is used without them"
    )
    return module


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
