"""A library that is absent, broken, stale or foreign: importing works, and the reason is told."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import mmvim_ops
from mmvim_ops import loading
from mmvim_ops.library_file import INTERFACE, LIBRARY, PURE_PYTHON, SIDECAR

PACKAGE = Path(mmvim_ops.__file__).parent
# Some other shared object: an extension module of Python itself.
OTHER = importlib.util.find_spec('_ctypes')
needs_library = pytest.mark.skipif(
    loading.path() is None, reason=f'no native library: {loading.problem()}'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the package without its library."""
    copy = tmp_path / 'mmvim_ops'
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns('libmmvim_ops.*', '__pycache__'))
    return copy


def put(folder: Path, content: bytes | None, facts: Any = None, **changed: Any) -> None:
    """Lay down a library and a sidecar that fits it, but for what is ``changed``."""
    if content is not None:
        (folder / LIBRARY).write_bytes(content)
    if facts is None:
        digest = hashlib.sha256(content or b'').hexdigest()
        facts = {'interface': INTERFACE, 'sha256': digest, 'cuda': None, 'cuda_problem': 'none'}
    (folder / SIDECAR).write_text(json.dumps({**facts, **changed}))


def built() -> tuple[bytes, dict[str, Any]]:
    """The library that was built and its sidecar."""
    return (PACKAGE / LIBRARY).read_bytes(), loading.info()


def other_object() -> bytes:
    if OTHER is None or OTHER.origin in (None, 'built-in'):
        pytest.skip('this Python has no extension module to lend')
    return Path(str(OTHER.origin)).read_bytes()


def nothing(folder: Path) -> None:
    pass


def failed_build(folder: Path) -> None:
    put(folder, None, {'interface': INTERFACE, 'problem': 'no C++ compiler'})


def only_sidecar(folder: Path) -> None:
    put(folder, None)


def only_library(folder: Path) -> None:
    (folder / LIBRARY).write_bytes(other_object())


