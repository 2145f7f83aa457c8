"""The parts of the demo of classification that decide: what counts, what passes, what is drawn."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from rich.console import Console

from mmvim.datasets.patterns import TEXTURE_CLASSES
from mmvim.datasets.patterns.linear_baselines import BaselineResult

pytest.importorskip('mmpretrain')

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo(monkeypatch, tmp_path):
    """The demo, its repository an empty folder."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'demos'))
    import classification as module

    monkeypatch.setattr(module, 'ROOT', tmp_path)
    return module


@pytest.fixture
def classes(demo):
    return list(Config.fromfile(ROOT / demo.CONFIG).metainfo.classes)


def linear(top1):
    return BaselineResult(TEXTURE_CLASSES, (top1,) * 8, top1, {'penalty 1': top1})


def counts(right, of=25):
    """25 images of each of 8 classes, ``right`` of each recognised, the others one class off."""
    matrix = right * torch.eye(8, dtype=torch.long)
    return matrix + (of - right) * torch.eye(8, dtype=torch.long).roll(1, dims=1)


def write_predictions(folder, right):
    samples = []
    for label in range(8):
        for number in range(5):
            path = f'{label}-{number}.png'
            cv2.imwrite(str(folder / path), np.full((16, 16, 3), 30 * label, np.uint8))
            predicted = label if number < right else (label + 1) % 8
            score = torch.full((8,), 0.05)
            score[predicted] = 0.65
            samples.append(
                dict(
                    img_path=path,
                    gt_label=torch.tensor([label]),
                    pred_label=torch.tensor([predicted]),
                    pred_score=score,
                )
            )
    (folder / 'predictions.pkl').write_bytes(pickle.dumps(samples))
    return folder / 'predictions.pkl'


def test_config_and_generator_agree_on_the_classes(classes):
    assert tuple(classes) == TEXTURE_CLASSES


def test_confusion_counts_rows_of_true_classes(demo, tmp_path):
    matrix = demo.confusion(write_predictions(tmp_path, right=3), 8)
    assert matrix.tolist() == counts(3, of=5).tolist()
    assert demo.top1(matrix) == pytest.approx(60)


@pytest.mark.parametrize(
    'right, top1, found',
    [(20, 40.0, 0), (25, 12.5, 0), (19, 12.5, 1), (20, 40.5, 1), (0, 100.0, 2)],
)
def test_gate(demo, right, top1, found):
    assert len(demo.shortcomings(counts(right), linear(top1))) == found


def test_table_has_both_by_class(demo, classes):
    console = Console(record=True, width=100)
    matrix = counts(20)
    matrix[2] = torch.tensor([0, 0, 10, 15, 0, 0, 0, 0])
    console.print(demo.to_table(matrix, linear(15.5), classes))
    text = console.export_text()
    rows = {name: line for line in text.splitlines() for name in classes if name in line.split()}
    assert '80.0' in rows['blobs'] and '40.0' in rows['dots'] and '15.5' in rows['dots']
    assert '75.0' in text


def test_pictures(demo, classes, tmp_path):
    predictions = write_predictions(tmp_path, right=3)
    demo.draw_examples(predictions, classes, tmp_path / 'examples.png')
    demo.draw_confusion(counts(3, of=5), classes, tmp_path / 'confusion.png')
    examples = cv2.imread(str(tmp_path / 'examples.png'))
    red = (examples[..., 2] > 200) & (examples[..., 1] < 60) & (examples[..., 0] < 60)
    # The fourth of four images of each class is a mistake, and named in red.
    height = len(examples)
    assert red[3 * height // 4 :].any() and not red[: height // 2].any()
    assert cv2.imread(str(tmp_path / 'confusion.png')) is not None
