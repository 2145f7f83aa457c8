"""Compiles ``ops/csrc`` into one native library. Needs the standard library and torch's headers.

setup.py runs it; ``python ops/build.py`` builds in place. It is no Python extension module, and
it uses torch's stable ABI alone, so that one file serves every Python and every torch since
2.10. torch's own ``BuildExtension`` does not fit: it knows no flags of a single file, links
libtorch_python, refuses a CUDA other than torch's and asks the GPU what to compile.

Beside the library lies a sidecar in JSON that says what was built, or why nothing was.
docs/ops.md lists the environment variables.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ['BuildError', 'build', 'build_if_possible', 'source_files', 'sources_digest']

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'ops' / 'mmvim_ops'
WORK = ROOT / 'build' / 'native'

# Run, not imported: importing the package would import torch.
_SHARED = runpy.run_path(str(PACKAGE / 'library_file.py'))
INTERFACE: int = _SHARED['INTERFACE']
LIBRARY: str = _SHARED['LIBRARY']
SIDECAR: str = _SHARED['SIDECAR']
OLDEST_TORCH: tuple[int, int] = _SHARED['OLDEST_TORCH']
OLDEST_CAPABILITY: tuple[int, int] = _SHARED['OLDEST_CAPABILITY']
PURE_PYTHON: str = _SHARED['PURE_PYTHON']
SOURCES: Path = _SHARED['SOURCES']
source_files, sources_digest = _SHARED['source_files'], _SHARED['sources_digest']

_COMMON_FLAGS = ('-O3', '-std=c++17', '-DTORCH_TARGET_VERSION=0x020a000000000000')
_HOST_FLAGS = ('-fPIC', '-fvisibility=hidden')
_CXX_FLAGS = (*_HOST_FLAGS, '-fno-math-errno', '-Wall', '-Wextra')
# Translation units for instructions that only some processors have, by the compiler's target.
_ISA_UNITS: dict[str, tuple[str | tuple[str, ...], tuple[str, ...]]] = {
    'avx512.cpp': ('x86_64', ('-mavx512f', '-mavx512dq', '-mavx512bw', '-mavx512vl', '-mfma')),
    'avx2.cpp': ('x86_64', ('-mavx2', '-mfma')),
    'neon.cpp': (('aarch64', 'arm64'), ()),
}
# Their cubins run on every later minor version of the same major one.
_CUDA_ARCHS = ('8.0', '9.0', '10.0', '12.0')
# What ptxas says of a kernel: its name, architecture, bytes of spill stores and loads, registers.
_PTXAS = (
    r"(?s)Compiling entry function '(\S+)' for '(\w+)'.*?"
    r'(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers'
)
_LAST_LINES = 20
EXACT_DECAYS = 'MMVIM_EXACT_DECAYS'  # the variable, and the macro of csrc/cuda/portable.h


class BuildError(RuntimeError):
    """The reason for which there is no native library."""


class _Torch(NamedTuple):
    version: str
    root: Path
    cuda: str | None  # the version it was built for

    def include_flags(self) -> tuple[str, ...]:
        headers = self.root / 'include'
        folders = (headers, headers / 'torch' / 'csrc' / 'api' / 'include')
        return tuple(flag for folder in folders for flag in ('-isystem', str(folder)))


class _Cuda(NamedTuple):
    nvcc: str
    version: str
    archs: tuple[str, ...]  # of machine code (sm_90) and of PTX (compute_90)


class _Step(NamedTuple):
    """One command of the build; a log beside what it makes has the command and what it said."""

    output: Path
    inputs: tuple[Path, ...]  # beside those that the compiler lists
    command: tuple[str, ...]

    @property
    def log(self) -> Path:
        return self.output.with_name(f'{self.output.name}.log')

    def take(self) -> None:
        """Run the command, unless it was run before and no file it read has changed since."""
        command = shlex.join(self.command)
        with contextlib.suppress(OSError):
            made = self.output.stat().st_mtime_ns
            newest = max(path.stat().st_mtime_ns for path in (*self.inputs, *self._listed()))
            if newest < made and self.log.read_text().partition('\n')[0] == command:
                return
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        said = _run(self.command)
        self.log.write_text(f'{command}\n{said}')

    def _listed(self) -> list[Path]:
        """What the compiler read last time: ``-MF`` has it write a rule of make."""
        rule = self.output.with_name(f'{self.output.name}.d')
        read = rule.read_text().partition(': ')[2] if rule.exists() else ''
        return [Path(name) for name in shlex.split(read.replace('\\\n', ' '))]


def _enabled(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, '') not in ('', '0')


def _run(command: Sequence[str]) -> str:
    """Output of a command; what it said first of an error, and last, is the error if it fails."""
    try:
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
        )
    except OSError as error:
        raise BuildError(f'{command[0]} cannot be run: {error}') from None
    if result.returncode != 0:
        lines = [f'  {line}' for line in result.stdout.strip().splitlines()]
        first = next((line for line in lines if 'error' in line), '')
        last = lines[-_LAST_LINES:]
        said = '\n'.join(last if not first or first in last else [first, '  ...', *last])
        raise BuildError(f'{Path(command[0]).name} failed ({result.returncode}):\n{said}')
    return result.stdout


def _line_with(word: str, text: str) -> str:
    return next((line for line in text.splitlines() if word in line), 'unknown')


def _find_torch() -> _Torch:
    """The installed torch, without importing it: seconds, and more ways to fail.

    An isolated build of pip does not see the environment that it builds for, but knows its folder.
    """
    spec = importlib.util.find_spec('torch') or PathFinder.find_spec(
        'torch', [sysconfig.get_path('platlib')]
    )
    if spec is None or spec.origin is None:
        raise BuildError(
            'torch is not installed where the build runs: install it first, then build with '
            '`pip install --no-build-isolation`'
        )
    root = Path(spec.origin).parent
    facts = runpy.run_path(str(root / 'version.py'))
    version = facts['__version__']
    if tuple(map(int, version.split('.')[:2])) < OLDEST_TORCH:
        oldest = '.'.join(map(str, OLDEST_TORCH))
        raise BuildError(f'torch {version} is older than {oldest}: upgrade torch and build again')
    return _Torch(version, root, facts['cuda'])


def _find_cxx(environ: Mapping[str, str]) -> list[str]:
    if environ.get('CXX'):
        return shlex.split(environ['CXX'])
    for name in ('g++', 'c++', 'clang++'):
        found = shutil.which(name, path=environ.get('PATH'))
        if found:
            return [found]
    raise BuildError('no C++ compiler: install g++ or clang++, or name one in CXX')


def _jobs(environ: Mapping[str, str]) -> int:
    given = environ.get('MAX_JOBS')
    if not given:
        return os.cpu_count() or 1
    if not given.isdigit() or int(given) < 1:
        raise BuildError(f'MAX_JOBS={given!r} is no number of jobs; valid: 1, 2, ...')
    return int(given)


def _find_nvcc(environ: Mapping[str, str]) -> str:
    home = environ.get('CUDA_HOME') or environ.get('CUDA_PATH')
    if home:
        nvcc = Path(home, 'bin', 'nvcc')
        if not nvcc.is_file():
            raise BuildError(f'no nvcc: CUDA_HOME={home} has no bin/nvcc')
        return str(nvcc)
    found = shutil.which('nvcc', path=f'{environ.get("PATH", "")}{os.pathsep}/usr/local/cuda/bin')
    if not found:
        raise BuildError('no nvcc: it is neither on the PATH nor under CUDA_HOME')
    return found


def _find_cuda(torch: _Torch, environ: Mapping[str, str]) -> _Cuda:
    """The CUDA compiler and what it shall compile for; no GPU of this machine is ever asked."""
    if environ.get('MMVIM_CUDA') == '0':
        raise BuildError('MMVIM_CUDA=0 asked for the CPU kernels alone')
    if torch.cuda is None and not _enabled(environ, 'MMVIM_CUDA'):
        raise BuildError(
            f'torch {torch.version} is not built for CUDA; MMVIM_CUDA=1 compiles the kernels anyway'
        )
    nvcc = _find_nvcc(environ)
    version = _line_with('release', _run([nvcc, '--version']))
    given = environ.get('TORCH_CUDA_ARCH_LIST', '').replace(';', ' ').split()
    if not given:
        supported = _run([nvcc, '--list-gpu-arch']).split()
        given = [a for a in _CUDA_ARCHS if f'compute_{a.replace(".", "")}' in supported]
    numbers: list[str] = []
    as_ptx: set[str] = set()
    for arch in given:
        match = re.fullmatch(r'(\d+)\.(\d[af]?)(\+PTX)?', arch)
        if match is None:
            raise BuildError(
                f'TORCH_CUDA_ARCH_LIST has {arch!r}; valid: numbers like 8.0, 9.0a or 12.0+PTX'
            )
        if (int(match[1]), int(match[2].rstrip('af'))) < OLDEST_CAPABILITY:
            continue  # a list for all that is built on a machine: older GPUs run something else
        numbers.append(match[1] + match[2])
        if match[3]:
            as_ptx.add(numbers[-1])
    if not numbers:
        oldest = '.'.join(map(str, OLDEST_CAPABILITY))
        raise BuildError(
            f'TORCH_CUDA_ARCH_LIST={" ".join(given)} has nothing from {oldest} on, which the CUDA '
            'kernels need'
        )
    # Its PTX is what later GPUs run.
    as_ptx.add(max(numbers, key=lambda number: int(number.rstrip('af'))))
    archs = [
        arch
        for number in dict.fromkeys(numbers)
        for arch in ((f'compute_{number}',) if number in as_ptx else ()) + (f'sm_{number}',)
    ]
    return _Cuda(nvcc, version, tuple(archs))


def _compile_steps(
    sources: Iterable[tuple[Path, tuple[str, ...]]],
    root: Path,
    compiler: Sequence[str],
    flags: Sequence[str],
    work: Path,
) -> list[_Step]:
    """One step for every source and the flags of its own."""
    steps = []
    for source, own in sources:
        output = work / 'objects' / f'{source.relative_to(root).as_posix()}.o'
        files = ('-MMD', '-MF', f'{output}.d', '-c', str(source), '-o', str(output))
        steps.append(_Step(output, (source,), (*compiler, *flags, *own, *files)))
    return steps


def _cpu_sources(root: Path, cxx: Sequence[str]) -> list[tuple[Path, tuple[str, ...]]]:
    """Translation units for the C++ compiler's target, with the flags of each."""
    target = _run([*cxx, '-dumpmachine'])
    units = [
        (path, *_ISA_UNITS.get(path.name, ('', ())))
        for path in source_files(root)
        if path.suffix == '.cpp' and path.relative_to(root).parts[0] != 'cuda'
    ]
    return [(path, flags) for path, machine, flags in units if target.startswith(machine)]


