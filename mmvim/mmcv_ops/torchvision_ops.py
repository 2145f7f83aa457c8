"""Whether torchvision's compiled operators can serve."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache

import torch


@cache
def has_torchvision_ops() -> bool:
    """Whether torchvision is here with its compiled operators, which fit this torch.

    Asked at the first call of an operator, for importing torchvision takes a second.
    """
    if importlib.util.find_spec('torchvision') is None:
        return False
    importlib.import_module('torchvision')
    # Not nms: compat.py declares it where the library does not load.
    return hasattr(torch.ops.torchvision, 'roi_align')
