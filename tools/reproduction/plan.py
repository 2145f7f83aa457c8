"""What will be trained: every row with its seeds, checked before the first one starts."""

import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from mmvim.cli.arguments import parse_value
from mmvim.cli.config import load_config
from mmvim.cli.prepare import prepare, prepare_amp
from mmvim.errors import UserError
from reproduction.tables import PLACES, TABLES, Row, rows, start

_NEEDS = (
    *('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'),
    *('test_dataloader', 'test_evaluator', 'test_cfg'),
)
# What may name files.
_READ = (
    *('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator'),
    *('load_from', 'model'),
)
# What the weights at the end of a training depend on, and what the metrics of a test do.
TRAINING = (
    *('model', 'data_preprocessor', 'train_dataloader', 'optim_wrapper', 'param_scheduler'),
    *('train_cfg', 'custom_hooks', 'randomness', 'default_scope'),
)
TEST = ('model', 'data_preprocessor', 'test_dataloader', 'test_evaluator', 'test_cfg')
# Speed, not results; and when a training is validated.
_FREE = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor', 'val_interval')


class Run(NamedTuple):
    """One training of a row.

    Attributes:
        row (Row): The row.
        seed (int): Its seed.
        folder (Path): Of the work dirs ``train`` and ``test``.
        options (tuple[str, ...]): KEY=VALUE, what makes it this training on any machine.
        moved (tuple[str, ...]): KEY=VALUE, where its files are on this one.
        cfg (Config, optional): None if it cannot be read.
        images (int): Of all its steps.
        problem (str): Why it cannot run here; empty if it can.
    """

    row: Row
    seed: int
    folder: Path
    options: tuple[str, ...]
    moved: tuple[str, ...]
    cfg: Config | None
    images: int
    problem: str


def plan(table: str, args: Namespace) -> list[Run]:
    """All trainings of a table that ``args`` ask for, checked one by one."""
    runs: list[Run] = []
    for row in rows(table):
        if row.name in args.rows:
            for seed in args.seeds or row.seeds:
                runs.append(_check(table, row, seed, args, runs))
    return runs


def _check(table: str, row: Row, seed: int, args: Namespace, earlier: Sequence[Run]) -> Run:
    folder = args.out / table / row.name / f'seed-{seed}'
    options, moved = [*row.options, f'randomness.seed={seed}'], []
    cfg, images, problem = None, 0, ''
    try:
        cfg = load_config(str(row.config), _parsed(options))
        loop, base = cfg.train_cfg, (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
        batch = base or cfg.train_dataloader.batch_size
        images = loop.get('max_iters', 0) * batch or loop['max_epochs'] * TABLES[table].epoch
        if row.after:
            options.append(start(_weights(row, seed, earlier), 'none'))
        if batch % args.processes:
            raise UserError(
                f'{args.processes} GPUs cannot share the {batch} images of a step equally: take '
                'another number'
            )
        if batch // args.processes != cfg.train_dataloader.batch_size:
            options.append(f'train_dataloader.batch_size={batch // args.processes}')
        moved = _moved(cfg, args.data_root)
        asked = Namespace(config=str(row.config), cfg_options=_parsed([*options, *moved]))
        cfg, _ = prepare(asked, 'reproducing it', *_NEEDS, splits=['train', 'val', 'test'])
        prepare_amp(cfg, False)
        begun = (folder / 'train' / 'last_checkpoint').is_file()
        other = difference(cfg, folder / 'train', TRAINING) if begun else ''
        if other:
            raise UserError(
                f'{folder / "train"} holds another training: {other}; move it away, or give '
                'another --out'
            )
    except UserError as error:
        problem = str(error)
    return Run(row, seed, folder, tuple(options), tuple(moved), cfg, images, problem)


def _parsed(options: Sequence[str]) -> dict[str, Any]:
    pairs = (option.partition('=') for option in options)
    return {key: parse_value(value) for key, _, value in pairs}


def _weights(row: Row, seed: int, earlier: Sequence[Run]) -> Path:
    """The last checkpoint of the row that this one starts from, there already or still to come."""
    found = [run for run in earlier if run.row.name == row.after and not run.problem]
    if not found:
        raise UserError(f'it starts from the weights of {row.after}, which does not run')
    run = next((run for run in found if run.seed == seed), found[0])
    assert run.cfg is not None
    loop = run.cfg.train_cfg
    last = f'iter_{loop.max_iters}' if loop.get('max_iters') else f'epoch_{loop.max_epochs}'
    return run.folder / 'train' / f'{last}.pth'


def _moved(cfg: Config, roots: Mapping[str, str]) -> list[str]:
    """Options for what lies elsewhere.

    Raises:
        UserError: If something is not where it should be.
    """
    words = []
    for key, value in leaves({name: cfg.get(name) for name in _READ}):
        for name, (root, source) in PLACES.items():
            if isinstance(value, str) and f'{value}/'.startswith(f'{root}/'):
                path = roots.get(name, root) + value.removeprefix(root)
                if not os.path.exists(path):
                    raise UserError(
                        f'{path} does not exist ({source}); if it is elsewhere, say so with '
                        f'--data-root {name}=PATH'
                    )
                words += [f'{key}={path}'] if name in roots else []
    return words


def leaves(node: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of all that holds nothing else."""
    entries: Any = enumerate(node) if isinstance(node, list | tuple) else ()
    entries = list(node.items() if isinstance(node, Mapping) else entries)
    if not entries:
        yield key, node
    for name, value in entries:
        yield from leaves(value, f'{key}.{name}' if key else str(name))


def difference(cfg: Config, work_dir: Path, keys: Sequence[str]) -> str:
    """How a config differs from the one that a run in ``work_dir`` wrote there.

    Args:
        cfg (Config): As the tools prepare it.
        work_dir (Path): Of a training or a test, which may be missing.
        keys (Sequence[str]): What is compared: places of data, of checkpoints and speed apart.

    Returns:
        str: The first difference; empty if there is none, or no run.
    """
    file = work_dir / Path(cfg.filename).name
    if not file.is_file():
        return ''
    ours, theirs = (_comparable(one, keys) for one in (cfg, Config.fromfile(file)))
    for key in sorted({*ours, *theirs}):
        mine, other = (side.get(key, 'not set') for side in (ours, theirs))
        if mine != other:
            return f'{key} is {other} there and {mine} in {Path(cfg.filename).name}'
    return ''


def _comparable(cfg: Config, keys: Sequence[str]) -> dict[str, str]:
    """Values by dotted key, as text, without the folders that data and checkpoints lie in."""
    values = dict(leaves({key: cfg.get(key) for key in keys}))
    roots = [value for key, value in values.items() if key.endswith('data_root') and value]
    found = {}
    for key, value in values.items():
        name, text = key.rpartition('.')[2], str(value)
        root = next((root for root in roots if text.startswith(root)), '')
        text = Path(text).name if name == 'checkpoint' else text.removeprefix(root).strip('/')
        if name not in _FREE and value not in (None, {}, [], ()):
            found[key] = text
    return found
