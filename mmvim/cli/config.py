"""Load a config file with its overrides, and enter the scope of its library."""

import copy
import difflib
import importlib
import importlib.metadata
import importlib.util
import warnings
from pathlib import Path
from traceback import walk_tb
from typing import Any

from mmengine.config import Config
from mmengine.config import config as parser
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import init_default_scope

from mmvim.cli.option_keys import check_option_keys, warn_of_variables
from mmvim.errors import UserError, one_line

_PARSER = parser.__file__
SUFFIXES = ('.py', '.json', '.yaml', '.yml')


def load_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config, enter its default scope and apply ``--cfg-options``.

    Args:
        path (str): A ``.py``, ``.json`` or ``.yaml`` file. Python is run.
        options (dict, optional): Values by dotted key, as ``--cfg-options`` gives them.

    Raises:
        UserError: If the file is missing or broken, if the library of its ``default_scope``
            cannot be used, or if an option does not fit or its key exists nowhere.
    """
    _check_file(Path(path).expanduser())
    try:
        with warnings.catch_warnings():
            # mmengine 0.10 looks bases in other libraries up with it; a user can do nothing.
            warnings.filterwarnings('ignore', 'pkg_resources is deprecated')
            cfg = Config.fromfile(path)
    except Exception as error:
        raise UserError(f'config {path}{_line_of(error)}') from error
    options = options or {}
    merged = copy.copy(cfg)
    try:
        merged.merge_from_dict(options)
    except (KeyError, TypeError) as error:
        keys = ', '.join(options)
        raise UserError(f'--cfg-options {keys} do not fit {path}: {error}') from error
    enter_default_scope(merged.get('default_scope'), path)
    check_option_keys(cfg, merged, options)
    warn_of_variables(cfg, options)
    return merged


def _check_file(file: Path) -> None:
    if file.suffix not in SUFFIXES:
        raise UserError(f'config {file} must be a file in one of {", ".join(SUFFIXES)}')
    if not file.is_file():
        names = [p.name for p in file.parent.glob('*') if p.suffix in SUFFIXES]
        like = difflib.get_close_matches(file.name, names, n=1)
        advice = f'; did you mean {file.parent / like[0]}?' if like else ''
        raise UserError(f'config {file} does not exist{advice}')


def _line_of(error: Exception) -> str:
    """File, line and message of an error in a config or in one it inherits from."""
    if isinstance(error, ImportError) and error.__cause__ is not None:
        return f': custom_imports failed: {error.__cause__}'  # mmengine's own text lists sys.path
    frames = list(walk_tb(error.__traceback__))
    parsed = [f.f_locals.get('filename') for f, _ in frames if f.f_code.co_filename == _PARSER]
    file = next((file for file in reversed(parsed) if file), None)
    lines = [line for frame, line in frames if frame.f_code.co_filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    place = f', line {line} of {file}' if line else f', {file}' if file else ''
    return f'{place}: {type(error).__name__}: {one_line(error)}'


def enter_default_scope(scope: str | None, path: str) -> None:
    """Make the default scope of a config the current one, if its library can be imported.

    mmengine itself only logs a warning when it cannot, and then fails with another error.
    """
    scope = scope or 'mmengine'
    if importlib.util.find_spec(scope) is None:
        raise UserError(f"{path} has default_scope='{scope}', but {missing_library(scope)}")
    try:
        importlib.import_module(f'{scope}.registry')
    except (ImportError, AssertionError) as error:  # an assertion guards mmcv's version
        raise UserError(
            f"{path} has default_scope='{scope}', but {scope} cannot be imported: {one_line(error)}"
        ) from error
    init_default_scope(scope)


def missing_library(scope: str) -> str:
    """That a library is missing and how to get it for the stack that is here."""
    onedl = {
        'mmdet': 'onedl-mmdetection',
        'mmpretrain': 'onedl-mmpretrain',
        'mmseg': 'onedl-mmsegmentation',
    }
    package = MODULE2PACKAGE.get(scope)
    if scope in onedl:
        try:
            importlib.metadata.distribution('onedl-mmengine')
            package = onedl[scope]
        except importlib.metadata.PackageNotFoundError:
            pass
    advice = f'pip install {package}' if package else f'put the package {scope} on PYTHONPATH'
    return f'{scope} is not installed: {advice}'
