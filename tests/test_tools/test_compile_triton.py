"""What compile_triton.py says of the kernels, as a process: in this one they may be interpreted."""

import importlib.util
import subprocess
import sys

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


@pytest.mark.parametrize('target', ['sm_90'])
def test_nothing_spills_where_vim_needs_it(target):
    """Of a Vim block: the scan with 16 states, in segments, the convolution and the norm."""
    rows = table('--targets', target, '--ops', 'scan', 'conv', 'norm')
    kernels = {row['kernel'] for row in rows}
    scan = {'scan forward', 'scan backward'}
    assert kernels == {
        *(f'{name}{way}' for name in (*scan, 'segment') for way in ('', ', reverse')),
        *('carry', 'conv forward', 'conv backward', 'norm forward', 'norm backward'),
    }
    for row in rows:
        assert int(row['spilled']) == 0, row
        assert int(row['shared bytes']) <= 48 * 1024, row  # what a block has without asking
        if row['kernel'].startswith('scan'):
            assert float(row['instructions']) > 1, row


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_every_form_compiles(dtype):
    """Of few states, which take a compiler little time; the generic scan with all it takes."""
    rows = table('--targets', 'sm_90', 'gfx942', '--dtypes', dtype, '--states', '1', '3')
    assert {row['N'] for row in rows} == {'1', '3', '–'}
    assert any(row['kernel'].endswith('generic') for row in rows)
