"""Compiles the CUDA kernels' phases for the host: the operators ``mmvim_emulated::``, on the CPU.

``python tests/ops/emulation/compile.py`` compiles them; the tests do so too, where g++ is found.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mmvim_ops import build

HERE = Path(__file__).resolve().parent
LIBRARY = 'libmmvim_emulated.so'
_FLAGS = ('-O2', '-std=c++17', '-DTORCH_TARGET_VERSION=0x020a000000000000', '-DMMVIM_EMULATE')
_WARNINGS = ('-Wall', '-Wextra', '-Werror', '-Wno-unknown-pragmas', '-Wno-attributes')


def emulation() -> Path:
    """Compile what changed.

    Returns:
        The library.

    Raises:
        mmvim_ops.build.BuildError: There is no compiler, or it failed.
    """
    torch, cxx = build._find_torch(), build._find_cxx(os.environ)
    compiler = build._line_with('', build._run([*cxx, '--version']))
    key = hashlib.sha256(f'{compiler} {torch.version}'.encode()).hexdigest()[:12]
    root = HERE.parents[2]
    work = root / 'build' / 'emulated' / key
    headers = torch.root / 'include'
    flags = [
        *_FLAGS,
        '-fPIC',
        '-fvisibility=hidden',
        *_WARNINGS,
        f'-I{HERE}',
        f'-I{build.SOURCES / "cuda"}',
    ]
    for folder in (headers, headers / 'torch' / 'csrc' / 'api' / 'include'):
        flags += ['-isystem', str(folder)]
    kernels = build.SOURCES / 'cuda'
    sources = [*sorted(kernels.glob('*.cu')), *sorted(kernels.glob('*.cpp')), *HERE.glob('*.cpp')]
    steps = build._compile_steps(
        [(source, ('-x', 'c++') if source.suffix == '.cu' else ()) for source in sources],
        root,
        cxx,
        flags,
        work,
    )
    objects = tuple(step.output for step in steps)
    libraries = (f'-L{torch.root}/lib', '-ltorch', '-ltorch_cpu')
    output = work / LIBRARY
    command = (*cxx, '-shared', '-Wl,-z,defs', *map(str, objects), *libraries, '-o', str(output))
    link = build._Step(output, objects, command)
    build._execute(steps, link, work, build._jobs(os.environ))
    return output


if __name__ == '__main__':
    print(emulation())
