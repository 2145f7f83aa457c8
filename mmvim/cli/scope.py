"""The library a config belongs to, by its ``default_scope``."""

import importlib
import importlib.metadata
import importlib.util

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import init_default_scope

from mmvim.errors import UserError, one_line

ROOT_SCOPE = 'mmengine'


# What the maintained forks are called.
_ONEDL = {
    'mmdet': 'onedl-mmdetection',
    'mmpretrain': 'onedl-mmpretrain',
    'mmseg': 'onedl-mmsegmentation',
}


def missing_library(scope: str) -> str:
    """That a library is missing and how to get it for the stack that is here."""
    package = MODULE2PACKAGE.get(scope)
    if scope in _ONEDL and is_installed('onedl-mmengine'):
        package = _ONEDL[scope]
    advice = f'pip install {package}' if package else f'put the package {scope} on PYTHONPATH'
    return f'{scope} is not installed: {advice}'


def is_installed(distribution: str) -> bool:
    """Whether a distribution of this name is here."""
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def enter_default_scope(scope: str | None, path: str) -> None:
    """Make ``scope`` the current one, after checking that its library can be imported.

    mmengine itself only logs a warning when it cannot, and then fails with another error.

    Args:
        scope: ``default_scope`` of the config; None means mmengine's own.
        path: The config, for the message.
    """
    scope = scope or ROOT_SCOPE
    if importlib.util.find_spec(scope) is None:
        raise UserError(f"{path} has default_scope='{scope}', but {missing_library(scope)}")
    try:
        importlib.import_module(scope)
        importlib.import_module(f'{scope}.registry')
    except (ImportError, AssertionError) as error:  # an assertion guards mmcv's version
        raise UserError(
            f"{path} has default_scope='{scope}', but {scope} cannot be imported: {one_line(error)}"
        ) from error
    init_default_scope(scope)
