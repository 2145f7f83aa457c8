"""Compiles the CUDA kernels' phases for the host: the operators ``mmvim_emulated::``, on the CPU.

``python tests/ops/emulation/compile.py`` compiles them; the tests do so too, where g++ is found.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
LIBRARY = 'libmmvim_emulated.so'
_FLAGS = ('-O2', '-std=c++17', '-DTORCH_TARGET_VERSION=0x020a000000000000', '-DMMVIM_EMULATE')
_WARNINGS = ('-Wall', '-Wextra', '-Werror', '-Wno-unknown-pragmas', '-Wno-attributes')


def load_build() -> ModuleType | None:
    """``ops/build.py`` as the module ``mmvim_ops_build``; None without a checkout around us."""
    file = HERE.parents[2] / 'ops' / 'build.py'
    spec = importlib.util.spec_from_file_location('mmvim_ops_build', file)
    if not file.is_file() or spec is None or spec.loader is None:
        return None
    if spec.name not in sys.modules:
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[spec.name]


def emulation() -> Path:
    """Compile what changed.

    Returns:
        The library.

    Raises:
        BuildError: There is no compiler, or it failed.
    """
    build = load_build()
    assert build is not None  # this file lies in a checkout
    torch, cxx = build._find_torch(), build._find_cxx(os.environ)
    compiler = build._line_with('', build._run([*cxx, '--version']))
    key = hashlib.sha256(f'{compiler} {torch.version}'.encode()).hexdigest()[:12]
    root = HERE.parents[2]
    work = root / 'build' / 'emulated' / key
    flags = [
        *_FLAGS,
        '-fPIC',
        '-fvisibility=hidden',
        *_WARNINGS,
        f'-I{HERE}',
        f'-I{build.SOURCES / "cuda"}',
        *torch.include_flags(),
    ]
    kernels = build.SOURCES / 'cuda'
    sources = [*sorted(kernels.glob('*.cu')), *sorted(kernels.glob('*.cpp')), *HERE.glob('*.cpp')]
    steps = build._compile_steps(
        [(source, ('-x', 'c++') if source.suffix == '.cu' else ()) for source in sources],
        root,
        cxx,
        flags,
        work,
    )
    output = work / LIBRARY
    work.mkdir(parents=True, exist_ok=True)
    with open(work / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of the tests compile the same
        linker = (*cxx, '-shared', '-Wl,-z,defs')
        build._compile_and_link(steps, linker, torch, output, os.environ)
    return output


if __name__ == '__main__':
    print(emulation())
