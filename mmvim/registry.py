"""The registries of scope ``mmvim``, children of mmengine's root registries.

``locations`` lets mmengine import the right package on demand, so that ``type='mmvim.X'``
resolves from a config of another library even where nobody imported mmvim before.
"""

from mmengine.registry import (
    DATA_SAMPLERS,
    LOOPS,
    METRICS,
    OPTIM_WRAPPERS,
    PARAM_SCHEDULERS,
    Registry,
)
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import VISUALIZERS as MMENGINE_VISUALIZERS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmvim', locations=['mmvim.models'])
DATASETS = Registry(
    'dataset', parent=MMENGINE_DATASETS, scope='mmvim', locations=['mmvim.datasets.registered']
)
TRANSFORMS = Registry(
    'transform', parent=MMENGINE_TRANSFORMS, scope='mmvim', locations=['mmvim.datasets.registered']
)
VISUALIZERS = Registry(
    'visualizer',
    parent=MMENGINE_VISUALIZERS,
    scope='mmvim',
    locations=['mmvim.datasets.registered'],
)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmvim', locations=['mmvim.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmvim',
    locations=['mmvim.engine'],
)
WEIGHT_INITIALIZERS = Registry(
    'weight initializer',
    parent=MMENGINE_WEIGHT_INITIALIZERS,
    scope='mmvim',
    locations=['mmvim.checkpoints'],
)
# Nothing of ours is in these. A config that derives from ``mmvim::…`` builds its entries in scope
# mmvim, and mmengine warns at each where a registry has no such child.
for _root in (DATA_SAMPLERS, LOOPS, METRICS, OPTIM_WRAPPERS, PARAM_SCHEDULERS):
    Registry(_root.name, parent=_root, scope='mmvim', locations=['mmvim.engine'])
