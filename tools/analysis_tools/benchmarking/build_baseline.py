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
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Those of both packages' setup.py, where they speak of code and not of the build.
CUDA_FLAGS = [
    *('-O3', '--expt-relaxed-constexpr', '--expt-extended-lambda', '--use_fast_math'),
    *(f'-U__CUDA_NO_{name}_OPERATORS__' for name in ('HALF', 'BFLOAT16', 'BFLOAT162')),
    *(f'-U__CUDA_NO_{name}_CONVERSIONS__' for name in ('HALF', 'BFLOAT16', 'BFLOAT162')),
]
_INSTANCE = re.compile(r'^template void (\w+)<([^;]*), ([^;,]*)>\((\w+) ?&.*\);$', re.MULTILINE)
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
# What the binding mentions and the baseline does not launch.
_LEFT_OUT = """\
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>
#include <c10/util/complex.h>
#include <cuda_runtime.h>
#include "{header}.h"
using complex_t = c10::complex<float>;
"""
_STUB = """\
template <typename input_t, typename weight_t> void {0}({1}&, cudaStream_t) {{
  TORCH_CHECK(false, "left out of the baseline: {0}");
}}
"""


class Package(NamedTuple):
    """Kernels in a source distribution.

    ``stem`` begins the names of binding, header, kernels and compiled module; ``always`` are the
    template arguments that are true whenever the benchmark launches a kernel.
    """

    name: str
    version: str
    folder: str
    stem: str
    always: tuple[str, ...] = ()


_TRUE = ('kIsVariableB', 'kIsVariableC', 'kDeltaSoftplus', 'kHasZ')
PACKAGES = (
    Package('mamba-ssm', '2.3.2.post1', 'csrc/selective_scan', 'selective_scan', _TRUE),
    Package('causal-conv1d', '1.7.0', 'csrc', 'causal_conv1d'),
)


def write_sources(package: Package, folder: Path, work: Path) -> list[Path]:
    """Sources to compile: the binding, the kernels cut to the wanted instances, stubs of others.

    Raises:
        ValueError: The folder does not hold what it should.
    """
    wanted = {f'{package.stem}_{kind}_cuda' for kind in ('fwd', 'bwd')}
    always = '\n'.join(f'#define ALWAYS_{name} true' for name in package.always)
    prefix = _ONE_VALUE.format(always=always) if package.always else ''
    stubs: dict[str, list[str]] = {}
    kept = []

    def keep(instance: re.Match[str]) -> str:
        function, _, weights, parameters = instance.groups()
        if function in wanted and weights == 'float':
            kept.append(function)
            return instance[0]
        stubs.setdefault(_STUB.format(function, parameters), []).append(f'{instance[0]}\n')
        return ''

    work.mkdir(parents=True, exist_ok=True)
    sources = [folder / f'{package.stem}.cpp']
    for file in sorted(folder.glob('*.cu')):
        sources.append(work / file.name)
        sources[-1].write_text(prefix + _INSTANCE.sub(keep, file.read_text()) + '\n')
    if len(kept) != 3 * len(wanted):  # an instance for each number type of the inputs
        raise ValueError(
            f'{folder} has {len(kept)} of the 6 wanted kernels: give the source distribution of '
            f'{package.name} {package.version}; another version is laid out otherwise'
        )
    sources.append(work / 'left_out.cpp')
    stubbed = ''.join(stub + ''.join(instances) for stub, instances in stubs.items())
    sources[-1].write_text(_LEFT_OUT.format(header=package.stem) + stubbed)
    return sources


def build(package: Package, sdist: Path, out: Path) -> Path:
    """Compile one package's module into ``out``; its metadata names the version in reports.

    Raises:
        ValueError: The sources are not what they should be.
        RuntimeError, OSError: They cannot be unpacked or do not compile.
    """
    from torch.utils import cpp_extension  # late: --help needs no torch

    module = f'{package.stem}_cuda'
    work = out / 'work'
    shutil.unpack_archive(sdist, work, filter='data')
    unpacked = work / sdist.name.removesuffix('.tar.gz')
    folder, objects = unpacked / package.folder, work / module
    sources = write_sources(package, folder, objects / 'sources')
    cpp_extension.load(
        module,
        [str(source) for source in sources],
        extra_include_paths=[str(folder)],
        extra_cflags=['-O3'],
        extra_cuda_cflags=CUDA_FLAGS,
        build_directory=str(objects),
        with_cuda=True,
        verbose=True,
    )
    info = f'{package.name.replace("-", "_")}.egg-info'
    shutil.copytree(unpacked / info, out / info, dirs_exist_ok=True)
    return Path(shutil.copy(objects / f'{module}.so', out))


def main(argv: Sequence[str] | None = None) -> int:
    """Build both modules."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    for package in PACKAGES:
        told = f'source distribution of {package.name} {package.version}'
        parser.add_argument(f'--{package.name}', type=Path, required=True, help=told)
    parser.add_argument('--out', type=Path, default=Path('build/baseline'), metavar='DIR')
    parser.add_argument('--arch', help='like 9.0 (default: TORCH_CUDA_ARCH_LIST)')
    args = parser.parse_args(argv)
    if args.arch:
        os.environ['TORCH_CUDA_ARCH_LIST'] = args.arch
    out = args.out.resolve()
    try:
        for package in PACKAGES:
            print(build(package, getattr(args, package.name.replace('-', '_')).resolve(), out))
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'now: export PYTHONPATH={out}:$PYTHONPATH')
    return 0


if __name__ == '__main__':
    sys.exit(main())
