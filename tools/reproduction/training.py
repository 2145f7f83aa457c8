"""One training and its test, each in a process of its own; what they left, read again."""

import functools
import json
import os
import re
import resource
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from demos import interruptible

from mmvim.atomic_files import write_atomically
from mmvim.checkpoints.reading import read_checkpoint
from mmvim.cli.result_table import named_metrics
from mmvim.engine.resume.resumable import latest_checkpoint
from reproduction.plan import TEST, Run, difference
from reproduction.tables import ROOT

OUT = 'work_dirs/reproduce'
_STAMP = re.compile(r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ', re.MULTILINE)
_SAVED = (130, 143)  # how a training ends that was told to, after saving


def words(tool: str, run: Run, args: Namespace, *files: str) -> list[str]:
    """The command of a training ('train') or of the test ('test') of a checkpoint."""
    tools, config = ROOT / 'tools', str(run.row.config)
    begin = [sys.executable, f'{tools}/{tool}.py', config, *files]
    if args.launcher:
        script = ['bash', f'{tools}/slurm_{tool}.sh', os.environ['PARTITION'], run.row.name]
        begin = [*script, config, *files]
    elif args.gpus:
        begin = ['bash', f'{tools}/dist_{tool}.sh', config, *files, str(args.gpus)]
    resume = ['--resume'] if tool == 'train' else []
    return [*begin, '--work-dir', str(run.folder / tool), *resume, '--cfg-options', *run.options]


def shown(command: Sequence[str], args: Namespace) -> str:
    """A command as it is on any machine."""
    text = shlex.join('python' if word == sys.executable else word for word in command)
    return text.replace(f'{ROOT}/', '').replace(str(args.out), OUT)


def finished(run: Run) -> str | None:
    """The last checkpoint of a training that has ended; None if there is more to do."""
    note = run.folder / 'train' / 'last_checkpoint'  # mmengine prints a line where there is none
    path = latest_checkpoint(str(note.parent)) if note.is_file() else None
    if path is None or run.cfg is None:
        return None
    epochs, steps = _progress(path, os.stat(path).st_mtime_ns)
    last = run.cfg.train_cfg.get('max_iters')
    return path if (steps >= last if last else epochs >= run.cfg.train_cfg.max_epochs) else None


@functools.cache
def _progress(path: str, time: int) -> tuple[int, int]:
    """Epochs and iterations of a checkpoint of that time."""
    meta = read_checkpoint(path)['meta']
    return meta['epoch'], meta['iter']


def train(run: Run, args: Namespace) -> None:
    """Train from where it was, and note what was spent."""
    fresh = dict(cpu_minutes=None if (run.folder / 'train').exists() else 0.0)
    held = (_spent(run) or fresh) | dict(gpus=args.processes * torch.cuda.is_available())
    # Unknown after a kill, which leaves no time to note it, and for Slurm's, which are no children.
    _note(run, held | dict(cpu_minutes=None))
    before = _processor_minutes()
    try:
        _run(words('train', run, args), run, args)
    finally:
        if held['cpu_minutes'] is not None and not args.launcher:
            held['cpu_minutes'] += _processor_minutes() - before
            _note(run, held)


def _note(run: Run, spent: dict[str, Any]) -> None:
    write_atomically(run.folder / 'spent.json', json.dumps(spent).encode())


def _spent(run: Run) -> dict[str, Any]:
    """Minutes of the processors over all interruptions, and GPUs; empty for others' trainings."""
    file = run.folder / 'spent.json'
    return json.loads(file.read_text()) if file.is_file() else {}


def _processor_minutes() -> float:
    """Of all processes that this one has waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 60


def test(run: Run, checkpoint: str, args: Namespace) -> bool:
    """Test, unless the very same was done since; whether it went well."""
    assert run.cfg is not None
    file = _tested(run)
    since = file is not None and file.stat().st_mtime >= os.stat(checkpoint).st_mtime
    if since and not difference(run.cfg, run.folder / 'test', TEST):
        return True
    return _run(words('test', run, args, checkpoint), run, args)


def _tested(run: Run) -> Path | None:
    """The metrics that mmengine wrote at the end of the last test."""
    return max((run.folder / 'test').glob('*/*.json'), default=None)


def _run(command: list[str], run: Run, args: Namespace) -> bool:
    print(f'\n$ {shown(command, args)}', flush=True)
    environment = {**os.environ, 'PYTHON': sys.executable}
    code = interruptible.run_apart([*command, *run.moved], env=environment)
    if code in _SAVED:
        interruptible.say()
        raise SystemExit(code)
    return code == 0


def result(run: Run, args: Namespace) -> dict[str, Any]:
    """What a finished and tested training gave, and what it took."""
    file, checkpoint, spent = _tested(run), finished(run), _spent(run)
    assert file is not None and checkpoint is not None
    given = json.loads(file.read_text())
    known = {name: value for name, value in named_metrics(given).items() if value >= 0}
    others = {key: value for key, value in given.items() if isinstance(value, float)}
    metrics = known or {key: others[key] for key in others if not key.endswith('time')}
    minutes = _wall_minutes(run.folder / 'train')
    return dict(
        seed=run.seed,
        metrics={name: round(value, 2) for name, value in metrics.items()},
        iterations=_progress(checkpoint, os.stat(checkpoint).st_mtime_ns)[1],
        minutes=round(minutes, 1),
        cpu_minutes=round(spent['cpu_minutes'], 1) if spent.get('cpu_minutes') else None,
        gpu_minutes=round(spent['gpus'] * minutes, 1) if spent.get('gpus') else None,
        command=shown(words('train', run, args), args),
    )


def _wall_minutes(work_dir: Path) -> float:
    """Of a training over all its interruptions, between first and last line of each log."""
    seconds = 0.0
    for log in work_dir.glob('*/*.log'):
        stamps = _STAMP.findall(log.read_text(errors='replace'))
        times = [datetime.strptime(stamp, '%Y/%m/%d %H:%M:%S') for stamp in stamps]
        seconds += (times[-1] - times[0]).total_seconds() if times else 0.0
    return seconds / 60


def draw(work_dirs: Sequence[str], out: Path) -> None:
    """Plot losses and metrics of trainings below ``out``, called as they are there."""
    tool = ROOT / 'tools' / 'analysis_tools' / 'plot_logs.py'
    command = [sys.executable, str(tool), *work_dirs, '--out', 'curves.png']
    interruptible.run_apart(command, cwd=out)
