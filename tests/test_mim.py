"""OpenMMLab's package manager on an installed mmvim: search, train, test, download.

``make slow-tests`` puts mim beside the environment's packages, see requirements/mim.txt.
"""

import functools
import http.server
import json
import os
import subprocess
import sys
import sysconfig
import threading
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from installation import install
from mmengine.config import Config
from repository import CONFIGS

from mmvim.cli.metafile import read_metafile, write_metafile
from mmvim.datasets.patterns import PatternsSpec, generate

MIM = Path(sys.prefix) / 'mim'
DEMO = 'vim-nano_upernet_1xb8-900_patterns-128x128'
FAMILIES = sorted(CONFIGS.glob('*/metafile.yml'))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MIM.is_dir(), reason=f'no mim in {MIM}: make slow-tests puts it there'),
]
Mim = Callable[..., str]


@pytest.fixture(scope='module', params=['wheel', 'editable'])
def environment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The interpreter of an environment with mim and mmvim, and mmvim's ``.mim`` in it."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder / 'env', symlinks=True)
    site = next((folder / 'env').glob('lib/python3*/site-packages'))
    (site / 'stack.pth').write_text(f'{MIM}\n{sysconfig.get_paths()["purelib"]}\n')
    sources = install(folder, request.param, site)
    package = site / 'mmvim' if request.param == 'wheel' else sources / 'mmvim'
    return folder / 'env' / 'bin' / 'python', package / '.mim'


@pytest.fixture
def mim(environment: tuple[Path, Path], tmp_path: Path) -> Mim:
    """Run mim in ``tmp_path`` and give what it prints."""
    kept = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [environment[0], '-W', 'ignore', '-m', 'mim', *map(str, arguments)],
            cwd=tmp_path,
            env={**kept, 'PAGER': 'cat', 'MMVIM_FORCE_EXT': '0'},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def found(mim: Mim, folder: Path, *arguments: object) -> set[str]:
    """The configs that a search gives."""
    mim('search', 'mmvim', '--json', folder / 'found.json', *arguments)
    table = json.loads((folder / 'found.json').read_text())
    return set(table['config'])


MODELS = [model for file in FAMILIES for model in read_metafile(file)['Models']]


def test_search(mim: Mim, tmp_path: Path) -> None:
    assert found(mim, tmp_path) == {model['Name'] for model in MODELS}
    assert f'config id: {DEMO}' in mim('search', 'mmvim', '--model', 'vim on patterns')


@pytest.mark.parametrize('environment', ['wheel'], indirect=True)
def test_search_with_conditions(mim: Mim, tmp_path: Path) -> None:
    """By data set, and by figures under the standard names of metrics."""
    data = {model['Name']: model['Metadata']['Training Data'] for model in MODELS}
    for name in ('ADE20K', 'patterns'):
        of_it = {model for model, dataset in data.items() if dataset == name}
        assert of_it and found(mim, tmp_path, '--dataset', name.lower()) == of_it

    def above(metric: str, least: float) -> set[str]:
        return {
            model['Name']
            for model in MODELS
            for result in model.get('Results') or []
            for name, value in result['Metrics'].items()
            if name.startswith(metric) and value > least
        }

    for metric, least in (('box AP', 40.0), ('mIoU', 41.0), ('Top 1 Accuracy', 80.0)):
        wanted = above(metric, least)
        condition = f'{metric.replace(" ", "_")}>{least}'
        assert wanted and found(mim, tmp_path, '--condition', condition) == wanted
    small = {model['Name'] for model in MODELS if model['Metadata']['Parameters'] < 1e6}
    assert small and found(mim, tmp_path, '--condition', 'parameters<1e6') == small


def test_train_and_test_a_config_by_its_name(mim: Mim, tmp_path: Path) -> None:
    generate(tmp_path / 'data' / 'patterns', PatternsSpec(train=4, val=2, layouts=('ade',)))
    loaders = [
        f'{split}_dataloader.{key}={value}'
        for split in ('train', 'val', 'test')
        for key, value in (('batch_size', 2), ('num_workers', 0))
    ]
    short = ('--cfg-options', *loaders, 'train_cfg.max_iters=2', 'train_cfg.val_interval=2')
    more = ('default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1')
    printed = mim('train', 'mmvim', f'{DEMO}.py', '--work-dir', 'run', *short, *more)
    assert 'Training finished successfully' in printed
    weights = tmp_path / 'run' / 'iter_2.pth'
    printed = mim('test', 'mmvim', f'{DEMO}.py', '--checkpoint', weights, *short)
    assert 'Testing finished successfully' in printed and 'mIoU' in printed


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of ``tmp_path / 'served'``."""
    (tmp_path / 'served').mkdir()
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / 'served')
    )
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{served.server_port}'
        served.shutdown()


def test_download_a_published_file_and_its_config(
    mim: Mim, environment: tuple[Path, Path], server: str, tmp_path: Path
) -> None:
    """Of an entry that names a file: here one that the test serves."""
    content = b'weights'
    (tmp_path / 'served' / 'vim-nano-12345678.pth').write_bytes(content)
    metafile = environment[1] / 'configs' / 'demo' / 'metafile.yml'
    listed = read_metafile(metafile)
    (entry,) = [model for model in listed['Models'] if model['Name'] == DEMO]
    entry['Weights'] = f'{server}/vim-nano-12345678.pth'
    write_metafile(metafile, listed)
    mim('download', 'mmvim', '--config', DEMO, '--dest', 'got')
    assert (tmp_path / 'got' / 'vim-nano-12345678.pth').read_bytes() == content
    config = Config.fromfile(tmp_path / 'got' / f'{DEMO}.py')
    assert config.model.backbone.type == 'mmvim.VisionMamba'
