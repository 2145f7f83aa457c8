"""Several processes, and several steps per update, train what one large batch trains."""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import forked
import numpy as np
import pytest
import torch
import torch.distributed as torch_dist
from mmengine.config import Config
from repository import TOOLS
from torch.distributed.fsdp import FullyShardedDataParallel

from mmvim.engine.cpu_processes import join_processes
from mmvim.errors import UserError

pytest.importorskip('mmseg')
ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason='gloo is for machines without a GPU')

# Plain SGD, whose steps show a gradient's error as it is: Adam's first steps are signs.
CONFIG = """
default_scope = 'mmseg'
custom_imports = dict(imports=['mmvim'])
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
dataset = dict(
    type='BaseSegDataset', data_root='scenes', img_suffix='.png', pipeline=pipeline,
    metainfo=dict(classes=('sky', 'sea', 'sand'), palette=[[0, 0, 255], [0, 255, 0], [255, 0, 0]]),
    data_prefix=dict(img_path='images', seg_map_path='labels'))
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        dataset, pipeline=[*pipeline[:2], dict(type='RandomFlip', prob=0.5), pipeline[2]]))
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dataset)
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.0] * 3, std=[60.0] * 3, size=(32, 32)),
    backbone=dict(
        type='mmvim.VisionMamba', arch=dict(embed_dims=16, num_layers=2, d_state=4), img_size=32,
        patch_size=8, cls_token='none'),
    decode_head=dict(
        type='SegmenterMaskTransformerHead', in_channels=16, channels=16, embed_dims=16,
        num_layers=2, num_heads=2, drop_path_rate=0.0, dropout_ratio=0.0, num_classes=3,
        loss_decode=dict(type='CrossEntropyLoss')),
    test_cfg=dict(mode='whole'))
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
    constructor='mmvim.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4)
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1))
env_cfg = dict(dist_cfg=dict(backend='gloo'))
randomness = dict(seed=0)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The config file beside eight scenes."""
    folder = tmp_path_factory.mktemp('processes')
    generator = np.random.default_rng(0)
    for name in ('images', 'labels'):
        (folder / 'scenes' / name).mkdir(parents=True)
    for i in range(8):
        label = generator.integers(0, 3, (4, 4), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        image = 80 * label[..., None] + generator.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'scenes/images/{i}.png'), image)
        cv2.imwrite(str(folder / f'scenes/labels/{i}.png'), label)
    (folder / 'config.py').write_text(CONFIG)
    return folder


@pytest.fixture
def config(folder, monkeypatch):
    """The config file; the test runs in its folder."""
    monkeypatch.chdir(folder)
    return folder / 'config.py'


@pytest.fixture(scope='module')
def large(folder):
    """Weights after four steps with the whole batch in one process."""
    return trained(folder, 'large', 4)


