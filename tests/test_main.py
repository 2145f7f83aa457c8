"""What ``python -m mmvim`` says of an environment."""

import sys

import pytest
from forked import run

from mmvim import __main__ as page
from mmvim import mmcv_ops
from mmvim.compat import version_tuple

pytestmark = pytest.mark.stack


def test_page() -> None:
    import mmengine

    done = run("import runpy; runpy.run_module('mmvim', run_name='__main__', alter_sys=True)")
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert 'mmengine' in said and mmengine.__version__ in said
    assert all(name in said for name in mmcv_ops.sources()) and 'python -m mmvim_ops' in said


def test_versions_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ('mmseg', 'mmdet'):
        pytest.importorskip(module)
    monkeypatch.setitem(sys.modules, 'mmdet', None)  # as if it were not there
    monkeypatch.setitem(sys.modules, 'mmseg.models', None)
    rows = {module: (version, note) for module, version, note in page.packages()}
    assert list(rows) == [
        'torch',
        'torchvision',
        'mmengine',
        'mmcv',
        'mmseg',
        'mmdet',
        'mmpretrain',
    ]
    assert rows['mmdet'][0] == 'missing' and rows['mmdet'][1].startswith('pip install ')
    assert version_tuple(rows['mmseg'][0]) >= (1, 2)
    assert rows['mmseg'][1].startswith('cannot be imported: ModuleNotFoundError: ')


def test_operators_of_one_source_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {'nms': 'torchvision', 'soft_nms': 'torch', 'roi_align': 'torchvision'}
    monkeypatch.setattr(mmcv_ops, 'sources', lambda: found)
    assert page.operators() == [('nms, roi_align', 'torchvision'), ('soft_nms', 'torch')]
