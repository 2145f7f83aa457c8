"""A demo on few images: python tiny_demo.py DEMO [ARGUMENTS], in a folder with data/patterns."""

import functools
import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / 'tools' / 'demos'))
import interruptible

print('imports begin', flush=True)

# ruff: noqa: E402
import common
from mmengine.config import Config

from mmvim.cli.run_tool import run_tool


@functools.cache
def small(path: str) -> str:
    """Write the config with less to do, and a log of every iteration."""
    cfg = Config.fromfile(common.ROOT / path)
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].update(batch_size=2)
    cfg.train_cfg.max_iters = int(os.environ.get('ITERATIONS', cfg.train_cfg.max_iters))
    cfg.train_cfg.val_interval = cfg.train_cfg.max_iters
    cfg.default_hooks.logger.interval = 1
    if 'init_cfg' in cfg.model.backbone:
        cfg.model.backbone.pop('init_cfg')
    cfg.dump(Path(path).name)
    return str(Path(path).absolute().parents[2] / Path(path).name)


demo = importlib.import_module(sys.argv[1])
common.begin = demo.begin = interruptible.hold
for owner in {demo, sys.modules.get('segmentation', demo)}:
    for name in ('CONFIG', 'SMALL'):
        if hasattr(owner, name):
            setattr(owner, name, small(getattr(owner, name)))
    for name, path in getattr(owner, 'CONFIGS', {}).items():
        owner.CONFIGS[name] = small(path)
    if hasattr(owner, 'ROWS'):
        owner.ROWS = [row._replace(small=small(row.small)) for row in owner.ROWS]
sys.exit(run_tool(demo.main, sys.argv[2:]))
