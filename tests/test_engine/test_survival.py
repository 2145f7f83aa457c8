"""A real run of ``tools/train.py``, killed again and again, ends where the unbroken one does."""

import json
import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import kill_task
import numpy as np
import pytest
from PIL import Image
from repository import TOOLS

pytest.importorskip('mmseg')
ITERATIONS, KILLS = 24, 20

CONFIG = """
custom_imports = dict(imports=['mmvim', 'kill_task'], allow_failed_imports=False)
default_scope = 'mmseg'
norm_cfg = dict(type='BN', requires_grad=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(40, 32), ratio_range=(0.8, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(32, 32), cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
val_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
dataset = dict(
    type='BaseSegDataset', data_root='scenes', img_suffix='.png',
    metainfo=dict(classes=('sky', 'sea', 'sand'), palette=[[0, 0, 255], [0, 255, 0], [255, 0, 0]]),
    data_prefix=dict(img_path='images', seg_map_path='labels'), pipeline=train_pipeline)
train_dataloader = dict(
    batch_size=2, num_workers=2, persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True), dataset=dataset)
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, pipeline=val_pipeline, indices=2))
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
head = dict(
    num_classes=3, norm_cfg=norm_cfg, dropout_ratio=0.3, align_corners=False,
    loss_decode=dict(type='CrossEntropyLoss'))
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.0] * 3, std=[60.0] * 3, bgr_to_rgb=True,
        pad_val=0, seg_pad_val=255, size=(32, 32), test_cfg=dict(size_divisor=32)),
    backbone=dict(
        type='mmvim.VisionMamba', arch=dict(embed_dims=16, num_layers=4, d_state=2), img_size=32,
        patch_size=8, cls_token='none', out_norm='none', out_indices=[0, 1, 2, 3],
        drop_path_rate=0.4),
    neck=dict(type='Feature2Pyramid', embed_dim=16, rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(
        type='UPerHead', in_channels=[16] * 4, in_index=[0, 1, 2, 3], pool_scales=(1, 2),
        channels=16, **head),
    test_cfg=dict(mode='whole'))
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2), clip_grad=dict(max_norm=1.0))
param_scheduler = [dict(type='PolyLR', power=1.0, begin=0, end=24, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=24, val_interval=8)
val_cfg = dict(type='ValLoop')
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=4, log_metric_by_epoch=False),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1, save_best='mIoU'))
custom_hooks = [dict(type='KillHook')]
randomness = dict(seed=0)
"""


def write_scenes(root: Path) -> None:
    """Ten pictures of noise in three colours, and where the colours are."""
    generator = np.random.default_rng(0)
    for folder in ('images', 'labels'):
        (root / folder).mkdir(parents=True)
    for index in range(10):
        label = generator.integers(0, 3, (4, 5)).repeat(8, axis=0).repeat(8, axis=1)
        image = 60 * label[..., None] + generator.integers(0, 80, (32, 40, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / 'images' / f'{index}.png')
        Image.fromarray(label.astype(np.uint8)).save(root / 'labels' / f'{index}.png')


def run(folder: Path, work_dir: str, plan: dict[str, Any] | None = None, *more: str) -> int:
    """The exit code of ``tools/train.py``; its log goes to ``<work_dir>.log``."""
    environment = {**os.environ, kill_task.VARIABLE: json.dumps(plan or {})}
    arguments = ('config.py', '--work-dir', work_dir, *more)
    done = forked.run(TOOLS / 'train.py', *arguments, cwd=folder, env=environment)
    with open(folder / f'{work_dir}.log', 'a') as log:
        log.write(done.stdout + done.stderr)
    return done.returncode


def moments() -> list[dict[str, Any]]:
    """When to kill: spread over the run, at each stage of saving and at random."""
    generator = random.Random(0)
    stages = ['delay', 'write', 'delay', 'rename', 'delay', 'note', 'delay', 'removal']
    last = ITERATIONS - 4  # so that what is to be killed is still running
    return [
        dict(
            at=1 + (last - 1) * number // KILLS,
            where=stages[number % len(stages)],
            seconds=generator.uniform(0, 0.2),
        )
        for number in range(KILLS)
    ]


@pytest.mark.slow
def test_killed_at_twenty_points(tmp_path: Path, same_state: Callable[[Path, Path], bool]) -> None:
    write_scenes(tmp_path / 'scenes')
    (tmp_path / 'config.py').write_text(CONFIG)
    assert run(tmp_path, 'whole') == 0, (tmp_path / 'whole.log').read_text()[-3000:]
    for plan in moments():
        code = run(tmp_path, 'broken', plan, '--resume')
        assert code == -signal.SIGKILL, (plan, (tmp_path / 'broken.log').read_text()[-3000:])
    assert run(tmp_path, 'broken', None, '--resume') == 0
    name = f'iter_{ITERATIONS}.pth'
    assert same_state(tmp_path / 'whole' / name, tmp_path / 'broken' / name)
    for work_dir in (tmp_path / 'whole', tmp_path / 'broken'):
        assert sorted(path.name for path in work_dir.glob('iter_*')) == [name]
        assert not list(work_dir.glob('.*.partial'))
    # Each was resumed from where the one before had got to.
    resumed = re.findall(r'resumed epoch: 0, iter: (\d+)', (tmp_path / 'broken.log').read_text())
    assert len(set(resumed)) > 5 and resumed == sorted(resumed, key=int)
