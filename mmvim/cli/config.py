"""Load a config file with overrides; whatever is wrong with it is one sentence."""

import difflib
import os
import re
import sys
import warnings
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from mmvim.cli.channels import check_channels
from mmvim.cli.option_keys import check_option_keys, unread_variables
from mmvim.cli.scope import enter_default_scope, missing_library
from mmvim.errors import UserError, one_line

SUFFIXES = ('.py', '.json', '.yaml', '.yml')


def load_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config, enter its default scope and apply ``--cfg-options``.

    Args:
        path: A ``.py``, ``.json`` or ``.yaml`` file. Python is run.
        options: Values by dotted key, as ``--cfg-options`` gives them.

    Raises:
        UserError: If the file is missing or broken, if the library of its ``default_scope``
            cannot be used, or if an option's key exists nowhere.
    """
    _check_file(path)
    try:
        with warnings.catch_warnings():
            # mmengine 0.10 looks bases in other libraries up with it; a user can do nothing.
            warnings.filterwarnings('ignore', 'pkg_resources is deprecated')
            cfg = Config.fromfile(path)
    except Exception as error:
        raise UserError(_config_failure(path, error)) from error
    options = options or {}
    enter_default_scope(options.get('default_scope', cfg.get('default_scope')), path)
    if options:
        check_option_keys(cfg, options)
        for key, instead in unread_variables(cfg, options).items():
            advice = f'; to change what is read, set {" and ".join(instead)}' if instead else ''
            print(
                f'warning: {key!r} is a variable of the config file that nothing reads once the '
                f'file has run, so setting it by --cfg-options has no effect{advice}',
                file=sys.stderr,
            )
        try:
            cfg.merge_from_dict(options)
        except (KeyError, TypeError) as error:
            raise UserError(f'--cfg-options do not fit {path}: {error}') from error
    return cfg


def require(cfg: Config, path: str, purpose: str, *keys: str) -> None:
    """Fail unless the config has all root keys that ``purpose`` needs, and their parts fit."""
    missing = [key for key in keys if cfg.get(key) is None]
    if missing:
        raise UserError(f'{path} has no {", ".join(missing)}, which {purpose} needs')
    if 'model' in keys:
        check_channels(cfg.model)


def _check_file(path: str) -> None:
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError(f'config {path} is a folder: give a file in it')
    if not file.is_file():
        names = [p.name for p in file.parent.glob('*') if p.suffix in SUFFIXES]
        like = difflib.get_close_matches(file.name, names, n=1)
        advice = f'; did you mean {file.parent / like[0]}?' if like else ''
        raise UserError(f'config {path} does not exist{advice}')
    if file.suffix not in SUFFIXES:
        raise UserError(f'config {path} must end in one of {", ".join(SUFFIXES)}')


def _config_failure(path: str, error: Exception) -> str:
    """``error`` of a config being run, with the file (a base perhaps) and the line."""
    frames = [(frame, line) for frame, line in walk_tb(error.__traceback__)]
    file = next((found for frame, _ in reversed(frames) if (found := _parsed_file(frame))), path)
    line: int | None = None
    if isinstance(error, SyntaxError):
        line = error.lineno
    else:
        lines = [number for frame, number in frames if _same(frame.f_code.co_filename, file)]
        line = lines[-1] if lines else None
    place = file if line is None else f'{file}, line {line}'
    through = '' if _same(file, path) else f' (inherited by {path})'
    what = error.msg if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, ImportError) and error.__cause__ is not None:
        what = f'custom_imports failed: {error.__cause__}'  # mmengine's text lists sys.path
    absent = re.search(r'^(\S+) is not installed, please install', what)
    if absent is not None:  # what mmengine says of a base in another library
        scopes = [scope for scope, package in MODULE2PACKAGE.items() if package == absent[1]]
        what = missing_library(scopes[0] if scopes else absent[1])
    return f'config {place}{through}: {type(error).__name__}: {one_line(what)}'.removesuffix(': ')


def _parsed_file(frame: FrameType) -> str | None:
    """The config file that a frame of mmengine's parser is at work on."""
    if frame.f_code.co_name in ('_file2dict', '_is_lazy_import', '_parse_lazy_import'):
        found = frame.f_locals.get('filename')
        return str(found) if found is not None else None
    return None


def _same(one: str, other: str) -> bool:
    return os.path.abspath(os.path.expanduser(one)) == os.path.abspath(os.path.expanduser(other))
