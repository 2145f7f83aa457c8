"""Every config of docs/own_dataset.md trains a step and is tested on files laid out as it says."""

import json
import os
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scaled_down
import scaled_down_classification
import scaled_down_detection
import torch
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS
from mmengine.runner import Runner
from PIL import Image
from repository import ROOT

from mmvim.cli.config import load_config
from mmvim.datasets.checked_loading import check_loading_of_run
from mmvim.errors import UserError

IoUMetric = pytest.importorskip('mmseg.evaluation').IoUMetric

pytestmark = pytest.mark.stack
TEXT = (ROOT / 'docs' / 'own_dataset.md').read_text()
FILES = dict(re.findall(r'^`(\w+\.py)`:\n\n```python\n(.*?)^```', TEXT, re.DOTALL | re.MULTILINE))
RANDOM = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page, in the working directory."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(pixels: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(file)


def write_scenes(root: Path, suffix: str = '.jpg', channels: int = 3, on: int = 1) -> None:
    """Masks with a bright object of label ``on``."""
    for split in ('train', 'val'):
        for number in range(2):
            mask = np.zeros((64, 80))
            mask[10:40, 20:60] = on
            pixels = RANDOM.integers(0, 60, (64, 80, channels)) + 150 * (mask > 0)[..., None]
            save(pixels, root / 'images' / split / f'{number}{suffix}')
            save(mask, root / 'masks' / split / f'{number}.png')


def write_coco(root: Path) -> None:
    """The annotations of the page, and the image that they speak of."""
    (block,) = re.findall(r'^```json\n(.*?)^```', TEXT, re.DOTALL | re.MULTILINE)
    (image,) = json.loads(block)['images']
    for split in ('train', 'val'):
        pixels = RANDOM.integers(0, 255, (image['height'], image['width'], 3))
        save(pixels, root / split / image['file_name'])
        (root / f'{split}.json').write_text(block)


def write_folders(root: Path) -> None:
    for split in ('train', 'val'):
        for name in ('cat', 'dog'):
            for number in range(2):
                pixels = RANDOM.integers(0, 255, (70, 80, 3))
                save(pixels, root / split / name / f'{number}.jpg')


def run(
    name: str, folder: Path, shrink: Callable[[Config, Path], None] = scaled_down.shrink
) -> tuple[Config, Runner, dict[str, float]]:
    """Train one step of a config, and test; its sizes are divided, its data stay its own."""
    cfg = load_config(name)
    loaders = [cfg[f'{split}_dataloader'] for split in ('train', 'val', 'test')]
    roots = [loader.dataset.data_root for loader in loaders]
    batch_size, evaluator = loaders[0].batch_size, dict(cfg.test_evaluator)
    shrink(cfg, folder)
    for norm in (part.get('norm_cfg', {}) for part in cfg.model.values() if isinstance(part, dict)):
        norm.update({'num_groups': 8} if 'num_groups' in norm else {})  # of fewer channels
    loaders[0].batch_size = min(batch_size, 2)
    for loader, root in zip(loaders, roots):
        assert Path(root).is_dir() and not os.path.isabs(root)
        loader.dataset.data_root = root
    for part in (cfg.val_evaluator, cfg.test_evaluator):
        part.update({key: evaluator[key] for key in ('ann_file',) if key in evaluator})
    runner = Runner.from_cfg(cfg)
    runner.train()
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) >= 1 and np.isfinite(losses).all()
    return cfg, runner, runner.test()


def test_every_python_block_has_a_name_and_a_test() -> None:
    assert len(FILES) == TEXT.count('```python')
    source = Path(__file__).read_text()
    assert all(f"'{name}'" in source for name in FILES)


def test_segmentation(folder: Path) -> None:
    write_scenes(folder / 'data/cracks')
    cfg, runner, metrics = run('cracks.py', folder)
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 2
    dataset = runner.train_dataloader.dataset
    assert dataset.metainfo['classes'] == ('background', 'crack') and len(dataset) == 2
    assert 'mIoU' in metrics


