"""The few repairs that current torch makes necessary, each applied only where it is needed.

=====================  ==================================================  =====================
repair                 why                                                 obsolete when
=====================  ==================================================  =====================
weights-only loading   ``torch.load`` loads weights only since torch 2.6,  mmengine loads its own
                       mmengine's checkpoints hold a ``HistoryBuffer``     checkpoints
torchvision schemas    torchvision's wheel on PyPI is built for CUDA       torchvision publishes
                       torch; beside a CPU torch its import dies           a CPU wheel there
``mmseg::`` bases      mmengine looks for the distribution mmsegmentation  mmengine asks for the
                       alone, not for forks (onedl-…) or plain sources     module instead
=====================  ==================================================  =====================
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import pickle
import re
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import torch

# Module, oldest version that works, what to install.
_STACK = (
    ('mmengine', '0.10.0', "pip install 'mmengine>=0.10.0'"),
    ('mmcv', '2.0.0', "pip install --no-build-isolation 'mmcv>=2.0.0,<2.2.0'"),
)

_HISTORY_STATISTICS = ('mean', 'max', 'min', 'current')

# What torchvision says beside a torch build that lacks its compiled operators.
_TORCHVISION_MESSAGE = 'operator torchvision::nms does not exist'
_TORCHVISION_SCHEMAS = (
    'nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
)
# Libraries live as long as the process, or their schemas vanish with them.
_torchvision_library: torch.library.Library | None = None


def _version_tuple(version: str) -> tuple[int, ...]:
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
        if _version_tuple(found) < _version_tuple(minimum):
            raise ImportError(f'mmvim needs {name} >= {minimum}, found {found}: run `{install}`.')


def mend() -> None:
    """Apply every repair that this machine needs. Idempotent."""
    _mend_torchvision()
    _mend_library_names()
    _mend_checkpoint_loading()


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
    """Let mmengine find libraries whose distribution is called otherwise than it thinks.

    For ``_base_ = 'mmseg::…'`` it asks for the distribution ``mmsegmentation``, then for a module
    of that name. Given the module's own name, it finds the module.
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


def _guarded_getattr(obj: object, name: str) -> Any:
    """Stand in for ``builtins.getattr`` while a checkpoint is read.

    mmengine pickles the statistics methods of ``HistoryBuffer`` as ``getattr(HistoryBuffer,
    'mean')``. The plain builtin would let a crafted file walk from there to
    ``HistoryBuffer.__init__.__globals__`` and on to any code.
    """
    from mmengine.logging import HistoryBuffer

    if obj is HistoryBuffer and name in _HISTORY_STATISTICS:
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(
        f'the checkpoint asks for attribute {name!r} of {obj!r}; only the statistics '
        f'{", ".join(_HISTORY_STATISTICS)} of mmengine HistoryBuffer are allowed.'
    )


def _mmengine_globals() -> list[Any]:
    """What an mmengine checkpoint holds besides tensors and plain containers."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    multiarray: ModuleType = importlib.import_module(
        'numpy._core.multiarray' if hasattr(np, '_core') else 'numpy.core.multiarray'
    )
    # A file keeps the module path of the numpy that wrote it: 1.x and 2.x differ.
    renamed = [
        (getattr(multiarray, name), f'{module}.{name}')
        for module in ('numpy.core.multiarray', 'numpy._core.multiarray')
        for name in ('_reconstruct', 'scalar')
    ]
    dtypes = {type(np.dtype(code)) for code in '?bBhHiIlLqQefd'}
    return [
        HistoryBuffer,
        (_guarded_getattr, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
        *dtypes,
        *renamed,
    ]


def load_checkpoint_file(filename: str | Path, map_location: Any = None) -> Any:
    """Read a checkpoint written by torch or mmengine without ever running code from it.

    Args:
        filename (str | Path): A local ``.pth`` file.
        map_location: As in :func:`torch.load`. Defaults to None.

    Returns:
        The object stored in the file, usually a dict.

    Raises:
        FileNotFoundError: If there is no such file.
        pickle.UnpicklingError: If the file asks for anything but tensors, plain containers and
            mmengine's log history, or is no checkpoint at all.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{path} can not be found.')
    with torch.serialization.safe_globals(_mmengine_globals()):
        return torch.load(path, map_location=map_location, weights_only=True)


def fetch(url: str) -> Path:
    """Download a file once, into torch.hub's folder.

    Args:
        url (str): Where the file is.

    Returns:
        Path: The local copy. Its name starts with a digest of the whole URL, so that two files of
        the same name stay apart.
    """
    from mmengine.dist import barrier, get_local_rank

    name = Path(urlparse(url).path).name
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    file = Path(torch.hub.get_dir()) / 'checkpoints' / f'{digest}-{name}'
    if get_local_rank() == 0 and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file))
    barrier()
    return file


def _mend_checkpoint_loading() -> None:
    """Let mmengine read files and URLs through :func:`load_checkpoint_file`.

    Older torch loads whatever the file holds, as mmengine expects; renamed globals, which the
    guarded ``getattr`` needs, came with torch 2.6 too.
    """
    if _version_tuple(torch.__version__) < (2, 6):
        return
    from mmengine.runner import CheckpointLoader

    # mmengine names the backend in its log by what follows the first ten characters.
    def load_from_local(filename: str, map_location: Any = None) -> Any:
        return load_checkpoint_file(filename, map_location)

    def load_from_http(filename: str, map_location: Any = None) -> Any:
        return load_checkpoint_file(fetch(filename), map_location)

    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(
        prefixes=['http://', 'https://'], loader=load_from_http, force=True
    )
