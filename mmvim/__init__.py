"""mmvim: the Vision Mamba (Vim) backbone for OpenMMLab's dense-prediction libraries.

Importing the package registers its modules under the scope ``mmvim`` in the registries of
mmengine, so that ``type='mmvim.VisionMamba'`` works inside any mmseg, mmdet or mmpretrain config.
None of these three has to be installed for the import to succeed.
"""

from mmvim import compat as _compat

_compat.check_stack()
_compat.mend()

from mmvim import checkpoints, engine, models  # noqa: E402 (the stack is checked first)
from mmvim.version import __version__  # noqa: E402

__all__ = ['__version__', 'checkpoints', 'engine', 'models']