def test_masks_of_0_and_255(folder: Path) -> None:
    """What the page says of them, and that the script mends it."""

    def labels() -> set[int]:
        cfg = load_config('cracks.py')
        dataset = Runner.build_dataloader(cfg.val_dataloader, seed=0).dataset
        return set(dataset[0]['data_samples'].gt_sem_seg.data.unique().tolist())

    write_scenes(folder / 'data/cracks', on=255)
    assert labels() == {0, 255}
    mask = torch.from_numpy(np.array(Image.open('data/cracks/masks/val/0.png')).astype(np.int64))
    areas = IoUMetric.intersect_and_union(torch.zeros_like(mask), mask, 2, 255)
    assert np.nanmean(IoUMetric.total_area_to_metrics(*areas, ['mIoU'])['IoU']) == 1
    tool = SimpleNamespace(cfg=load_config('cracks.py'), build_dataloader=Runner.build_dataloader)
    check_loading_of_run(tool)
    for split in ('train', 'val'):
        with pytest.raises(UserError, match=r'\[255\] is ignored: nothing could'):
            tool.build_dataloader(tool.cfg[f'{split}_dataloader'], seed=0)
    runpy.run_path('renumber_masks.py')
    tool.build_dataloader(tool.cfg.train_dataloader, seed=0)
    assert labels() == {0, 1}


def test_detection(folder: Path) -> None:
    write_coco(folder / 'data/nuts')
    _, runner, metrics = run('nuts.py', folder, scaled_down_detection.shrink)
    dataset = runner.train_dataloader.dataset
    assert dataset.cat2label == {1: 0, 2: 1}
    assert dataset.get_data_info(0)['instances'][0]['bbox'] == [10, 8, 50, 40]
    assert 'coco/bbox_mAP' in metrics and 'coco/segm_mAP' in metrics


def test_classification(folder: Path) -> None:
    write_folders(folder / 'data/pets')
    _, runner, metrics = run('pets.py', folder, scaled_down_classification.shrink)
    dataset = runner.train_dataloader.dataset
    assert sorted(dataset.get_gt_labels().tolist()) == [0, 0, 1, 1]
    assert dataset.get_data_info(0)['img_path'].split('/')[-2] == 'cat'
    assert list(metrics) == ['accuracy/top1']


def test_channels(folder: Path) -> None:
    write_scenes(folder / 'data/cracks', suffix='.png', channels=4)

    def shrink(cfg: Config, folder: Path) -> None:
        scaled_down.shrink(cfg, folder)
        preprocessor = MODELS.get('mmseg.SegDataPreProcessor')
        if issubclass(preprocessor, ImgDataPreprocessor):  # the onedl fork's
            with pytest.raises(AssertionError, match='should have 1 or 3 values'):
                preprocessor(mean=[1.0] * 4, std=[1.0] * 4)
            cfg.model.data_preprocessor.update(mean=[96.0], std=[47.0])

    _, runner, metrics = run('bands.py', folder, shrink)
    assert runner.train_dataloader.dataset[0]['inputs'].shape[0] == 4
    assert runner.model.backbone.patch_embed.projection.in_channels == 4 and 'mIoU' in metrics


def test_epochs(folder: Path) -> None:
    write_scenes(folder / 'data/cracks')
    _, runner, _ = run('cracks_epochs.py', folder)
    assert (runner.epoch, runner.iter) == (1, 1)
    assert (folder / 'work_dir' / 'epoch_1.pth').is_file()
    schedules = runner.param_schedulers
    assert len(schedules) == 2 and not any(schedule.by_epoch for schedule in schedules)


def test_batch_1(folder: Path) -> None:
    write_scenes(folder / 'data/cracks')
    cfg, runner, _ = run('cracks_batch_1.py', folder)
    assert runner.train_dataloader.batch_size == 1
    norms: Any = [cfg.model[part].norm_cfg for part in ('neck', 'decode_head', 'auxiliary_head')]
    assert all(norm.type == 'GN' for norm in norms)
    plain = load_config('cracks.py')
    plain.train_dataloader.batch_size = 1
    scaled_down.shrink(plain, folder)
    plain.train_dataloader.batch_size = 1
    for loader in (plain.train_dataloader, plain.val_dataloader, plain.test_dataloader):
        loader.dataset.data_root = 'data/cracks'
    with pytest.raises(ValueError, match='Expected more than 1 value per channel when training'):
        Runner.from_cfg(plain).train()
