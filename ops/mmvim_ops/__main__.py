"""``python -m mmvim_ops``: what the ops run on here, and why the rest cannot.

With ``--kernels``, registers, shared memory and spills of every compiled CUDA kernel.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import re

from mmvim_ops import available_backends, build_info, loading

_RANK = 12  # that of Vim-Ti


def main() -> None:
    """Print the build and one line per backend, or the CUDA kernels."""
    parser = argparse.ArgumentParser(prog='python -m mmvim_ops', description=__doc__)
    parser.add_argument('--kernels', action='store_true', help='list the compiled CUDA kernels')
    if parser.parse_args().kernels:
        print_kernels()
    else:
        print_backends()


def print_backends() -> None:
    """The build, and one line per backend."""
    for key, value in build_info().items():
        print(f'{key:<15} {"none" if value is None else value}')
    print()
    print(f'{"backend":<15} {"runs here":<10} note')
    for name, status in available_backends().items():
        note = status.note.replace('\n', '\n' + ' ' * 27)
        print(f'{name:<15} {"yes" if status.available else "no":<10} {note}')


def print_kernels() -> None:
    """Every CUDA kernel of the library, one line each."""
    cuda = loading.info().get('cuda')
    if cuda is None:
        raise SystemExit(f'error: no CUDA kernels: {loading.cuda_problem()}')
    print(f'shared: bytes of a block, of the scans, with a dt rank of {_RANK}; spilled: bytes')
    print(f'{"arch":<8} {"registers":>9} {"shared":>7} {"spilled":>7}  kernel')
    rows = [(entry['arch'], readable(entry['kernel']), entry) for entry in cuda['kernels']]
    for arch, name, entry in sorted(rows, key=lambda row: row[:2]):
        shared = _shared_bytes(name)
        print(
            f'{arch:<8} {entry["registers"]:>9} {"" if shared is None else shared:>7} '
            f'{entry["spilled_bytes"]:>7}  {name}'
        )


def _shared_bytes(name: str) -> int | None:
    scan = re.match(r'Scan(\w+)<Shape<(\w+), (\d+), (\d+)', name)
    if scan is None:
        return None
    size = 4 if scan[2] == 'float' else 2
    return loading.shared_bytes(scan[1] == 'Backward', size, int(scan[4]), int(scan[3]), _RANK)


def readable(symbol: str) -> str:
    """A kernel's algorithm and what it is compiled for, from its symbol in the library."""
    path = ctypes.util.find_library('stdc++')
    if path is None:
        return symbol
    demangle = ctypes.CDLL(path).__cxa_demangle
    demangle.restype = ctypes.c_char_p
    name = demangle(symbol.encode(), None, None, None)
    if name is None:
        return symbol
    inner = re.search(r'kernel<(.*)>\(', name.decode())
    return re.sub(r'mmvim::cuda::', '', inner[1] if inner else name.decode())


if __name__ == '__main__':
    main()
