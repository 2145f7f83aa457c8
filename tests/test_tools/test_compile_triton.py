"""What compile_triton.py says of the kernels, as a process: in this one they may be interpreted."""

import importlib.util
import os
import shutil
import subprocess
import sys
from functools import partial
from itertools import product

import pytest
from repository import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='no triton'),
]
TOOL = ROOT / 'tools' / 'analysis_tools' / 'compile_triton.py'


def table(*arguments):
    """The rows, each by the names of its columns."""
    command = [sys.executable, TOOL, *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    heads, _, *rows = ([cell.strip() for cell in line.split('|')] for line in printed.splitlines())
    return [dict(zip(heads, row)) for row in rows]


def assert_nothing_spills(rows):
    """No block takes more shared memory than it has without asking, either."""
    for row in rows:
        assert int(row['spilled']) == 0, row
        assert int(row['shared bytes']) <= 48 * 1024, row
        if row['kernel'].startswith('scan'):
            assert float(row['instructions']) > 5, row  # what the recurrence itself has


def test_forward_passes_of_vim_spill_nothing_anywhere():
    """The scan with 16 states, in segments; the convolution and the norm, backwards as well."""
    targets = 'sm_80', 'sm_90', 'sm_100', 'gfx942', 'gfx1100'
    rows = table('--targets', *targets, '--ops', 'forward', 'conv', 'norm')
    kernels = {
        *(f'{name}{way}' for name in ('scan forward', 'segment') for way in ('', ', reverse')),
        *('carry', 'conv forward', 'conv backward', 'norm forward', 'norm backward'),
    }
    assert {(row['for'], row['kernel']) for row in rows} == set(product(targets, kernels))
    assert_nothing_spills(rows)
    for row in rows:
        if row['for'].startswith('sm_') and row['kernel'].startswith('scan'):
            assert int(row['registers']) <= 128, row  # 16 warps a multiprocessor
            if row['kernel'] == 'scan forward':
                assert float(row['instructions']) <= 8, row


@pytest.mark.parametrize('target', ['sm_90', 'gfx942'])
def test_backward_passes_of_vim_spill_nothing(target):
    rows = table('--targets', target, '--ops', 'backward')
    names = 'scan backward', 'segment of the adjoint'
    assert {row['kernel'] for row in rows} == {
        *(f'{name}{way}' for name in names for way in ('', ', reverse')),
        'carry of the adjoint',
    }
    assert_nothing_spills(rows)


@pytest.mark.parametrize(('target', 'dtype'), [('sm_90', 'float32'), ('gfx942', 'float16')])
def test_every_form_compiles(target, dtype):
    """Of few states, which take a compiler little time; the generic scan with all it takes."""
    rows = table('--targets', target, '--dtypes', dtype, '--states', '1', '3')
    assert {row['N'] for row in rows} == {'1', '3', '–'}
    assert any(row['kernel'].endswith('generic') for row in rows)


def test_origins_add_up(tmp_path, monkeypatch):
    """Every instruction of a loop comes from somewhere, the recurrence's from its line.

    Triton's cache has been filled by a copy of the kernels, which is there no more.
    """
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path / 'cache'))
    copy = shutil.copytree(ROOT / 'ops' / 'mmvim_ops', tmp_path / 'copy' / 'mmvim_ops').parent
    command = [sys.executable, TOOL, '--origins', '--states', '1', '--ops', 'forward']
    measure = partial(subprocess.run, [*command, '--targets', 'sm_90'], capture_output=True)
    measure(env={**os.environ, 'PYTHONPATH': str(copy)}, check=True)
    shutil.rmtree(copy)
    run = measure(text=True)
    assert run.returncode == 0, run.stderr
    found = [block.splitlines() for block in run.stdout.split('\n\n') if block.startswith('| ')]
    assert len(found) == 2  # a direction each
    for heads, _, *lines in found:
        counts = [int(line.split('|')[1]) for line in (heads, *lines)]
        assert counts[0] == sum(counts[1:])
        assert any('states[n]' in line and ' MUFU' in line for line in lines)
    refused = subprocess.run([*command, '--targets', 'gfx942'], capture_output=True, text=True)
    assert refused.returncode == 2
    assert '--targets sm_90' in refused.stderr
