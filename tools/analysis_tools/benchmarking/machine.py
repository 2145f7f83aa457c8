"""Circumstances of a measurement: machine, versions, command, revision."""

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
from mmvim_ops import available_backends, loading

ROOT = Path(__file__).parents[3]
_PACKAGES = (
    *('mmvim', 'mamba-ssm', 'causal-conv1d', 'triton'),
    *('mmengine', 'mmcv', 'mmsegmentation', 'mmpretrain', 'timm'),
)


def describe_machine(device: torch.device) -> dict[str, str]:
    """Properties of the machine that affect the figures; name to value."""
    machine = {'cpu': platform.processor() or platform.machine()}
    with suppress(OSError, StopIteration):
        text = Path('/proc/cpuinfo').read_text()
        machine['cpu'] = next(re.finditer(r'^model name\s*:\s*(.+)$', text, re.MULTILINE))[1]
        clock = next(re.finditer(r'^cpu MHz\s*:\s*([\d.]+)$', text, re.MULTILINE))[1]
        machine['cpu'] += f', {float(clock):.0f} MHz as the system reports it'
    machine['cores'] = str(os.cpu_count())
    if hasattr(os, 'sched_getaffinity') and len(os.sched_getaffinity(0)) != os.cpu_count():
        machine['cores'] = f'{len(os.sched_getaffinity(0))} of {machine["cores"]}'
    machine['cpu features of torch'] = torch.backends.cpu.get_cpu_capability()
    if loading.problem() is None:
        machine['instruction set of the native library'] = loading.isa()
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
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    versions['native library'] = 'none'
    if loading.problem() is None:
        built = loading.info()
        texts = (f'{key} {built[key]}' for key in ('version', 'compiler', 'torch') if key in built)
        versions['native library'] = ', '.join(texts)
        if built.get('cuda'):
            cuda = built['cuda']
            versions['its CUDA kernels'] = f'{" ".join(cuda["archs"])}, {cuda["nvcc"]}'
    with suppress(OSError, subprocess.SubprocessError):  # outside a repository
        versions['revision'] = _git('rev-parse', '--short=10', 'HEAD')
        versions['revision'] += '+' if _git('status', '--porcelain', '-uno') else ''
    return versions


def backend_notes() -> dict[str, str]:
    """Every backend that cannot run here, and why."""
    return {
        name: status.note for name, status in available_backends().items() if not status.available
    }


def command_line(script: str, argv: Sequence[str]) -> str:
    """The command that repeats the run in the repository root."""
    variables = [
        f'{name}={shlex.quote(os.environ[name])}'
        for name in ('OMP_NUM_THREADS', 'MMVIM_CPU_ISA', 'CUDA_VISIBLE_DEVICES')
        if name in os.environ
    ]
    path = f'tools/analysis_tools/{Path(script).name}'
    return ' '.join([*variables, 'python', path, shlex.join(argv)]).rstrip()


def _git(*arguments: str) -> str:
    command = ['git', '-C', str(ROOT), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return result.stdout.strip()