def launch(script, *arguments):
    """Run one of the shell scripts with a free port, and so torchrun, which starts Python anew."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    environment = os.environ | dict(PORT=port, PYTHON=sys.executable, OMP_NUM_THREADS='1')
    done = subprocess.run(
        [TOOLS / script, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def ran_together(script, *arguments):
    """What a tool prints in two processes."""
    ranks = forked.start_ranks(2, script, *arguments, '--launcher', 'pytorch')
    done = [rank.wait() for rank in ranks]
    assert [each.returncode for each in done] == [0, 0], done[0].stderr[-3000:]
    return ''.join(each.stdout + each.stderr for each in done)


def weights(folder, iteration=4):
    return torch.load(Path(folder) / f'iter_{iteration}.pth', weights_only=False)['state_dict']


def trained(folder, name, iterations, *options):
    """Weights after training in a process of its own.

    mmcv's MultiheadAttention writes the dropout it is given into the default of its signature, so
    that any DETR-type model built before, by another test, would put dropout into this one.
    """
    options = ('--cfg-options', f'train_cfg.max_iters={iterations}', *options)
    done = forked.run(TOOLS / 'train.py', 'config.py', '--work-dir', name, *options, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return weights(folder / name, iterations)


def largest_difference(one, other):
    """Over all parameters."""
    assert one.keys() == other.keys()
    return max((one[key].double() - other[key].double()).abs().max().item() for key in one)


def test_accumulated_gradients_are_those_of_the_large_batch(folder, large):
    small = trained(
        *(folder, 'small', 8),
        *('train_dataloader.batch_size=2', 'optim_wrapper.accumulative_counts=2'),
    )
    assert largest_difference(large, weights(folder / 'large', 1)) > 0.1
    assert largest_difference(large, small) < 2e-6


@ON_CPU
def test_two_processes_train_what_one_trains_with_the_double_batch(config, large):
    launch(
        *('dist_train.sh', config, 2, '--work-dir', 'two'),
        *('--cfg-options', 'train_dataloader.batch_size=2'),
    )
    assert largest_difference(large, weights('two')) < 2e-6
    # And they test what one tests.
    test = runpy.run_path(str(TOOLS / 'test.py'))['main']
    alone = test([str(config), 'two/iter_4.pth', '--work-dir', 'alone'])
    log = ran_together(TOOLS / 'test.py', config, 'two/iter_4.pth', '--work-dir', 'both')
    assert f'mIoU: {alone["mIoU"]:.4f}' in log
    for work_dir in ('two', 'both'):
        (log,) = Path(work_dir).glob('*/*.log')
        assert 'Distributed training: True' in log.read_text()


# Trains, and says at the end of the process which threads are left.
THREADS = f"""
import atexit, glob, runpy
from pathlib import Path
tasks = '/proc/self/task/*/comm'
atexit.register(lambda: print('left:', *{{Path(f).read_text().strip() for f in glob.glob(tasks)}}))
runpy.run_path({str(TOOLS / 'train.py')!r}, run_name='__main__')
"""


@ON_CPU
@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='threads are found in /proc')
def test_sync_bn_becomes_bn_and_the_group_ends_before_python_does(config):
    """A thread of it that needs the interpreter while that is ending aborts the process."""
    text = config.read_text()
    head = """
    decode_head=dict(
        type='FCNHead', in_channels=16, channels=8, num_convs=1, num_classes=3,
        norm_cfg=dict(type='SyncBN'), loss_decode=dict(type='CrossEntropyLoss')),
    test_cfg"""
    start, end = text.index('    decode_head'), text.index('    test_cfg')
    Path('sync_bn.py').write_text(text[:start] + head + text[end + len('    test_cfg') :])
    options = ('--work-dir', 'sync_bn', '--cfg-options', 'train_cfg.max_iters=1')
    log = ran_together(THREADS, 'sync_bn.py', *options)
    assert log.count('SyncBN cannot run in several processes on the CPU') == 1
    assert Path('sync_bn', 'iter_1.pth').exists()
    left = [line for line in log.splitlines() if 'left:' in line]
    assert len(left) == 2 and all('python' in line and 'gloo' not in line for line in left)


@ON_CPU
def test_fsdp_needs_an_accelerator():
    """What docs/tools.md says; where this fails, FSDP can be tried without a GPU."""
    torch_dist.init_process_group('gloo', store=torch_dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match='non-CPU accelerator'):
            FullyShardedDataParallel(torch.nn.Linear(1, 1))
    finally:
        torch_dist.destroy_process_group()


def test_other_launchers_are_for_gpus(monkeypatch):
    monkeypatch.setattr('mmvim.engine.cpu_processes.has_amp_accelerator', lambda: False)
    with pytest.raises(UserError, match='with torchrun, --launcher pytorch'):
        join_processes(Config(), 'slurm')
    join_processes(Config(), 'none')


@pytest.mark.parametrize(
    'script, arguments, missing',
    [
        ('dist_train.sh', ['CONFIG', '4'], 'CONFIG GPUS'),
        ('dist_test.sh', ['CONFIG', 'WEIGHTS', '4'], 'CONFIG CHECKPOINT GPUS'),
        ('slurm_train.sh', ['part', 'name', 'CONFIG'], 'PARTITION JOB_NAME CONFIG'),
        ('slurm_test.sh', ['part', 'name', 'CONFIG', 'WEIGHTS'], 'JOB_NAME CONFIG CHECKPOINT'),
    ],
)
def test_scripts_pass_on_what_they_are_given(script, arguments, missing, tmp_path):
    """With a stand-in for Python and srun that prints its arguments, one per line."""
    echo = tmp_path / 'srun'
    echo.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)

    def run(*given, **variables):
        path = f'{tmp_path}:{os.environ["PATH"]}'
        environment = os.environ | dict(PATH=path, PYTHON=str(echo)) | variables
        command = [TOOLS / script, *given]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    short = run(*arguments[:-1])
    assert short.returncode == 2 and short.stdout == ''
    assert missing in short.stderr

    variables = dict(NNODES='4', NODE_RANK='3', MASTER_ADDR='head', PORT='4711')
    variables |= dict(GPUS='32', SRUN_ARGS='--time=1 --exclusive', CPUS_PER_TASK='6')
    rest = ['--work-dir', 'a b', '--cfg-options', 'x=1']
    lines = run(*arguments, *rest, **variables).stdout.splitlines()
    launcher = 'slurm' if script.startswith('slurm') else 'pytorch'
    tool = TOOLS / f'{script.rpartition("_")[2].removesuffix(".sh")}.py'
    named = [argument for argument in arguments if argument.isupper()]
    assert lines[-len(rest) - len(named) - 3 :] == [
        str(tool),
        *named,
        '--launcher',
        launcher,
        *rest,
    ]
    if launcher == 'pytorch':
        assert lines[:7] == [
            *('-m', 'torch.distributed.run', '--nnodes=4', '--node_rank=3'),
            *('--master_addr=head', '--master_port=4711', '--nproc_per_node=4'),
        ]
    else:
        assert {'--partition=part', '--job-name=name', '--ntasks=32', '--gres=gpu:8'} < {*lines}
        assert {'--ntasks-per-node=8', '--cpus-per-task=6', '--time=1', '--exclusive'} < {*lines}
