"""Run a trained model on your own pictures; write them with the prediction drawn in."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from PIL import Image

from mmvim.cli.arguments import ToolParser
from mmvim.cli.pictures import (
    build_visualizer,
    dataset_meta,
    draw,
    each_picture,
    find_images,
    raise_failed,
    read_item,
)
from mmvim.cli.prepare import load_model, prepare
from mmvim.cli.run_tool import run_tool
from mmvim.datasets.instance_masks import number_masks
from mmvim.datasets.pipelines import pipeline_owner
from mmvim.errors import UserError

DRAWN_SCORE = 0.3  # of an instance, default of mmdet's visualizer
LABELS = 'labels'
JSON_LINES = 'predictions.jsonl'


def refuse_own_input(images: Mapping[Path, str], out: Path) -> None:
    """Fail if a result would take the place of a picture that is read."""
    inputs = {image.resolve() for image in images}
    for name in images.values():
        for file in (out / f'{name}.png', out / LABELS / f'{name}.png'):
            if file.resolve() in inputs:
                raise UserError(f'--out {out} would overwrite {file}: give another folder')


def label_image(sample: Any) -> np.ndarray | None:
    """The class index of every pixel, or the number of the instance that covers it.

    Returns:
        np.ndarray, optional: (H, W). Indices have 8 bits, or 16 where one is above 255. Numbers
        have 16 bits, 0 is background, and n is the n-th prediction, the more certain one where
        two overlap; those that are not drawn are left out. None without masks.
    """
    if 'pred_sem_seg' in sample:
        labels = sample.pred_sem_seg.data[0].numpy()
        return labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16)
    found = sample.get('pred_instances', {})
    if 'masks' not in found:
        return None
    return number_masks(found.masks[found.scores > DRAWN_SCORE].numpy().astype(bool))


def to_record(sample: Any, classes: Sequence[str] | None) -> dict[str, Any]:
    """A line for an image: its class, or boxes, scores and masks as mmdet writes them."""
    if 'pred_label' in sample:
        label = int(sample.pred_label)
        record = dict(label=label, score=float(sample.pred_score[label]))
        return dict(record, **({'class': classes[label]} if classes else {}))
    from mmdet.apis import DetInferencer

    record = DetInferencer.pred2dict(None, sample)  # reads nothing of the inferencer
    if classes:
        record['classes'] = [classes[label] for label in record.get('labels', ())]
    return record


def main(argv: Sequence[str] | None = None) -> None:
    """Predict image by image; those that fail are named, and the others done."""
    parser = ToolParser('Predict on pictures that need no ground truth.')
    parser.add_checkpoint()
    parser.add_pictures()
    parser.add_out('the pictures and the predictions')
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    images = find_images(args.images)
    refuse_own_input(images, args.out)
    cfg, checkpoint = prepare(args, 'predicting', 'model', 'test_dataloader')
    pipeline = pipeline_owner(cfg.test_dataloader.dataset, 'predicting').pipeline
    meta = dataset_meta(cfg, checkpoint)
    visualizer = build_visualizer(cfg, args.config, meta)
    model = load_model(cfg, args, checkpoint)
    written: dict[str, Path] = {}

    @torch.no_grad()
    def predict(image: Path) -> None:
        item, picture = read_item(pipeline, image)
        sample = model.test_step(pseudo_collate([item]))[0].cpu()
        if 'pred_instances' in sample:  # the most certain first
            found = sample.pred_instances
            sample.pred_instances = found[found.scores.argsort(descending=True, stable=True)]
        labels = label_image(sample)
        if labels is not None:
            written[LABELS] = args.out / LABELS
            written[LABELS].mkdir(exist_ok=True)
            Image.fromarray(labels).save(written[LABELS] / f'{images[image]}.png')
        if 'pred_sem_seg' not in sample:
            record = dict(image=str(image), **to_record(sample, meta.get('classes')))
            mode = 'a' if JSON_LINES in written else 'w'
            written[JSON_LINES] = args.out / JSON_LINES
            with written[JSON_LINES].open(mode, encoding='utf-8') as lines:
                lines.write(json.dumps(record) + '\n')
        draw(visualizer, picture, sample, args.out / f'{images[image]}.png')

    failed = each_picture(images, predict, 'predicting')
    print(f'pictures: {args.out} ({len(images) - len(failed)})')
    for what, place in written.items():
        print(f'{what}: {place}')
    raise_failed(failed, len(images))


if __name__ == '__main__':
    sys.exit(run_tool(main))
