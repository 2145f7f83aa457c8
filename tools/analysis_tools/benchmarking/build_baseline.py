"""Compile the kernels of the published composition from the sources of both packages.

Needs torch for CUDA, nvcc, a C++ compiler and ninja; no Python package of either, and nothing from
a network. What their setup.py compiles for many architectures and all number types is cut to what
the benchmark launches, on one architecture: weights in float32, inputs with adjacent tokens,
input-dependent B and C, softplus and gate. The sources themselves are compiled as they are.

Put --out on PYTHONPATH for benchmark_ops.py.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tarfile
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Those of both packages' setup.py, where they speak of code and not of the build.
_UNDEFINED = (
    *('HALF_OPERATORS', 'HALF_CONVERSIONS', 'BFLOAT16_OPERATORS'),
    *('BFLOAT16_CONVERSIONS', 'BFLOAT162_OPERATORS', 'BFLOAT162_CONVERSIONS'),
)
CUDA_FLAGS = [
    *('-O3', '--expt-relaxed-constexpr', '--expt-extended-lambda', '--use_fast_math'),
    *(f'-U__CUDA_NO_{name}__' for name in _UNDEFINED),
]
_INSTANCE = re.compile(r'^template void (\w+)<([^;]*), ([^;,]*)>\((\w+) ?&.*\);$', re.MULTILINE)


class Package(NamedTuple):
    """Kernels of a package in its source distribution, and the wanted ones among them.

    Attributes:
        name (str): As pip knows it.
        version (str): The one that this script was written for.
        module (str): The compiled module.
        folder (str): Of its sources.
        binding (str): The source that makes the module.
        header (str): Declares the kernels' parameters.
        functions (tuple[str, ...]): The wanted kernels; each exists for three input types and
            several weight types.
        always (tuple[str, ...]): Template arguments that are true whenever the benchmark launches a
            kernel.
    """

    name: str
    version: str
    module: str
    folder: str
    binding: str
    header: str
    functions: tuple[str, ...]
    always: tuple[str, ...] = ()


PACKAGES = (
    Package(
        *('mamba-ssm', '2.3.2.post1', 'selective_scan_cuda', 'csrc/selective_scan'),
        *('selective_scan.cpp', 'selective_scan.h'),
        ('selective_scan_fwd_cuda', 'selective_scan_bwd_cuda'),
        ('kIsVariableB', 'kIsVariableC', 'kDeltaSoftplus', 'kHasZ'),
    ),
    Package(
        *('causal-conv1d', '1.7.0', 'causal_conv1d_cuda', 'csrc'),
        *('causal_conv1d.cpp', 'causal_conv1d.h'),
        ('causal_conv1d_fwd_cuda', 'causal_conv1d_bwd_cuda'),
    ),
)
# The packages choose a kernel by BOOL_SWITCH, which compiles it for both values of a condition.
_ONE_VALUE = """\
#include <c10/util/Exception.h>
#include "static_switch.h"
#undef BOOL_SWITCH
#define ALWAYS_kIsEvenLen false
{always}
#define BOOL_SWITCH(CONDITION, NAME, ...)                                          \\
  [&] {{                                                                            \\
    if (CONDITION) {{                                                               \\
      constexpr bool NAME = true;                                                  \\
      return __VA_ARGS__();                                                        \\
    }}                                                                              \\
    TORCH_CHECK(!ALWAYS_##NAME, "left out of the baseline: " #NAME " = false");    \\
    constexpr bool NAME = ALWAYS_##NAME;                                           \\
    return __VA_ARGS__();                                                          \\
  }}()
"""
_LEFT_OUT = """\
// What the binding mentions and the baseline does not launch.
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>
#include <c10/util/complex.h>
#include <cuda_runtime.h>
#include "{header}"
using complex_t = c10::complex<float>;
"""


class BaselineError(RuntimeError):
    """The reason for which there is no baseline."""


def unpacked(given: Path, work: Path) -> Path:
    """A source distribution's folder; an archive is unpacked into ``work``."""
    if given.is_dir():
        return given
    try:
        with tarfile.open(given) as archive:
            archive.extractall(work, filter='data')
            top = archive.getnames()[0].split('/')[0]
    except (OSError, tarfile.TarError) as error:
        raise BaselineError(
            f'{given} is neither the folder nor the .tar.gz of a source distribution ({error})'
        ) from None
    return work / top


def write_sources(package: Package, sdist: Path, work: Path) -> list[Path]:
    """Sources to compile: the binding, a file for each wanted kernel, one for the others.

    A kernel's file is its package's up to the list of instances, of which it asks for one.

    Raises:
        BaselineError: The folder does not hold what it should.
    """
    folder = sdist / package.folder
    missing = [name for name in (package.binding, package.header) if not (folder / name).exists()]
    if missing:
        raise BaselineError(
            f'{folder} has no {" and no ".join(missing)}: give the unpacked source distribution of '
            f'{package.name} {package.version}'
        )
    work.mkdir(parents=True, exist_ok=True)
    prefix = ''
    if package.always:
        prefix = _ONE_VALUE.format(
            always='\n'.join(f'#define ALWAYS_{name} true' for name in package.always)
        )
    sources = [folder / package.binding]
    left_out = [_LEFT_OUT.format(header=package.header)]
    declared = set()
    for file in sorted(folder.glob('*.cu')):
        text = file.read_text()
        instances = list(_INSTANCE.finditer(text))
        head = text[: instances[0].start()] if instances else text
        for instance in instances:
            function, inputs, weights, params = instance.groups()
            if function in package.functions and weights == 'float':
                name = re.sub(r'\W+', '_', f'{function}_{inputs}')
                sources.append(work / f'{name}.cu')
                sources[-1].write_text(f'{prefix}{head}\n{instance[0]}\n')
                continue
            if function not in declared:
                declared.add(function)
                left_out.append(
                    f'template <typename input_t, typename weight_t>\n'
                    f'void {function}({params}&, cudaStream_t) {{\n'
                    f'  TORCH_CHECK(false, "left out of the baseline: {function}");\n}}\n'
                )
            left_out.append(f'{instance[0]}\n')
    expected = 3 * len(package.functions)
    if len(sources) != 1 + expected:
        raise BaselineError(
            f'{folder} has {len(sources) - 1} of the {expected} wanted kernels of {package.name} '
            f'{package.version}: another version is laid out otherwise'
        )
    sources.append(work / 'left_out.cpp')
    sources[-1].write_text(''.join(left_out))
    return sources


def build(package: Package, sdist: Path, out: Path) -> Path:
    """Compile one package's module into ``out``; its metadata names the version in reports.

    Raises:
        BaselineError: The sources are not what they should be, or do not compile.
    """
    work = out / 'work' / package.module
    folder = unpacked(sdist, out / 'work')
    sources = write_sources(package, folder, work / 'sources')
    objects = work / 'objects'
    objects.mkdir(parents=True, exist_ok=True)
    from torch.utils import cpp_extension  # late: --help needs no torch

    try:
        cpp_extension.load(
            package.module,
            [str(source) for source in sources],
            extra_include_paths=[str((folder / package.folder).resolve())],
            extra_cflags=['-O3'],
            extra_cuda_cflags=CUDA_FLAGS,
            build_directory=str(objects),
            with_cuda=True,
            verbose=True,
        )
    except (RuntimeError, OSError, ImportError) as error:
        raise BaselineError(f'{package.module}: {error}') from error
    module = out / f'{package.module}.so'
    shutil.copyfile(objects / module.name, module)
    info = f'{package.name.replace("-", "_")}.egg-info'
    if (folder / info).is_dir():
        shutil.copytree(folder / info, out / info, dirs_exist_ok=True)
    return module


def main(argv: Sequence[str] | None = None) -> int:
    """Build both modules."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    for package in PACKAGES:
        parser.add_argument(
            f'--{package.name}',
            type=Path,
            required=True,
            metavar='SDIST',
            help=f'source distribution of {package.name} {package.version}, unpacked or not',
        )
    parser.add_argument('--out', type=Path, default=Path('build/baseline'), metavar='DIR')
    parser.add_argument(
        '--arch', help='like 9.0 (default: TORCH_CUDA_ARCH_LIST, or the GPUs that are there)'
    )
    args = parser.parse_args(argv)
    if args.arch:
        os.environ['TORCH_CUDA_ARCH_LIST'] = args.arch
    out = args.out.resolve()
    try:
        for package in PACKAGES:
            print(build(package, getattr(args, package.name.replace('-', '_')).resolve(), out))
    except BaselineError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'now: export PYTHONPATH={out}:$PYTHONPATH')
    return 0


if __name__ == '__main__':
    sys.exit(main())
