"""Configs of ours run under our tool and under mmpretrain's own, sampler and average included."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip('mmpretrain')

from forked import run
from repository import TOOLS, load_config
from scaled_down_classification import shrink, write_images

pytestmark = pytest.mark.stack
THEIRS = Path(importlib.util.find_spec('mmpretrain').origin).parent / '.mim' / 'tools' / 'train.py'


@pytest.mark.parametrize(
    'tool, name',
    [(TOOLS / 'train.py', 'vim-tiny'), (THEIRS, 'vim-tiny-max-pool')],
    ids=['ours', 'theirs'],
)
def test_trains_an_epoch(tool, name, tmp_path):
    if not tool.exists():
        pytest.skip('this mmpretrain ships no tools')
    cfg = load_config(f'vim/{name}_8xb128-300e_in1k.py')
    shrink(cfg, tmp_path)
    write_images(cfg)
    cfg.default_hooks.logger.interval = 1
    cfg.train_cfg.val_begin = 1
    cfg.dump(tmp_path / 'config.py')
    done = run(tool, tmp_path / 'config.py', '--work-dir', tmp_path / 'work', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    output = done.stdout + done.stderr
    assert 'Epoch(train)' in output and 'loss: ' in output and 'accuracy/top1' in output
    assert (tmp_path / 'work' / 'epoch_1.pth').is_file()