def _kernel_resources(logs: Iterable[Path]) -> list[dict[str, Any]]:
    """Registers and spilled bytes of every compiled kernel, as ptxas said."""
    return [
        dict(kernel=name, arch=arch, registers=int(used), spilled_bytes=int(stored) + int(loaded))
        for log in logs
        for name, arch, stored, loaded, used in re.findall(_PTXAS, log.read_text())
    ]


def _compile_and_link(
    steps: Sequence[_Step],
    linker: Sequence[str],
    torch: _Torch,
    output: Path,
    environ: Mapping[str, str],
) -> None:
    """Compile what changed, then link it against torch."""
    with ThreadPoolExecutor(_jobs(environ)) as pool:
        for _ in pool.map(_Step.take, steps):
            pass
    objects = tuple(step.output for step in steps)
    libraries = (f'-L{torch.root}/lib', '-ltorch', '-ltorch_cpu')
    command = (*linker, *map(str, objects), *libraries, '-o', str(output))
    _Step(output, objects, command).take()


def _write(path: Path, content: bytes) -> None:
    """Replace a file at once: a process that has the old one mapped keeps it."""
    partial = path.with_name(f'{path.name}.{os.getpid()}')
    partial.write_bytes(content)
    partial.replace(path)


def _linked(folder: Path, link: Path) -> Path:
    """The folder by a path that is the same in every environment: what it made is used again."""
    link.parent.mkdir(parents=True, exist_ok=True)
    partial = link.with_name(f'{link.name}.{os.getpid()}')
    partial.symlink_to(folder)
    return partial.replace(link)


