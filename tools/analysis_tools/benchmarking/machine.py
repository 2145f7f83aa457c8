"""What a measurement was made on: machine, versions, command, revision."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

from benchmarking.ceilings import sm_clocks
from mmvim_ops import available_backends
from mmvim_ops import loading as native

ROOT = Path(__file__).parents[3]
_PACKAGES = (
    'mmvim',
    'mamba-ssm',
    'causal-conv1d',
    'triton',
    'mmengine',
    'mmcv',
    'mmsegmentation',
    'mmpretrain',
    'timm',
)


def describe_machine(device: torch.device) -> dict[str, str]:
    """What the figures depend on, as far as it can be read here; name to value."""
    machine = {'cpu': _cpu_name(), 'cores': _cores()}
    machine['cpu features of torch'] = torch.backends.cpu.get_cpu_capability()
    if native.problem() is None:
        machine['instruction set of the native library'] = native.isa()
    with suppress(OSError):  # not every system counts
        machine['load before the run'] = f'{os.getloadavg()[0]:.2f}'
    if device.type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        machine['gpu'] = (
            f'{properties.name}, {properties.multi_processor_count} multiprocessors, '
            f'{properties.total_memory / 2**30:.0f} GiB'
        )
        clocks = sm_clocks(device)
        if clocks is not None:
            machine['gpu clock'] = f'{clocks[0]:.0f} MHz before the run, at most {clocks[1]:.0f}'
    machine['system'] = platform.platform(terse=True)
    return machine


def describe_versions() -> dict[str, str]:
    """Versions of everything that may have a part in the figures; name to version."""
    versions = {
        'python': platform.python_version(),
        'torch': str(torch.__version__),
        'float32 products': torch.get_float32_matmul_precision(),
    }
    if torch.version.cuda is not None:
        versions['cuda of torch'] = torch.version.cuda
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if native.problem() is None:
        built = native.info()
        texts = (f'{key} {built[key]}' for key in ('version', 'compiler', 'torch') if key in built)
        versions['native library'] = ', '.join(texts)
        if built.get('cuda'):
            versions['its CUDA kernels'] = (
                f'{" ".join(built["cuda"]["archs"])}, {built["cuda"]["nvcc"]}'
            )
    else:
        versions['native library'] = 'none'
    revision = git_revision()
    if revision is not None:
        versions['revision'] = revision
    return versions


def backend_notes() -> dict[str, str]:
    """Every backend that cannot run here, and why."""
    return {
        name: status.note for name, status in available_backends().items() if not status.available
    }


def command_line(script: str, argv: Sequence[str]) -> str:
    """What to type in the repository root for the same run."""
    variables = [
        f'{name}={shlex.quote(os.environ[name])}'
        for name in ('OMP_NUM_THREADS', 'MMVIM_CPU_ISA', 'CUDA_VISIBLE_DEVICES')
        if name in os.environ
    ]
    path = f'tools/analysis_tools/{Path(script).name}'
    return ' '.join([*variables, 'python', path, shlex.join(argv)]).rstrip()


def git_revision() -> str | None:
    """The commit the code is at, with '+' if files differ from it; None outside a repository."""

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(ROOT), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return result.stdout.strip()

    try:
        revision = git('rev-parse', '--short=10', 'HEAD')
        changed = git('status', '--porcelain', '--untracked-files=no')
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ('+' if changed else '')


def _cpu_name() -> str:
    try:
        text = Path('/proc/cpuinfo').read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r'^model name\s*:\s*(.+)$', text, re.MULTILINE)
    clock = re.search(r'^cpu MHz\s*:\s*([\d.]+)$', text, re.MULTILINE)
    words = [platform.machine() if name is None else name[1].strip()]
    words += [] if clock is None else [f'{float(clock[1]):.0f} MHz as the system reports it']
    return ', '.join(words)


def _cores() -> str:
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else total
    return str(total) if usable == total else f'{usable} of {total}'
