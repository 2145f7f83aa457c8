"""Predictions as plain files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image

from mmvim.cli.predictions import PredictionFiles, run_lengths


@pytest.mark.parametrize('seed', range(5))
def test_run_lengths_are_cocos(seed: int) -> None:
    mask_api = pytest.importorskip('pycocotools.mask')
    mask = np.random.default_rng(seed).random((7, 5)) < (0.0, 0.3, 0.5, 0.9, 1.1)[seed]
    rle = run_lengths(mask)
    compressed = mask_api.frPyObjects(dict(rle), 7, 5)
    assert np.array_equal(mask_api.decode(compressed).astype(bool), mask)


@pytest.mark.parametrize(('classes', 'dtype'), [(3, np.uint8), (300, np.uint16)])
def test_labels_keep_every_class(tmp_path: Path, classes: int, dtype: type) -> None:
    labels = torch.arange(12).reshape(1, 3, 4) % classes + (classes - 12 if classes > 12 else 0)
    sample = BaseDataElement(pred_sem_seg=PixelData(data=labels))
    files = PredictionFiles(tmp_path, [str(index) for index in range(classes)])
    files.add(sample, Path('in/a.jpg'), 'a')
    read = np.asarray(Image.open(tmp_path / 'labels' / 'a.png'))
    assert read.astype(int).tolist() == labels[0].tolist()
    assert read.dtype.itemsize >= np.dtype(dtype).itemsize
    assert files.written == {'labels': tmp_path / 'labels'}


def test_a_new_run_starts_the_json_lines_anew(tmp_path: Path) -> None:
    for _ in range(2):
        files = PredictionFiles(tmp_path, ['no', 'yes'])
        for name in ('a', 'b'):
            sample = BaseDataElement(
                pred_label=torch.tensor([1]), pred_score=torch.tensor([0.25, 0.75])
            )
            files.add(sample, Path(f'{name}.png'), name)
    lines = (tmp_path / 'predictions.jsonl').read_text().splitlines()
    assert lines == [
        '{"image": "a.png", "label": 1, "class": "yes", "score": 0.75}',
        '{"image": "b.png", "label": 1, "class": "yes", "score": 0.75}',
    ]


def test_nothing_predicted_writes_nothing(tmp_path: Path) -> None:
    files = PredictionFiles(tmp_path, None)
    files.add(BaseDataElement(), Path('a.png'), 'a')
    assert files.written == {}
    assert not list(tmp_path.iterdir())