def _write_sidecar(folder: Path, facts: Mapping[str, Any]) -> None:
    version = ROOT / 'mmvim' / 'version.py'
    common = {'interface': INTERFACE, 'version': runpy.run_path(str(version))['__version__']}
    _write(folder / SIDECAR, (json.dumps({**common, **facts}, indent=1) + '\n').encode())


def _compile(
    sources: Path,
    work: Path,
    torch: _Torch,
    cxx: Sequence[str],
    cuda: _Cuda | None,
    environ: Mapping[str, str],
) -> tuple[Path, list[dict[str, Any]]]:
    """Compile and link; the library's path under ``work``, and its kernels' resources."""
    common = (*_COMMON_FLAGS, *torch.include_flags())
    # Error messages name files as in the repository, and the same sources give the same bytes.
    maps = (f'-ffile-prefix-map={sources}=ops/csrc', f'-ffile-prefix-map={torch.root}=torch')
    flags = (*common, *_CXX_FLAGS, *maps, *shlex.split(environ.get('CXXFLAGS', '')))
    steps = _compile_steps(_cpu_sources(sources, cxx), sources, cxx, flags, work)
    # libtorch needs libtorch_cuda where there is one, so weak symbols of CUDA are found as well.
    # No run path: torch is loaded before, and the loader knows its libraries by their names.
    linker = (*cxx, '-shared', '-Wl,-z,defs', '-Wl,--no-as-needed')
    if cuda is not None:
        nvcc = (cuda.nvcc, f'-ccbin={cxx[-1]}', '-cudart=static')
        passed = ','.join((*_HOST_FLAGS, *maps))
        codes = (f'-gencode=arch=compute_{a.partition("_")[2]},code={a}' for a in cuda.archs)
        if _enabled(environ, EXACT_DECAYS):
            common = (*common, f'-D{EXACT_DECAYS}')
        flags = (*common, '-Xptxas=-v', f'-Xcompiler={passed}', *codes)
        found = [path for path in source_files(sources / 'cuda') if path.suffix in ('.cu', '.cpp')]
        steps += _compile_steps([(path, ()) for path in found], sources, nvcc, flags, work)
        linker = (*nvcc, '-shared', '-Xlinker=-z,defs', '-Xlinker=--no-as-needed')
    output = work / LIBRARY
    _compile_and_link(steps, linker, torch, output, environ)
    return output, _kernel_resources(step.log for step in steps)


