"""Install a wheel into another environment and test it there, away from the sources.

Run by ``make wheel``: ``python tests/check_wheel.py dist/mmvim-*.whl``. The environment is new
and borrows the stack of the one that runs the script, so that some tests of the ops will do, of
which ``make test`` runs all. With ``--pure`` (``make test-pure``) the wheel is one without the
native library. With ``--python`` (``make test-abi``) the environment is the one given, of another
torch or another Python, and the ops alone are tested, whole.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY, SIDECAR = 'mmvim_ops/libmmvim_ops.so', 'mmvim_ops/libmmvim_ops.json'
CHECK = """
import sys
from pathlib import Path
import mmvim, mmvim_ops, torch
from mmengine.config import Config
from mmengine.hub import get_config
package = Path(mmvim.__file__).parent
assert str(package).startswith(sys.prefix), package
configs = sorted((package / '.mim' / 'configs').glob('*/*_*.py'))
assert configs
for config in configs:
    Config.fromfile(config)
name = 'upernet/vim-tiny_upernet_4xb8-60k_ade20k-512x512.py'
Path('mine.py').write_text(f"_base_ = 'mmvim::{name}'")
for config in (Config.fromfile('mine.py'), get_config(f'mmvim::{name}')):
    assert config.model.backbone.type == 'mmvim.VisionMamba'
assert Path(config.filename) == package / '.mim' / 'configs' / name, config.filename
model = mmvim.VisionMamba('nano')
assert model(torch.zeros(1, 3, 32, 48))[0].shape == (1, 64, 2, 3)
print(f'the wheel works: {len(configs)} configs under .mim')
"""
# Where the ops come from, and which library they use.
CHECK_OPS = """
import hashlib, sys
from pathlib import Path
import mmvim_ops, torch
from mmvim_ops import loading
assert Path(mmvim_ops.__file__).is_relative_to(sys.prefix), mmvim_ops.__file__
path = loading.path()
digest = path and hashlib.sha256(path.read_bytes()).hexdigest()
print(sys.version.split()[0], torch.__version__, digest, loading.problem(), sep='|')
"""
# Where an installation may differ from the sources: which library is found, what it computes.
TESTS_OF_AN_INSTALLATION = ('library', 'native_loading', 'native_selection', 'goldens', 'values')
# What the library may ask torch for: the C functions of the stable ABI, no C++ of at or c10.
CXX_OF_TORCH = re.compile(r'_Z\w*N(?:2at|3c10|5torch)\d')


def check_contents(wheel: Path) -> None:
    """All tracked configs and tools with their index, and no C++ sources."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert not [name for name in names if name.startswith('mmvim_ops/csrc/')]
    for folder in ('configs', 'tools', 'model-index.yml'):
        shipped = {
            name.removeprefix('mmvim/.mim/')
            for name in names
            if name.startswith(f'mmvim/.mim/{folder}')
        }
        tracked = subprocess.run(
            ['git', 'ls-files', folder], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        missing = set(tracked) - shipped
        assert tracked and not missing, f'the wheel lacks {sorted(missing)}'


def check_library(wheel: Path, pure: bool) -> dict[str, str]:
    """A library with a fitting sidecar and tag, or none; what the sidecar says."""
    with zipfile.ZipFile(wheel) as archive:
        facts: dict[str, str] = json.loads(archive.read(SIDECAR))
        if pure:
            assert LIBRARY not in archive.namelist() and 'problem' in facts
            assert wheel.name.endswith('-py3-none-any.whl'), wheel.name
            return facts
        content = archive.read(LIBRARY)
    assert hashlib.sha256(content).hexdigest() == facts['sha256']
    assert re.search(r'-py3-none-(linux|manylinux)\w+\.whl$', wheel.name), wheel.name
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, 'library.so')
        library.write_bytes(content)
        command = ['nm', '--dynamic', '--undefined-only', library]
        symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    foreign = [line for line in symbols.splitlines() if CXX_OF_TORCH.search(line)]
    assert 'aoti_torch' in symbols and not foreign, f'outside of the stable ABI: {foreign}'
    return facts


def new_environment(folder: str) -> Path:
    """The interpreter of a new environment that sees the packages of this one."""
    venv.create(folder, with_pip=True)
    site = next(Path(folder).glob('lib/python3*/site-packages'))
    # Only the stack's packages: an editable install of mmvim is no file of this folder.
    (site / 'stack.pth').write_text(sysconfig.get_paths()['purelib'] + '\n')
    return Path(folder) / 'bin' / 'python'


def run_ops_tests(python: Path, facts: dict[str, str], workers: int, every: bool) -> None:
    """Run tests of the ops on what is installed, from a copy that has no sources beside it."""
    with tempfile.TemporaryDirectory() as folder:
        printed = subprocess.run(
            [python, '-W', 'ignore', '-c', CHECK_OPS],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        version, torch, digest, problem = printed.strip().split('|')
        print(f'tested with torch {torch} on Python {version}')
        if 'sha256' in facts:
            print(f'built with torch {facts["torch"]}; sha256 of the library: {digest}')
            assert digest == facts['sha256'] and problem == 'None', problem
        else:
            print(f'no native library: {problem}')
            assert problem == f'not built: {facts["problem"]}'
        shutil.copytree(ROOT / 'tests' / 'ops', Path(folder, 'ops'))
        Path(folder, 'pytest.ini').write_text('[pytest]\nmarkers = slow\n')
        goldens = os.environ.get('MMVIM_GOLDENS', str(ROOT.parent / 'shared' / 'goldens'))
        options = ['-q', '--import-mode=importlib', '-m', 'not slow']
        if workers > 1:
            options += ['-n', str(workers), '--dist', 'loadfile']
        files = [f'ops/test_{name}.py' for name in TESTS_OF_AN_INSTALLATION]
        subprocess.run(
            [python, '-m', 'pytest', *options, *(['ops'] if every else files)],
            cwd=folder,
            env={**os.environ, 'MMVIM_GOLDENS': goldens, 'OMP_NUM_THREADS': '1'},
            check=True,
        )


def main() -> None:
    """Check the one wheel named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('wheel', type=Path)
    parser.add_argument('--python', type=Path, help='test the ops in the environment of this one')
    parser.add_argument('--pure', action='store_true', help='the wheel has no native library')
    parser.add_argument('--workers', type=int, default=1, help='processes that share the tests')
    options = parser.parse_args()
    wheel: Path = options.wheel.resolve()
    check_contents(wheel)
    facts = check_library(wheel, options.pure)
    with tempfile.TemporaryDirectory() as folder:
        # Not resolved: the interpreter of an environment is a link to another.
        python = options.python.absolute() if options.python else new_environment(folder)
        install = ['install', '-q', '--no-deps', '--force-reinstall', wheel]
        subprocess.run([python, '-m', 'pip', *install], check=True)
        if not options.python:
            subprocess.run([python, '-c', CHECK], cwd=folder, check=True)
        run_ops_tests(python, facts, options.workers, every=options.python is not None)


if __name__ == '__main__':
    main()
