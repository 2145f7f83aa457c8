"""The few repairs that current torch makes necessary, each applied only where it is needed.

=====================  ==================================================  =====================
repair                 why                                                 obsolete when
=====================  ==================================================  =====================
mmcv's operators       mmcv has no wheel for current torch, and compiling  mmcv publishes wheels
                       it takes minutes; few of its operators are needed
torchvision schemas    torchvision's wheel on PyPI is built for CUDA       torchvision publishes
                       torch; beside a CPU torch its import dies           a CPU wheel there
``mmseg::`` bases      mmengine looks for the distribution mmsegmentation  mmengine asks for the
                       alone, not for forks (onedl-…) or plain sources     module instead
``mmvim::`` bases      mmengine's table of libraries is closed             libraries can add to it
=====================  ==================================================  =====================

Operators for an mmcv without compiled ones are in :mod:`mmvim.mmcv_ops`; mmengine's loaders of
checkpoints are replaced in :mod:`mmvim.checkpoints.reading`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re

import torch

from mmvim import mmcv_ops

# Module, oldest version that works, what to install.
_STACK = (
    ('mmengine', '0.10.0', "pip install 'mmengine>=0.10.0'"),
    ('mmcv', '2.0.0', "pip install 'mmcv-lite>=2.0.0,<2.2.0'"),
)

# What torchvision says beside a torch build that lacks its compiled operators.
_TORCHVISION_MESSAGE = 'operator torchvision::nms does not exist'
_TORCHVISION_SCHEMAS = (
    'nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
)
# Libraries live as long as the process, or their schemas vanish with them.
_torchvision_library: torch.library.Library | None = None


def version_tuple(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, to compare with."""
    return tuple(int(part) for part in re.findall(r'\d+', version)[:3])


def check_stack() -> None:
    """Make sure that mmengine and mmcv can be imported and are new enough.

    Raises:
        ImportError: If one is missing or too old; one sentence says what to install.
    """
    for name, minimum, install in _STACK:
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f'mmvim needs {name} >= {minimum}, which is not installed: run `{install}`.'
            )
        found = str(getattr(importlib.import_module(name), '__version__', '0'))
        if version_tuple(found) < version_tuple(minimum):
            raise ImportError(f'mmvim needs {name} >= {minimum}, found {found}: run `{install}`.')


def mend() -> None:
    """Apply every repair that this machine needs. Idempotent."""
    mmcv_ops.activate()
    _mend_torchvision()
    _mend_library_names()


def _mend_torchvision() -> None:
    """Declare two operator schemas of torchvision if, and only if, its import fails for them."""
    global _torchvision_library
    if _torchvision_library is not None or importlib.util.find_spec('torchvision') is None:
        return
    try:
        importlib.import_module('torchvision')
    except RuntimeError as error:
        if str(error) != _TORCHVISION_MESSAGE:
            raise
        _torchvision_library = torch.library.Library('torchvision', 'DEF')
        for schema in _TORCHVISION_SCHEMAS:
            _torchvision_library.define(schema)
        importlib.import_module('torchvision')


def _mend_library_names() -> None:
    """Let mmengine find the configs of libraries that its table lacks or names otherwise.

    For ``_base_ = 'mmseg::…'`` it asks for the distribution ``mmsegmentation``, then for a module
    of that name. Given a module that is no distribution, it asks Python where that module lies.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    for module, distribution in MODULE2PACKAGE.items():
        if module == distribution:
            continue
        try:
            importlib.metadata.distribution(distribution)
        except importlib.metadata.PackageNotFoundError:
            if importlib.util.find_spec(module) is not None:
                MODULE2PACKAGE[module] = module
    # Not 'mmvim': the distribution of an editable install has no folder beside its metadata.
    MODULE2PACKAGE['mmvim'] = 'mmvim.registry'
