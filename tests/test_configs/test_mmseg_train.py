"""A config of ours runs under mmseg's own tools."""

import importlib.util
from pathlib import Path

import pytest
from forked import run
from mmengine.config import Config
from repository import CONFIGS

from mmvim.datasets.patterns import PatternsSpec, generate

pytest.importorskip('mmseg')
pytestmark = pytest.mark.stack
MMSEG_TRAIN = Path(importlib.util.find_spec('mmseg').origin).parent / '.mim' / 'tools' / 'train.py'


def test_trains_under_mmsegs_own_tool(tmp_path):
    if not MMSEG_TRAIN.exists():
        pytest.skip('this mmseg ships no tools')
    data = tmp_path / 'patterns'
    generate(data, PatternsSpec(train=4, val=2, layouts=('ade',)))
    config = CONFIGS / 'demo/vim-nano_upernet_1xb8-900_patterns-128x128.py'
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    assert all(loader in Config.fromfile(config) for loader in loaders)
    done = run(
        *(MMSEG_TRAIN, config, '--work-dir', tmp_path / 'work'),
        *('--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2'),
        *(f'{loader}.dataset.data_root={data}/ade' for loader in loaders),
        *(f'{loader}.batch_size=2' for loader in loaders),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'mIoU' in done.stdout + done.stderr
    assert (tmp_path / 'work' / 'iter_2.pth').exists()
