"""A config of ours runs under mmseg's own tools."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

pytest.importorskip('mmseg')
pytestmark = pytest.mark.stack
ROOT = Path(__file__).parents[2]
MMSEG_TRAIN = Path(importlib.util.find_spec('mmseg').origin).parent / '.mim' / 'tools' / 'train.py'


def test_trains_under_mmsegs_own_tool(tmp_path):
    if not MMSEG_TRAIN.exists():
        pytest.skip('this mmseg ships no tools')
    make = [sys.executable, ROOT / 'tools/dataset_converters/make_patterns.py']
    data = tmp_path / 'patterns'
    subprocess.run(
        [*make, '--out', data, '--train', '4', '--val', '2', '--layouts', 'ade'],
        check=True,
        capture_output=True,
    )
    config = ROOT / 'configs/demo/vim-nano_upernet_1xb8-900_patterns-128x128.py'
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    assert all(loader in Config.fromfile(config) for loader in loaders)
    done = subprocess.run(
        [
            *(sys.executable, MMSEG_TRAIN, config, '--work-dir', tmp_path / 'work'),
            *('--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2'),
            *(f'{loader}.dataset.data_root={data}/ade' for loader in loaders),
            *(f'{loader}.batch_size=2' for loader in loaders),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'mIoU' in done.stdout + done.stderr
    assert (tmp_path / 'work' / 'iter_2.pth').exists()
