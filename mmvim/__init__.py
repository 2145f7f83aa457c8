"""mmvim: Vision Mamba (Vim) and VMamba as backbones of OpenMMLab's dense-prediction libraries.

Importing the package registers its modules under the scope ``mmvim`` in the registries of
mmengine, so that ``type='mmvim.VisionMamba'`` works inside any mmseg, mmdet or mmpretrain config,
and its configs, so that ``_base_ = 'mmvim::…'`` does. None of these three libraries has to be
installed for the import to succeed.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from mmvim import compat as _compat

_compat.check_stack()
_compat.mend()

# The stack is checked first.
from mmvim import checkpoints, engine, models  # noqa: E402
from mmvim.checkpoints import PretrainedVim, PretrainedVMamba  # noqa: E402
from mmvim.engine import (  # noqa: E402
    AtomicCheckpointHook,
    DataPositionHook,
    LayerDecayOptimWrapperConstructor,
    NonFiniteLossHook,
    RandomStateHook,
    SaveOnSignalHook,
    StrictCheckpointHook,
)
from mmvim.models import (  # noqa: E402
    SS2D,
    LN2d,
    MaxPoolClsHead,
    SimpleFPN,
    VimBlock,
    VimMixer,
    VisionMamba,
    VMamba,
    VSSBlock,
)
from mmvim.version import __version__  # noqa: E402

if _TYPE_CHECKING:
    from mmvim.datasets.camvid import CamVidDataset as CamVidDataset
    from mmvim.datasets.nuclei import NucleiDataset as NucleiDataset

__all__ = [
    'SS2D',
    'AtomicCheckpointHook',
    'DataPositionHook',
    'LN2d',
    'LayerDecayOptimWrapperConstructor',
    'MaxPoolClsHead',
    'NonFiniteLossHook',
    'PretrainedVMamba',
    'PretrainedVim',
    'RandomStateHook',
    'SaveOnSignalHook',
    'SimpleFPN',
    'StrictCheckpointHook',
    'VMamba',
    'VSSBlock',
    'VimBlock',
    'VimMixer',
    'VisionMamba',
    '__version__',
    'checkpoints',
    'engine',
    'models',
]

_DATASETS = {'CamVidDataset': 'mmvim.datasets.camvid', 'NucleiDataset': 'mmvim.datasets.nuclei'}


def __getattr__(name: str) -> _Any:
    """The data sets, each imported when it is asked for: it needs mmseg or mmdet."""
    if name in _DATASETS:
        return getattr(_import_module(_DATASETS[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
