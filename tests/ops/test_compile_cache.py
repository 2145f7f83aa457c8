"""Compiled graphs on disk: taken again by the same version of the package, and by no other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmvim_ops
from mmvim_ops import compile_cache

PACKAGE = Path(mmvim_ops.__file__).parent
SETTINGS = getattr(torch.compiler, 'config', None)
needs_the_setting = pytest.mark.skipif(
    not hasattr(SETTINGS, 'cache_key_tag'), reason='this torch has no cache_key_tag'
)

# Compiles both passes of an operator, and prints how often a graph was found on disk.
COMPILE = """
import torch, mmvim_ops
from torch._dynamo.utils import counters
x, w = torch.ones(2, 9, 4, requires_grad=True), torch.ones(4, 4, requires_grad=True)
conv = torch.compile(lambda x, w: torch.ops.mmvim.conv1d_silu(x, w, None, False), fullgraph=True)
conv(x, w).sum().backward()
print(counters['aot_autograd']['autograd_cache_hit'])
"""


@needs_the_setting
def test_tag() -> None:
    """Importing the package set it; another time changes nothing, and the user's own tag stays."""
    assert compile_cache.digest(PACKAGE) in SETTINGS.cache_key_tag
    before = SETTINGS.cache_key_tag
    compile_cache.tag_cached_graphs()
    assert SETTINGS.cache_key_tag == before

    with SETTINGS.patch(cache_key_tag='theirs'):  # pytest's own leaves the setting deleted
        compile_cache.tag_cached_graphs()
        assert SETTINGS.cache_key_tag == f'theirs mmvim_ops={compile_cache.digest(PACKAGE)}'
    assert SETTINGS.cache_key_tag == before


def test_digest(tmp_path: Path) -> None:
    (tmp_path / 'one.py').write_text('1')
    (tmp_path / 'two.py').write_text('2')
    digest = compile_cache.digest(tmp_path)
    (tmp_path / 'notes.txt').write_text('3')
    assert compile_cache.digest(tmp_path) == digest
    (tmp_path / 'two.py').write_text('3')
    assert compile_cache.digest(tmp_path) != digest


def graphs_found(folder: Path) -> int:
    environ = {
        **os.environ,
        'PYTHONPATH': str(folder),
        'TORCHINDUCTOR_CACHE_DIR': str(folder / 'cache'),
    }
    command = [sys.executable, '-c', COMPILE]
    result = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@needs_the_setting
@pytest.mark.slow
def test_another_version_compiles_anew(tmp_path: Path) -> None:
    """The backward operator has another name: a graph on disk would call it by the old one."""
    package = tmp_path / 'mmvim_ops'
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns('csrc', '*.so', '__pycache__'))
    assert graphs_found(tmp_path) == 0
    assert graphs_found(tmp_path) == 1

    rename = ".replace('backward', 'gradients')"
    for file, name in (
        ('library.py', "f'{namespace}::{prefix}{name}{suffix}'"),
        ('flops.py', "f'{prefix}{name}'"),
    ):
        source = (package / file).read_text()
        assert source.count(name) == 1
        (package / file).write_text(source.replace(name, name + rename))
    assert graphs_found(tmp_path) == 0
