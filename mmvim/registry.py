"""The registries of scope ``mmvim``, children of mmengine's root registries.

``locations`` lets mmengine import the right package on demand, so that ``type='mmvim.X'``
resolves from a config of another library even where nobody imported mmvim before.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmvim', locations=['mmvim.models'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmvim', locations=['mmvim.engine'])
