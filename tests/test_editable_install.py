"""An editable installation, as pip asks for it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from repository import ROOT


@pytest.mark.slow
def test_mim_finds_the_sources(tmp_path: Path) -> None:
    """mim joins site-packages and the first line of top_level.txt to find ``.mim`` there."""
    sources, out = tmp_path / 'sources', tmp_path / 'out'
    for folder in (sources, out):
        folder.mkdir()
    tracked = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, tracked.stdout.decode().split('\0')):
        if (ROOT / name).exists():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_bytes((ROOT / name).read_bytes())
    build = 'import setuptools.build_meta as backend, sys; backend.build_editable(sys.argv[1])'
    subprocess.run(
        [sys.executable, '-c', build, out],
        cwd=sources,
        env={**os.environ, 'MMVIM_NO_EXT': '1', 'MMVIM_FORCE_EXT': '0'},
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(out.glob('*.whl'))) as wheel:
        (modules,) = (name for name in wheel.namelist() if name.endswith('top_level.txt'))
        first, *others = wheel.read(modules).decode().split()
    assert others == ['mmvim', 'mmvim_ops']
    package = Path('/some/site-packages') / first
    assert package == sources / 'mmvim'
    assert (package / '.mim' / 'model-index.yml').samefile(sources / 'model-index.yml')
    assert (package / '.mim' / 'configs').samefile(sources / 'configs')
