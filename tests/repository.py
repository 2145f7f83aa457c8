"""Where things lie in the repository, and how tests run them in a process of their own."""

import functools
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, TOOLS = ROOT / 'configs', ROOT / 'tools'


def python(*arguments: Any, **options: Any) -> 'subprocess.CompletedProcess[str]':
    """Run Python; its output is kept as text."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


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
