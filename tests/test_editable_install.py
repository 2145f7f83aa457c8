"""An editable installation, as pip asks for it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from repository import ROOT


@pytest.fixture(scope='module')
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A clone called mmvim, and the site-packages that an editable installation of it makes."""
    folder = tmp_path_factory.mktemp('above')
    sources, out, site = folder / 'mmvim', folder / 'wheel', folder / 'site-packages'
    for each in (sources, out, site):
        each.mkdir()
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
        wheel.extractall(site)
    return sources, site


@pytest.mark.slow
def test_mim_finds_the_sources(installed: tuple[Path, Path]) -> None:
    """mim joins site-packages and the first line of top_level.txt to find ``.mim`` there."""
    sources, site = installed
    (modules,) = site.glob('*.dist-info/top_level.txt')
    first, *others = modules.read_text().split()
    assert others == ['mmvim', 'mmvim_ops']
    package = Path('/some/site-packages') / first
    assert package == sources / 'mmvim'
    assert (package / '.mim' / 'model-index.yml').samefile(sources / 'model-index.yml')
    assert (package / '.mim' / 'configs').samefile(sources / 'configs')


@pytest.mark.slow
@pytest.mark.parametrize('beside', ['above', 'inside', 'elsewhere'])
def test_python_finds_the_sources(beside: str, installed: tuple[Path, Path]) -> None:
    """From the folder above the clone too, where the clone itself looks like a package."""
    sources, site = installed
    find = """
import site, sys
from importlib.util import find_spec
site.addsitedir(sys.argv[1])
print(find_spec('mmvim').origin, find_spec('mmvim_ops').origin)
"""
    found = subprocess.run(
        [sys.executable, '-S', '-c', find, site],
        cwd={'above': sources.parent, 'inside': sources, 'elsewhere': site}[beside],
        env={name: value for name, value in os.environ.items() if name != 'PYTHONPATH'},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    packages = (sources / 'mmvim', sources / 'ops' / 'mmvim_ops')
    assert found == [str(package / '__init__.py') for package in packages]
