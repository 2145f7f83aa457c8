"""Installations of mmvim, made as pip makes them, from a copy of the tracked files."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from repository import ROOT


def install(folder: Path, kind: str, site: Path) -> Path:
    """Put mmvim, without its native library, into the packages of an environment.

    Args:
        folder (Path): Receives a clone called mmvim.
        kind (str): 'wheel' or 'editable'.
        site (Path): The environment's site-packages.

    Returns:
        Path: The clone.
    """
    sources, out = folder / 'mmvim', folder / 'wheel'
    for each in (sources, out):
        each.mkdir(parents=True)
    tracked = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, tracked.stdout.decode().split('\0')):
        if (ROOT / name).exists():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_bytes((ROOT / name).read_bytes())
    build = f'import setuptools.build_meta as backend, sys; backend.build_{kind}(sys.argv[1])'
    subprocess.run(
        [sys.executable, '-c', build, out],
        cwd=sources,
        env={**os.environ, 'MMVIM_NO_EXT': '1', 'MMVIM_FORCE_EXT': '0'},
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(out.glob('*.whl'))) as wheel:
        wheel.extractall(site)
    return sources
