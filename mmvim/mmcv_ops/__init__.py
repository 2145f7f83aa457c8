"""Operators for an mmcv that was installed without its compiled ones.

mmcv-lite, or mmcv built with ``MMCV_WITH_OPS=0``, has no module ``mmcv._ext``, which ``mmcv.ops``
loads when it is imported. :func:`activate` provides that module where Python finds no other: what
the configs of this project reach is computed by torchvision or in torch, and every other operator
raises when it is called. A compiled ``mmcv._ext`` is found first and stays as it is.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from mmvim.errors import UserError
from mmvim.mmcv_ops.gpu_only import (
    ms_deform_attn_backward,
    ms_deform_attn_forward,
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
)
from mmvim.mmcv_ops.roi_align import roi_align_backward, roi_align_forward
from mmvim.mmcv_ops.suppression import nms, softnms
from mmvim.mmcv_ops.torchvision_ops import has_torchvision_ops

__all__ = ['activate', 'has_torchvision_ops', 'sources']

MODULE = 'mmcv._ext'
# Operators, and the functions of mmcv._ext that they consist of.
SERVED: dict[str, tuple[Callable[..., Any], ...]] = {
    'nms': (nms,),
    'roi_align': (roi_align_forward, roi_align_backward),
    'soft_nms': (softnms,),
    'sigmoid_focal_loss': (sigmoid_focal_loss_forward, sigmoid_focal_loss_backward),
    'ms_deform_attn': (ms_deform_attn_forward, ms_deform_attn_backward),
}


def _install_line() -> str:
    """The command that compiles mmcv's operators in this environment."""
    installed = importlib.metadata.packages_distributions().get('mmcv', ['mmcv'])[0]
    version = importlib.import_module('mmcv').__version__
    return (
        f'pip uninstall -y {installed} && MMCV_WITH_OPS=1 pip install --no-build-isolation '
        f'--no-cache-dir --no-binary :all: --no-deps {installed.removesuffix("-lite")}=={version}'
    )


def _absent(name: str) -> Callable[..., NoReturn]:
    """The function that stands for an operator which is not there; called, it says so."""
    if name.startswith('_'):
        raise AttributeError(f'module {MODULE!r} has no attribute {name!r}')

    def operator(*_: object, **__: object) -> NoReturn:
        raise UserError(
            f'mmcv was installed without its compiled operators, and mmvim, which replaces '
            f'{", ".join(SERVED)}, does not replace {name}. To compile them run '
            f'`make install MMCV=full`, or in an environment of your own `{_install_line()}`.'
        )

    operator.__name__ = operator.__qualname__ = name
    return operator


def _no_compiler() -> str:
    """What mmcv reports as the compiler of its operators."""
    return 'none: mmcv was installed without compiled operators'


class _Finder:
    """Import hook for ``mmcv._ext``, the last to be asked."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        # mypy wants a Loader here, an abstract class without abstract methods.
        return ModuleSpec(name, self, origin=__file__) if name == MODULE else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave making the module to Python."""

    def exec_module(self, module: ModuleType) -> None:
        functions = {each.__name__: each for parts in SERVED.values() for each in parts}
        versions = dict.fromkeys(
            ('get_compiler_version', 'get_compiling_cuda_version'), _no_compiler
        )
        vars(module).update(functions, **versions, __getattr__=_absent)


_FINDER = _Finder()


def activate() -> None:
    """Let ``import mmcv._ext`` find the operators of this package where it finds nothing else."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)


def sources() -> dict[str, str]:
    """Where each operator that our configs reach comes from in this environment.

    Returns:
        dict[str, str]: Name to ``'compiled'`` (mmcv's own), ``'torchvision'``, ``'torch'`` or
        ``'absent: …'`` with the reason and the command that installs it; the last key,
        ``'all others'``, stands for the rest of mmcv's operators.
    """
    spec = importlib.util.find_spec(MODULE)
    names = (*SERVED, 'all others')
    if spec is not None and spec.loader is not _FINDER:
        return dict.fromkeys(names, 'compiled')
    found = dict.fromkeys(names, 'torch')
    if has_torchvision_ops():
        found |= dict.fromkeys(('nms', 'roi_align'), 'torchvision')
    found['all others'] = f'absent: mmcv was installed without them; `{_install_line()}`'
    return found