def truncated(folder: Path) -> None:
    content = other_object()
    put(folder, content)
    (folder / LIBRARY).write_bytes(content[: len(content) // 2])


def empty(folder: Path) -> None:
    put(folder, b'', sha256=hashlib.sha256(b'something').hexdigest())


def older_interface(folder: Path) -> None:
    put(folder, other_object(), interface=INTERFACE - 1)


def no_interface(folder: Path) -> None:
    put(folder, other_object(), interface=None)


def other_elf(folder: Path) -> None:
    put(folder, other_object())


def text_file(folder: Path) -> None:
    put(folder, b'not a library\n')


def sidecar_no_json(folder: Path) -> None:
    put(folder, other_object())
    (folder / SIDECAR).write_text('{"interface": ')


def sidecar_no_table(folder: Path) -> None:
    put(folder, other_object())
    (folder / SIDECAR).write_text('[1]')


def library_is_a_folder(folder: Path) -> None:
    put(folder, None)
    (folder / LIBRARY).mkdir()


CASES: list[tuple[Callable[[Path], None], str]] = [
    (nothing, 'not built: install again'),
    (failed_build, r'not built: no C\+\+ compiler'),
    (only_sidecar, 'not built: install again'),
    (only_library, f'stale: .*interface None .* needs {INTERFACE}'),
    (truncated, 'broken: .*not the file that was built'),
    (empty, 'broken: .*not the file that was built'),
    (older_interface, f'stale: .*interface {INTERFACE - 1} .* needs {INTERFACE}'),
    (no_interface, f'stale: .*interface None .* needs {INTERFACE}'),
    (other_elf, 'foreign: .*cannot be loaded .*mmvim_ops_isas'),
    (text_file, 'foreign: .*cannot be loaded'),
    (sidecar_no_json, 'broken: .*cannot be read'),
    (sidecar_no_table, 'broken: .*cannot be read'),
    (library_is_a_folder, 'broken: .*cannot be read'),
]


def load(folder: Path) -> ModuleType:
    """The loader of a folder, as a module of its own."""
    spec = importlib.util.spec_from_file_location('native_copy', folder / 'loading.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(('fill', 'reason'), CASES, ids=[fill.__name__ for fill, _ in CASES])
def test_reason(fill: Callable[[Path], None], reason: str, folder: Path) -> None:
    fill(folder)
    copy = load(folder)
    with pytest.raises(RuntimeError, match=reason):
        copy.isa()
    assert copy.path() is None
    assert copy.problem() == copy.cuda_problem()
    assert copy.is_wanted() and not copy.has_cuda()


def test_old_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, other_object())
    old = type(torch.__version__)('2.9.1+cpu')
    monkeypatch.setattr(torch, '__version__', old)
    assert load(folder).problem() == 'torch 2.9.1+cpu is older than 2.10; upgrade torch'


USE = """
import pathlib, runpy, sys, warnings
import torch, mmvim_ops
assert pathlib.Path(mmvim_ops.__file__).parent == pathlib.Path(sys.argv[1])
x, A = torch.ones(1, 3, 2), -torch.ones(2, 4)
row = torch.ones(1, 3, 4)
try:
    mmvim_ops.selective_scan(x, x, A, row, row, backend='cpu')
except RuntimeError as error:
    print('by name:', error)
else:
    print('by name: ran')
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
        mmvim_ops.selective_scan(x, x, A, row, row)
        mmvim_ops.selective_scan(x, x, A, row, row)
    except RuntimeError as error:
        print('auto:', error)
    else:
        print('auto: ran')
print('warned:', *(warning.message for warning in caught))
sys.argv = ['mmvim_ops']
runpy.run_module('mmvim_ops', run_name='__main__')
"""


def use(folder: Path, **environ: str) -> dict[str, str]:
    """Use a copy of the package in a process of its own; what it said, by subject."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith('MMVIM_')}
    result = subprocess.run(
        [sys.executable, '-c', USE, str(folder)],
        env={**clean, 'PYTHONPATH': str(folder.parent), **environ},
        cwd=folder.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    subjects = ('by name', 'auto', 'warned', 'cpu', 'isa')
    lines = result.stdout.splitlines()
    return {s: line for s in subjects for line in lines if re.match(rf'{s}[ :]', line)}


@pytest.mark.parametrize('fill', [truncated, other_elf], ids=lambda fill: fill.__name__)
def test_the_package_works_without(fill: Callable[[Path], None], folder: Path) -> None:
    """From import to result; and nothing hides why the kernels are missing."""
    fill(folder)
    reason = dict(CASES)[fill]
    said = use(folder)
    assert said['auto'] == 'auto: ran'
    assert re.search(
        rf'^warned: mmvim_ops runs without its native library: {reason}', said['warned']
    )
    assert said['warned'].count('runs without') == 1
    assert re.search(reason, said['by name'])
    assert re.search(rf'cpu +no +{reason}', said['cpu'])


def test_no_warning_where_nobody_wants_a_library(folder: Path) -> None:
    put(folder, None, {'interface': INTERFACE, 'problem': PURE_PYTHON})
    said = use(folder)
    assert said['auto'] == 'auto: ran' and said['warned'] == 'warned:'
    assert PURE_PYTHON in said['by name']


@pytest.mark.skipif(
    os.environ.get('MMVIM_FORCE_EXT', '0') == '0', reason='MMVIM_FORCE_EXT=1 demands a library'
)
def test_a_library_that_is_demanded_is_there() -> None:
    """The Makefile demands it, so that no test below is skipped unnoticed."""
    assert loading.problem() is None, loading.problem()


@needs_library
def test_own_library_truncated_or_stale(folder: Path) -> None:
    content, facts = built()
    put(folder, content[:-1], facts)
    assert 'broken: ' in str(load(folder).problem())
    put(folder, content, facts, interface=INTERFACE + 1)
    assert 'stale: ' in str(load(folder).problem())


@needs_library
def test_instruction_sets() -> None:
    before = loading.isa()
    assert before in loading.isas()
    assert loading.isas()[-1] == 'plain'
    assert set(loading.isas()) <= {'avx512', 'avx2', 'neon', 'plain'}
    try:
        for name in loading.isas():
            loading.use_isa(name)
            assert loading.isa() == name
            data = torch.linspace(-1, 0, 128)
            loading.exp_many(data, 1)
            torch.testing.assert_close(data[64:], data[:64].exp(), rtol=1e-6, atol=0)
        for wrong in ('avx1024', '', 'plain,avx2'):
            with pytest.raises(ValueError, match=r'valid: .*plain'):
                loading.use_isa(wrong)
        assert loading.isa() == 'plain'
    finally:
        loading.use_isa(before)


@needs_library
@pytest.mark.parametrize('name', ['plain', 'avx1024'])
def test_variable_for_the_instruction_set(name: str, folder: Path) -> None:
    """Read at import, which it cannot break; another set than asked for is never used."""
    put(folder, *built())
    said = use(folder, MMVIM_CPU_ISA=name)
    if name == 'plain':
        assert said['by name'] == 'by name: ran'
        assert said['auto'] == 'auto: ran'
        assert said['isa'].split() == ['isa', 'plain']
    else:
        for subject in ('by name', 'auto', 'cpu'):
            assert re.search("MMVIM_CPU_ISA: .*'avx1024'.*valid: .*plain", said[subject]), said
