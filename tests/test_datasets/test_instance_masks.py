"""Label images and outlines of instances, and the reading of microscope pictures."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.registry import METRICS, TRANSFORMS, VISUALIZERS
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from repository import load_config

from mmvim.datasets.instance_masks import draw_outlines, number_masks
from mmvim.datasets.registered import NucleiDataset, OutlineVisualizer, To8BitBGR

pytestmark = pytest.mark.stack
MASKS = np.zeros((2, 12, 14), bool)
MASKS[0, 2:8, 2:8] = MASKS[1, 4:10, 4:12] = True


def test_numbers() -> None:
    numbers = number_masks(MASKS)
    assert numbers.dtype == np.uint16
    assert np.array_equal(numbers == 1, MASKS[0])  # the first lies on top
    assert np.array_equal(numbers == 2, MASKS[1] & ~MASKS[0])
    assert not number_masks(MASKS[:0]).any()


def test_outlines_leave_the_picture_visible() -> None:
    image = np.random.default_rng(0).integers(256, size=(12, 14, 3), dtype=np.uint8)
    numbers = number_masks(MASKS)
    drawn = draw_outlines(image, numbers)
    assert np.array_equal(drawn[numbers == 0], image[numbers == 0])
    first, second = drawn[2, 2], drawn[9, 11]
    assert (drawn[2, 2:8] == first).all() and (drawn[9, 4:12] == second).all()
    assert np.abs(first.astype(int) - second).max() > 50
    inside = np.abs(drawn[3:5, 3:5].astype(int) - image[3:5, 3:5])
    assert 0 < inside.max() <= 51
    assert np.array_equal(draw_outlines(image, np.zeros_like(numbers)), image)


@pytest.mark.parametrize('truth', [True, False])
def test_the_visualizer_draws_masks_alone(truth: bool, tmp_path: Path) -> None:
    visualizer = VISUALIZERS.build(dict(type='mmvim.OutlineVisualizer', name=str(tmp_path)))
    assert isinstance(visualizer, OutlineVisualizer)
    boxes, sample = torch.tensor([[2.0, 2, 8, 8], [4, 4, 12, 10]]), DetDataSample()
    found = InstanceData(bboxes=boxes, labels=torch.zeros(2, dtype=torch.long))
    if truth:
        found.masks = BitmapMasks(MASKS, 12, 14)
        sample.gt_instances = found
    else:
        found.masks, found.scores = torch.from_numpy(MASKS), torch.tensor([0.9, 0.2])
        sample.pred_instances = found
    image, file = np.full((12, 14, 3), 90, np.uint8), tmp_path / 'drawn.png'
    visualizer.add_datasample(
        'x', image, sample, draw_gt=truth, draw_pred=not truth, out_file=str(file)
    )
    expected = draw_outlines(image, number_masks(MASKS if truth else MASKS[:1]))
    assert np.array_equal(cv2.imread(str(file))[..., ::-1], expected)


def test_what_the_metric_counts(tmp_path: Path) -> None:
    """AP counts 100 detections an image, AP50 and the AP of the class 1,000."""
    count, size = 150, (32, 64)
    masks = np.zeros((count, *size), bool)
    for number in range(count):
        row, column = 2 * (number // 30), 2 * (number % 30)
        masks[number, row : row + 1, column : column + 2] = True
    packed = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
    boxes = coco_mask.toBbox(packed)
    annotations = [
        dict(
            id=number + 1,
            image_id=1,
            category_id=1,
            iscrowd=0,
            area=2,
            bbox=boxes[number].tolist(),
            segmentation=dict(rle, counts=rle['counts'].decode()),
        )
        for number, rle in enumerate(packed)
    ]
    categories = [dict(id=1, name='nucleus')]
    images = [dict(id=1, file_name='a.png', height=size[0], width=size[1])]
    file = tmp_path / 'instances.json'
    file.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    evaluator = load_config('_base_/datasets/nuclei.py').val_evaluator
    metric = METRICS.build(dict(evaluator, ann_file=str(file)))
    metric.dataset_meta = NucleiDataset.METAINFO
    corners = torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
    found = dict(
        bboxes=corners,
        scores=torch.linspace(1, 0.1, count),
        labels=torch.zeros(count, dtype=torch.long),
        masks=torch.from_numpy(masks),
    )
    metric.process({}, [dict(img_id=1, ori_shape=size, pred_instances=found)])
    values = metric.evaluate(1)
    for kind in ('bbox', 'segm'):
        assert values[f'coco/{kind}_mAP'] == pytest.approx(100 / count, abs=0.01)
        assert values[f'coco/{kind}_mAP_50'] == 1
    assert values['coco/nucleus_precision'] == 1


def test_pictures_of_all_depths_are_read(tmp_path: Path) -> None:
    """A camera of 12 bits, whose upper 8 of 16 bits hold 16 shades."""
    steps = load_config('_base_/datasets/nuclei.py').test_pipeline[:2]
    load, convert = (TRANSFORMS.build(step) for step in steps)
    assert isinstance(convert, To8BitBGR)
    shades = np.linspace(100, 4000, 1200).round().reshape(30, 40)
    shades[0, 0] = 65535  # a hot pixel
    eight = (shades % 256).astype(np.uint8)
    colours = np.dstack([eight, eight // 2, 255 - eight])
    pictures = {
        'grey.tif': shades.astype(np.uint16),
        'float.tif': shades.astype(np.float32) / 65535,
        'colour.tif': np.dstack([shades] * 3).astype(np.uint16),
        'grey.png': eight,
        'colour.png': colours,
        'alpha.png': np.dstack([colours, np.full_like(eight, 255)]),
    }
    for name, pixels in pictures.items():
        file = tmp_path / name
        assert cv2.imwrite(str(file), pixels)
        image = convert(load(dict(img_path=str(file))))['img']
        assert image.shape == (30, 40, 3) and image.dtype == np.uint8
        if name.endswith('.png'):
            assert np.array_equal(image, cv2.imread(str(file)))
        else:
            assert image.min() == 0 and image.max() == 255 and abs(image.mean() - 127.5) < 3