def build(
    target: Path = PACKAGE,
    sources: Path = SOURCES,
    work: Path = WORK,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Compile what this machine can into ``target``, the library first and its sidecar last.

    Without nvcc, where it fails and where torch is not built for CUDA, the library has no CUDA
    kernels, and its sidecar the reason.

    Args:
        target (Path): Folder of the library.
        sources (Path): Folder of the sources.
        work (Path): Folder of the objects, which are used again while nothing they depend on
            changes.
        environ (Mapping[str, str]): The environment variables.

    Returns:
        What the sidecar says of the library.

    Raises:
        BuildError: There is no library; the message says why. ``target`` is as it was.
    """
    if _enabled(environ, 'MMVIM_NO_EXT'):
        raise BuildError(PURE_PYTHON)
    if not sys.platform.startswith('linux'):
        raise BuildError(f'the native library is built on Linux; this is {sys.platform}')
    torch, cxx = _find_torch(), _find_cxx(environ)
    if not _cpu_sources(sources, cxx):
        raise BuildError(f'no C++ sources under {sources}')
    compiler = _line_with('', _run([*cxx, '--version']))
    # Nothing compiled by another compiler or with other headers is used again.
    key = f'{compiler} {torch.version}'
    work = work / hashlib.sha256(key.encode()).hexdigest()[:12]
    torch = torch._replace(root=_linked(torch.root, work / 'torch'))
    cuda: _Cuda | None = None
    cuda_problem: str | None = None
    try:
        cuda = _find_cuda(torch, environ)
        library, kernels = _compile(sources, work, torch, cxx, cuda, environ)
    except BuildError as error:
        if _enabled(environ, 'MMVIM_CUDA'):
            raise BuildError(f'MMVIM_CUDA=1: {error}') from None
        cuda, cuda_problem = None, str(error)
        library, kernels = _compile(sources, work, torch, cxx, None, environ)

    content = library.read_bytes()
    facts = {
        'sha256': hashlib.sha256(content).hexdigest(),
        'sources': sources_digest(sources),
        'torch': torch.version,
        'compiler': compiler,
        'cuda': cuda
        and {
            'nvcc': cuda.version,
            'archs': cuda.archs,
            'decays': 'exact' if _enabled(environ, EXACT_DECAYS) else 'fast',
            'kernels': kernels,
        },
        'cuda_problem': cuda_problem,
    }
    target.mkdir(parents=True, exist_ok=True)
    _write(target / LIBRARY, content)
    _write_sidecar(target, facts)
    return facts


def build_if_possible(
    target: Path,
    sources: Path = SOURCES,
    work: Path = WORK,
    environ: Mapping[str, str] = os.environ,
) -> str | None:
    """As :func:`build`; without a library the installation is pure Python and says why.

    Returns:
        Why there is no library, or None.

    Raises:
        BuildError, OSError: There is no library, and ``MMVIM_FORCE_EXT=1`` or
            ``MMVIM_CUDA=1`` demands one.
    """
    try:
        build(target, sources, work, environ)
    except (BuildError, OSError) as error:
        if _enabled(environ, 'MMVIM_FORCE_EXT') or _enabled(environ, 'MMVIM_CUDA'):
            raise
        target.mkdir(parents=True, exist_ok=True)
        (target / LIBRARY).unlink(missing_ok=True)
        _write_sidecar(target, {'problem': str(error)})
        return str(error)
    return None


if __name__ == '__main__':
    try:
        print(json.dumps(build(), indent=1))
    except BuildError as build_error:
        sys.exit(f'error: {build_error}')
