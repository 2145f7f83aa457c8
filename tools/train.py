"""Train a model: segmentation, detection or classification, as the config's default_scope says."""

import sys
from argparse import Namespace
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.runner import Runner

from mmvim.checkpoints.reading import read_checkpoint
from mmvim.cli.arguments import ToolParser
from mmvim.cli.prepare import build_runner, prepare, prepare_amp
from mmvim.cli.run_tool import run_tool
from mmvim.engine import NonFiniteLossHook
from mmvim.engine.resume.resumable import (
    check_resumable,
    latest_checkpoint,
    leave,
    make_resumable,
    resume_with_seed,
    use_atomic_checkpoints,
)
from mmvim.errors import UserError

FROM_WORK_DIR = 'auto'


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """The command line."""
    parser = ToolParser('Train a model.')
    parser.add_work_dir('logs and checkpoints')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision (on a GPU)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const=FROM_WORK_DIR,
        metavar='PATH',
        help='go on from this checkpoint; without PATH from the newest one in the work dir, '
        'or afresh where there is none',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by actual batch size / auto_scale_lr.base_batch_size',
    )
    parser.add_launcher()
    return parser.parse_args(argv)


def set_resume(cfg: Config, resume: str | None) -> None:
    """Find and check the checkpoint to go on from, if any."""
    start = cfg.get('load_from')
    cfg.resume = resume is not None or bool(cfg.get('resume'))
    path = start
    if cfg.resume:
        path = resume or start
        if path in (None, FROM_WORK_DIR):
            path = latest_checkpoint(cfg.work_dir)
        if path is None:
            begin = f'from the weights of {start}' if start else 'afresh'
            print(f'nothing to resume in {cfg.work_dir}: training starts {begin}')
            path, cfg.resume = start, False
    if path is None:
        return
    checkpoint = read_checkpoint(path)
    if cfg.resume:
        check_resumable(path, checkpoint)
        resume_with_seed(cfg, checkpoint['meta'])
    cfg.load_from = path


def build_resumable(cfg: Config) -> Runner:
    """The runner of the config, with our guards registered where the config has none."""
    use_atomic_checkpoints(cfg)
    runner = build_runner(cfg)
    if not any(isinstance(hook, NonFiniteLossHook) for hook in runner.hooks):
        runner.register_hook(NonFiniteLossHook())
    make_resumable(runner)
    return runner


def main(argv: Sequence[str] | None = None) -> None:
    """Check everything that can be checked first, then train."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    needs = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
    cfg, _ = prepare(args, 'training', *needs, splits=['train', 'val'])
    prepare_amp(cfg, args.amp)
    if args.auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise UserError(
                f'--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in {args.config}: '
                'the batch size, over all processes, that its learning rate is meant for'
            )
        cfg.auto_scale_lr.enable = True
    set_resume(cfg, args.resume)
    runner = build_resumable(cfg)
    try:
        runner.train()
    finally:
        leave(runner)


if __name__ == '__main__':
    sys.exit(run_tool(main))
