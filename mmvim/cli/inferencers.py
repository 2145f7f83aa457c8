"""The libraries' own inferencers, with weights that fit exactly, and their results as files."""

import importlib
import json
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

from mmvim.checkpoints.strict import load_strictly
from mmvim.cli.pictures import build_visualizer, dataset_meta
from mmvim.datasets.pipelines import pipeline_owner
from mmvim.errors import UserError

_INFERENCERS = {
    'mmseg': 'MMSegInferencer',
    'mmdet': 'DetInferencer',
    'mmpretrain': 'ImageClassificationInferencer',
}
LABELS = 'labels'
JSON_LINES = 'predictions.jsonl'


class Predictor:
    """Predicts on image files and writes what it finds.

    Args:
        cfg (Config): Of mmseg, mmdet or mmpretrain.
        args (Namespace): Of the tool: ``config``, ``checkpoint``, ``device`` and ``out``.
        checkpoint (Mapping): The content of the checkpoint.

    Raises:
        UserError: If there is no inferencer for the config, or the checkpoint does not fit.
    """

    def __init__(self, cfg: Config, args: Namespace, checkpoint: Mapping[str, Any]) -> None:
        self.scope = str(cfg.get('default_scope'))
        if self.scope not in _INFERENCERS:
            raise UserError(
                f'{args.config} has default_scope={self.scope!r}: predicting takes the inferencer '
                f'of {", ".join(_INFERENCERS)}'
            )
        meta = dataset_meta(cfg, checkpoint)
        build_visualizer(cfg, args.config, meta)  # a sentence where the libraries assert
        cfg.test_dataloader.dataset = pipeline_owner(cfg.test_dataloader.dataset, 'predicting')
        if cfg.get('data_preprocessor') is not None:  # as the runner does
            cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        build = getattr(importlib.import_module(f'{self.scope}.apis'), _INFERENCERS[self.scope])
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # nothing is loaded, they say: the next line does so
            none = {'pretrained': False} if self.scope == 'mmpretrain' else {'weights': None}
            self.inferencer: Any = build(model=cfg, device=str(args.device), **none)
        load_strictly(self.inferencer.model, checkpoint, f'checkpoint {args.checkpoint}')
        self.classes = self.inferencer.classes = meta.get('classes')
        self.inferencer.show_progress = False
        if self.scope == 'mmpretrain':
            progress: Any = importlib.import_module('mmpretrain.utils.progress')
            progress.disable_progress_bar = True
        else:
            kept = {key: meta.get(key) for key in ('classes', 'palette')}
            self.inferencer.model.dataset_meta = self.inferencer.visualizer.dataset_meta = kept
        self.out: Path = args.out
        self.written: dict[str, Path] = {}

    def __call__(self, image: Path, name: str) -> None:
        """Write the picture with the prediction drawn in, and the prediction.

        ``NAME.png`` is the picture; ``labels/NAME.png`` holds the class index of every pixel (8
        bits, or 16 where one is above 255); ``predictions.jsonl`` one line for each image.

        Args:
            image (Path): The file.
            name (str): For the results.
        """
        drawn = self.out / f'{name}.png'
        if self.scope == 'mmpretrain':
            # It names the picture by what precedes the first dot, which two images may share.
            with tempfile.TemporaryDirectory(dir=self.out) as aside:
                (found,) = self.inferencer(str(image), show_dir=aside)
                next(Path(aside).iterdir()).replace(drawn)
            record = dict(label=found['pred_label'], score=found['pred_score'])
            if self.classes:
                record['class'] = self.classes[found['pred_label']]
            self._add_line(image, record)
            return
        found = self.inferencer(str(image), return_vis=True)
        picture, predictions = found['visualization'], found['predictions']
        if self.scope == 'mmdet':
            (picture,), (record,) = picture, predictions
            if self.classes:
                record['classes'] = [self.classes[label] for label in record.get('labels', ())]
            self._add_line(image, record)
        else:
            folder = self.written[LABELS] = self.out / LABELS
            folder.mkdir(exist_ok=True)
            dtype = np.uint8 if predictions.max(initial=0) < 256 else np.uint16
            Image.fromarray(predictions.astype(dtype)).save(folder / f'{name}.png')
        Image.fromarray(picture).save(drawn)

    def _add_line(self, image: Path, record: dict[str, Any]) -> None:
        file = self.out / JSON_LINES
        with file.open('a' if JSON_LINES in self.written else 'w', encoding='utf-8') as lines:
            lines.write(json.dumps({'image': str(image), **record}) + '\n')
        self.written[JSON_LINES] = file
