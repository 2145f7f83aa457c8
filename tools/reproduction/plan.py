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
from reproduction.tables import PLACES, ROOT, Row, rows, start

SPLITS = ('train', 'val', 'test')
_NEEDS = (
    *('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'),
    *('test_dataloader', 'test_evaluator', 'test_cfg'),
)
_LOADERS = [f'{split}_{part}' for split in SPLITS for part in ('dataloader', 'evaluator')]
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
        folder (Path): Work dirs ``train`` and ``test``.
        options (tuple[str, ...]): KEY=VALUE, what makes it this training on any machine.
        moved (tuple[str, ...]): KEY=VALUE, where its files are on this one.
        cfg (Config, optional): With both; None if it cannot be read.
        problem (str): Why it cannot run here; empty if it can.
    """

    row: Row
    seed: int
    folder: Path
    options: tuple[str, ...]
    moved: tuple[str, ...]
    cfg: Config | None
    problem: str


def plan(table: str, args: Namespace) -> list[Run]:
    """All trainings of a table that ``args`` ask for, checked one by one."""
    runs: list[Run] = []
    for row in rows(table):
        if row.name in args.rows:
            for seed in args.seeds or row.seeds:
                runs.append(_check(table, row, seed, args, runs))
    return runs


def batch(cfg: Config) -> int:
    """Images of a step over all processes, as the recipe has it."""
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    return int(base or cfg.train_dataloader.batch_size)


def _check(table: str, row: Row, seed: int, args: Namespace, earlier: Sequence[Run]) -> Run:
    folder = args.out / table / row.name / f'seed-{seed}'
    options, moved = [*row.options, f'randomness.seed={seed}'], []
    cfg, problem = None, ''
    try:
        cfg = load_config(str(row.config), _parsed(options))
        if row.after:
            options.append(start(_weights_of(table, row, seed, args, earlier), 'none'))
        share, rest = divmod(batch(cfg), args.processes)
        if rest:
            raise UserError(
                f'the {batch(cfg)} images of a step cannot be shared equally by {args.processes} '
                'GPUs: take another number of them'
            )
        if share != cfg.train_dataloader.batch_size:
            options.append(f'train_dataloader.batch_size={share}')
        moved = _moved(cfg, args.data_root)
        asked = Namespace(config=str(row.config), cfg_options=_parsed([*options, *moved]))
        cfg, _ = prepare(asked, 'reproducing it', *_NEEDS, splits=SPLITS)
        prepare_amp(cfg, False)
        other = difference(cfg, folder / 'train', TRAINING)
        if other:
            raise UserError(
                f'{folder / "train"} holds another training: {other}; move it away, or give '
                'another --out'
            )
    except UserError as error:
        problem = str(error)
    return Run(row, seed, folder, tuple(options), tuple(moved), cfg, problem)


def _parsed(options: Sequence[str]) -> dict[str, Any]:
    pairs = (option.partition('=') for option in options)
    return {key: parse_value(value) for key, _, value in pairs}


def _weights_of(table: str, row: Row, seed: int, args: Namespace, earlier: Sequence[Run]) -> Path:
    """The last checkpoint of the row that this one starts from, there already or still to come."""
    before = next(other for other in rows(table) if other.name == row.after)
    seeds = args.seeds or before.seeds
    seed = seed if seed in seeds else seeds[0]
    loop = load_config(str(before.config)).train_cfg
    last = f'iter_{loop.max_iters}' if loop.get('max_iters') else f'epoch_{loop.max_epochs}'
    path = args.out / table / before.name / f'seed-{seed}' / 'train' / f'{last}.pth'
    to_come = any(run.row == before and run.seed == seed and not run.problem for run in earlier)
    if not path.is_file() and not to_come:
        raise UserError(f'it starts from the weights of {before.name}, which cannot run here')
    return path


def leaves(node: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of all that is neither a dict nor a list."""
    entries: Any = ()
    if isinstance(node, Mapping):
        entries = node.items()
    elif isinstance(node, list | tuple):
        entries = enumerate(node)
    if not entries:
        yield key, node
    for name, value in entries:
        yield from leaves(value, f'{key}.{name}' if key else str(name))


def _read(cfg: Config) -> Iterator[tuple[str, str]]:
    """Keys and values of everything that may name a file: data, annotations, weights."""
    parts = {name: cfg.get(name) for name in (*_LOADERS, 'load_from', 'model')}
    return ((key, value) for key, value in leaves(parts) if isinstance(value, str))


def _moved(cfg: Config, roots: Mapping[str, str]) -> list[str]:
    """Options for what lies elsewhere.

    Raises:
        UserError: If something is not where it should be.
    """
    words = []
    for key, value in _read(cfg):
        for name, (root, source) in PLACES.items():
            if f'{value}/'.startswith(f'{root}/'):
                path = f'{roots.get(name, root)}{value[len(root) :]}'
                if not os.path.exists(path):
                    raise UserError(
                        f'{path} does not exist ({source}); if it is elsewhere, say so with '
                        f'--data-root {name}=PATH'
                    )
                if name in roots:
                    words.append(f'{key}={path}')
    return words


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
            return f'{key} is {other} there and {mine} in {os.path.relpath(cfg.filename, ROOT)}'
    return ''


def _comparable(cfg: Config, keys: Sequence[str]) -> dict[str, str]:
    """Values by dotted key, as text, without the folders that data and checkpoints lie in."""
    values = dict(leaves({key: cfg[key] for key in keys if cfg.get(key) is not None}))
    roots = [value for key, value in values.items() if key.endswith('data_root') and value]
    found = {}
    for key, value in values.items():
        name = key.rpartition('.')[2]
        if name == 'checkpoint':
            value = Path(str(value)).name
        elif isinstance(value, str):
            root = next((root for root in roots if value.startswith(root)), '')
            value = value.removeprefix(root).strip('/')
        if name not in _FREE and value not in (None, {}, [], ()):
            found[key] = str(value)
    return found
