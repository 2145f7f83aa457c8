"""Where things lie in the repository."""

import functools
import importlib.util
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType

from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, TOOLS = ROOT / 'configs', ROOT / 'tools'


def load_script(path: Path) -> ModuleType:
    """A script of ``tools/`` as a module; they are no package."""
    spec = importlib.util.spec_from_file_location(f'script_{path.stem}', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_parsed = functools.cache(Config.fromfile)


def load_config(name: str | Path) -> Config:
    """A config of its own, by its path under ``configs/``; several tests read the same files."""
    return deepcopy(_parsed(CONFIGS / name))


def bases(file: Path) -> Iterator[str]:
    """All files that a config inherits, in the order in which they are read."""
    for name in Config._get_base_files(str(file)):
        if '::' in name:
            yield name
        else:
            yield from bases(file.parent / name)
            yield str((file.parent / name).resolve().relative_to(CONFIGS))
