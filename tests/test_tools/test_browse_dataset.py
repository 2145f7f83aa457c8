"""tools/browse_dataset.py: pictures of samples with their ground truth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., Any]


def test_draws_the_first_samples(run: Run, segmentation: Path) -> None:
    outcome = run('browse_dataset', segmentation, '--out', 'out', '--number', 3)
    assert outcome.code == 0
    assert 'pictures: out (3 of 4)' in outcome.out
    assert len(list(Path('out').glob('*.png'))) == 3


def test_phases(run: Run, segmentation: Path) -> None:
    for phase, size in (('original', (40, 32)), ('transformed', (32, 26))):
        argv = ('--mode', 'val', '--phase', phase, '--out', phase)
        assert run('browse_dataset', segmentation, *argv).code == 0
        assert Image.open(f'{phase}/000000.png').size == size


@pytest.mark.parametrize('normalised', [False, True])
def test_colours_are_those_of_the_file(run: Run, segmentation: Path, normalised: bool) -> None:
    # Nearly transparent labels leave the picture's own colours to compare.
    text = segmentation.read_text() + "visualizer = dict(type='SegLocalVisualizer', alpha=0.0)\n"
    if normalised:
        text = text.replace(
            "    dict(type='RandomFlip', prob=0.5),\n",
            "    dict(type='Normalize', mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0]),\n",
        )
    else:
        text = text.replace('prob=0.5', 'prob=0.0')
    segmentation.write_text(text)
    Image.new('RGB', (40, 32), (250, 130, 10)).save('scenes/images/0.png')
    Image.new('L', (40, 32), 255).save('scenes/labels/0.png')  # ignored: nothing is drawn
    assert run('browse_dataset', segmentation, '--out', 'out', '--number', 1).code == 0
    drawn = np.asarray(Image.open('out/000000.png').convert('RGB')).reshape(-1, 3).astype(int)
    assert np.abs(drawn - [250, 130, 10]).max() <= 1


def test_ground_truth_is_drawn(run: Run, segmentation: Path) -> None:
    Image.new('RGB', (40, 32), (0, 0, 0)).save('scenes/images/0.png')
    Image.new('L', (40, 32), 2).save('scenes/labels/0.png')  # sand: palette red
    argv = ('--out', 'out', '--number', 1, '--mode', 'test', '--phase', 'original')
    assert run('browse_dataset', segmentation, *argv).code == 0
    drawn = np.asarray(Image.open('out/000000.png').convert('RGB')).reshape(-1, 3)
    red, green, blue = drawn[0].astype(int)
    assert red > 100
    assert green < 30
    assert blue < 30


def test_complaints(run: Run, segmentation: Path) -> None:
    outcome = run('browse_dataset', segmentation, '--out', 'out', '--number', 0)
    assert outcome.code == 2
    assert '--number must be 1 or more' in outcome.sentence
    option = ('--cfg-options', 'val_dataloader=None', 'val_cfg=None', 'val_evaluator=None')
    outcome = run('browse_dataset', segmentation, '--out', 'out', '--mode', 'val', *option)
    assert 'has no val_dataloader, which --mode val needs' in outcome.sentence
    Path('scenes/labels/1.png').write_text('no label')
    outcome = run('browse_dataset', segmentation, '--out', 'out')
    assert outcome.sentence.startswith('scenes/labels/1.png cannot be loaded (')
    for folder in ('images', 'labels'):
        for file in Path('scenes', folder).iterdir():
            file.unlink()
    sentence = run('browse_dataset', segmentation, '--out', 'out').sentence
    assert "data_prefix.img_path is 'images'" in sentence
    assert 'holds no *.png' in sentence
