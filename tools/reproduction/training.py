"""One training and its test, each in a process of its own; what they left, read again."""

import functools
import json
import os
import re
import resource
import runpy
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
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
    """The command of a training ('train') or a test ('test').

    Args:
        tool (str): Which.
        run (Run): Of what.
        args (Namespace): Who starts its processes.
        *files (str): The checkpoint of a test.
    """
    tools, config = ROOT / 'tools', str(run.row.config)
    if args.launcher:
        begin = ['bash', f'{tools}/slurm_{tool}.sh', os.environ['PARTITION'], run.row.name]
        begin += [config, *files]
    elif args.gpus:
        begin = ['bash', f'{tools}/dist_{tool}.sh', config, *files, str(args.gpus)]
    else:
        begin = [sys.executable, f'{tools}/{tool}.py', config, *files]
    begin += ['--work-dir', str(run.folder / tool), *(['--resume'] if tool == 'train' else [])]
    return [*begin, '--cfg-options', *run.options]


def shown(command: list[str], args: Namespace) -> str:
    """The command as it is on any machine."""
    texts = [word if word != sys.executable else 'python' for word in command]
    quoted = [word if re.fullmatch(r'[\w./=:-]+', word) else f'"{word}"' for word in texts]
    return ' '.join(quoted).replace(f'{ROOT}/', '').replace(str(args.out), OUT)


def finished(run: Run) -> str | None:
    """The last checkpoint of a training that has ended; None if there is more to do."""
    path = _newest(run)
    if path is None or run.cfg is None:
        return None
    epochs, steps = _progress(path, os.stat(path).st_mtime_ns)
    last = run.cfg.train_cfg.get('max_iters')
    return path if (steps >= last if last else epochs >= run.cfg.train_cfg.max_epochs) else None


def _newest(run: Run) -> str | None:
    note = run.folder / 'train' / 'last_checkpoint'  # mmengine prints a line where there is none
    return latest_checkpoint(str(note.parent)) if note.is_file() else None


@functools.cache
def _progress(path: str, time: int) -> tuple[int, int]:
    """Epochs and iterations of a checkpoint of that time."""
    meta = read_checkpoint(path)['meta']
    return meta['epoch'], meta['iter']


def train(run: Run, args: Namespace) -> bool:
    """Train from where it was; note the time of the processors. Whether it went well."""
    record = run.folder / 'processors.json'
    begun = _newest(run) is not None
    held = json.loads(record.read_text()) if record.is_file() else {}
    # Unknown for what was trained elsewhere, and after a kill, which leaves no time to note it.
    known = held.get('noted', not begun)
    held = dict(noted=False, cpu_minutes=held.get('cpu_minutes', 0.0), gpus=_gpus(args))
    write_atomically(record, json.dumps(held).encode())
    before = _processor_time()
    try:
        return _run(words('train', run, args), run, args)
    finally:
        held['cpu_minutes'] += (_processor_time() - before) / 60
        held['noted'] = known and not args.launcher  # Slurm's processes are no children
        write_atomically(record, json.dumps(held).encode())


def test(run: Run, checkpoint: str, args: Namespace) -> bool:
    """Test, unless the very same was done since. Whether it went well."""
    file = tested(run)
    assert run.cfg is not None
    same = file is not None and not difference(run.cfg, run.folder / 'test', TEST)
    if file is not None and same and file.stat().st_mtime >= os.stat(checkpoint).st_mtime:
        return True
    return _run(words('test', run, args, checkpoint), run, args)


def tested(run: Run) -> Path | None:
    """The metrics that mmengine wrote at the end of the last test."""
    files = sorted((run.folder / 'test').glob('*/*.json'))
    return files[-1] if files else None


def result(run: Run, args: Namespace) -> dict[str, Any]:
    """What a finished and tested training gave, and what it took."""
    file, checkpoint = tested(run), finished(run)
    assert file is not None and checkpoint is not None
    record = run.folder / 'processors.json'
    held = json.loads(record.read_text()) if record.is_file() else {}
    minutes = _wall_minutes(run.folder / 'train')
    return dict(
        seed=run.seed,
        metrics={name: round(value, 2) for name, value in _metrics(file).items()},
        iterations=_progress(checkpoint, os.stat(checkpoint).st_mtime_ns)[1],
        minutes=round(minutes, 1),
        cpu_minutes=round(held['cpu_minutes'], 1) if held.get('noted') else None,
        gpu_minutes=round(minutes * held['gpus'], 1) if held.get('gpus') else None,
        command=shown(words('train', run, args), args),
    )


def _metrics(file: Path) -> Mapping[str, float]:
    metrics = json.loads(file.read_text())
    known = {name: value for name, value in named_metrics(metrics).items() if value >= 0}
    others = {key: value for key, value in metrics.items() if isinstance(value, float)}
    return known or {key: value for key, value in others.items() if not key.endswith('time')}


def _wall_minutes(work_dir: Path) -> float:
    """Of a training over all its interruptions, between first and last line of each log."""
    seconds = 0.0
    for log in work_dir.glob('*/*.log'):
        stamps = _STAMP.findall(log.read_text(errors='replace'))
        times = [datetime.strptime(stamp, '%Y/%m/%d %H:%M:%S') for stamp in stamps]
        seconds += (times[-1] - times[0]).total_seconds() if times else 0.0
    return seconds / 60


def _gpus(args: Namespace) -> int:
    return args.processes if torch.cuda.is_available() or args.launcher else 0


def _processor_time() -> float:
    """Seconds of all processes that this one has waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(command: list[str], run: Run, args: Namespace) -> bool:
    print(f'\n$ {shown(command, args)}', flush=True)
    code = interruptible.run_apart(
        [*command, *run.moved], env={**os.environ, 'PYTHON': sys.executable}
    )
    if code in _SAVED:
        interruptible.say()
        raise SystemExit(code)
    return code == 0


def draw(work_dirs: Sequence[str], file: Path) -> None:
    """Plot losses and metrics of trainings."""
    tool = ROOT / 'tools' / 'analysis_tools' / 'plot_logs.py'
    runpy.run_path(str(tool))['main']([*work_dirs, '--out', str(file)])
