"""``python -m mmvim``: the packages here, where mmcv's operators come from, what is missing."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import platform
from importlib.metadata import packages_distributions, version

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import mmvim
from mmvim import mmcv_ops
from mmvim.errors import one_line
from mmvim_ops import available_backends

# Module of each library to its distributions: OpenMMLab's, and the maintained fork's.
LIBRARIES = {
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
}


def packages() -> list[tuple[str, str, str]]:
    """Module, version and a note of all that mmvim works with.

    The libraries are imported: what keeps one from working is its note.
    """
    installed = packages_distributions()
    forks = installed['mmengine'][0].startswith('onedl-')
    rows = []
    for module in ('torch', 'torchvision', 'mmengine', 'mmcv', *LIBRARIES):
        if importlib.util.find_spec(module) is None:
            missing = LIBRARIES[module][forks] if module in LIBRARIES else module
            rows.append((module, 'missing', f'pip install {missing}'))
            continue
        distribution = installed[module][0]
        note = distribution if distribution != module else ''
        if module == 'torch':
            note = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU is seen'
        if module in LIBRARIES:
            try:
                importlib.import_module(f'{module}.models')
            except Exception as error:  # whatever it is, its user wants to know
                note = f'cannot be imported: {type(error).__name__}: {one_line(error)}'
        rows.append((module, version(distribution), note))
    return rows


def operators() -> list[tuple[str, str]]:
    """Names of mmcv's operators, those together that come from the same place, and the place."""
    grouped: dict[str, list[str]] = {}
    for name, source in mmcv_ops.sources().items():
        grouped.setdefault(source, []).append(name)
    return [(', '.join(names), source) for source, names in grouped.items()]


def main() -> None:
    """Print the two tables and a line about the scan kernels."""
    argparse.ArgumentParser(prog='python -m mmvim', description=__doc__).parse_args()
    console = Console(highlight=False)
    console.print(f'mmvim {mmvim.__version__}, Python {platform.python_version()}')
    for columns, rows in (
        (('package', 'version', 'note'), packages()),
        (("mmcv's operators", 'come from'), operators()),
    ):
        table = Table(*columns)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    kernels = [name for name in ('cuda', 'cpu') if available_backends()[name].available]
    console.print(
        f'native scan kernels: {", ".join(kernels) or "none"}; `python -m mmvim_ops` says more'
    )


if __name__ == '__main__':
    main()
