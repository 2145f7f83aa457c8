"""Small real configs for the tools: segmentation in mmseg, and a toy model of mmengine alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.visualization import Visualizer
from PIL import Image
from repository import TOOLS, load_script
from task_configs import SEGMENTATION

from mmvim.cli.run_tool import run_tool

TOY = """
custom_imports = dict(imports=['toy_task'])
model = dict(type='ToyModel', width=2)
train_dataloader = dict(
    batch_size=2, num_workers=0, dataset=dict(type='ToyData'),
    sampler=dict(type='DefaultSampler', shuffle=True))
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.125))
test_dataloader = dict(
    batch_size=2, num_workers=0, dataset=dict(type='ToyData'),
    sampler=dict(type='DefaultSampler', shuffle=False))
test_evaluator = dict(type='ToyMetric')
test_cfg = dict()
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=1))
param_scheduler = [dict(type='LinearLR', start_factor=0.5, end=2, by_epoch=False)]
randomness = dict(seed=0)
"""


def write_scenes(root: Path, count: int = 4, size: tuple[int, int] = (32, 40)) -> None:
    """``images/*.png`` and ``labels/*.png`` of ``size`` (height, width), classes as colours."""
    rng = np.random.default_rng(0)
    colours = np.array([[0, 0, 200], [0, 200, 0], [200, 0, 0]])
    for folder in ('images', 'labels'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        label = np.repeat(rng.integers(0, 3, size[1]), size[0]).reshape(size[1], size[0]).T
        image = colours[label] + rng.integers(0, 50, (*size, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / 'images' / f'{index}.png')
        Image.fromarray(label.astype(np.uint8)).save(root / 'labels' / f'{index}.png')


@dataclass(frozen=True)
class Outcome:
    """What a run of a tool left: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line a known failure prints."""
        lines = [line for line in self.err.splitlines() if line.startswith('error: ')]
        assert len(lines) == 1, self.err
        assert 'Traceback' not in self.err
        return lines[0].removeprefix('error: ')


Run = Callable[..., Outcome]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a tool in this process: ``run('train', config, '--amp')``."""

    def run_in_process(name: str, *argv: object) -> Outcome:
        capfd.readouterr()
        # mmengine keeps these by experiment and second: a fresh process has none.
        kept_by_name = (MMLogger, MessageHub, DefaultScope, Visualizer)
        for kept in (*kept_by_name, *Visualizer.__subclasses__()):
            kept._instance_dict.clear()
        code = run_tool(
            load_script(TOOLS / f'{name}.py').main, [str(argument) for argument in argv]
        )
        return Outcome(code, *capfd.readouterr())

    return run_in_process


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file of mmengine alone; the test runs in its folder."""
    # A file name of its own: mmengine keeps loggers and visualizers by name and second.
    config = tmp_path / f'{tmp_path.name}.py'
    config.write_text(TOY)
    monkeypatch.chdir(tmp_path)
    return config


@pytest.fixture
def segmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file of mmseg beside its data, ``scenes``; the test runs in its folder."""
    pytest.importorskip('mmseg')
    write_scenes(tmp_path / 'scenes')
    config = tmp_path / f'{tmp_path.name}.py'
    config.write_text(SEGMENTATION)
    monkeypatch.chdir(tmp_path)
    return config


@pytest.fixture(scope='session')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of the segmentation config, as a checkpoint."""
    pytest.importorskip('mmseg')
    cfg = Config.fromstring(SEGMENTATION, '.py')
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    path = tmp_path_factory.mktemp('weights') / 'segmentation.pth'
    meta = dict(dataset_meta=cfg.metainfo.to_dict())
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    return path
