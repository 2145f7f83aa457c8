"""An editable installation, as pip asks for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from installation import install


@pytest.fixture(scope='module')
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A clone called mmvim, and the site-packages that an editable installation of it makes."""
    folder = tmp_path_factory.mktemp('above')
    site = folder / 'site-packages'
    site.mkdir()
    sources = install(folder, 'editable', site)
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
