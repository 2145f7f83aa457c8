"""Predictions in plain files: label PNGs for segmentation, JSON lines for the rest."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

LABEL_FOLDER = 'labels'
JSON_FILE = 'predictions.jsonl'


class PredictionFiles:
    """Writes what a data sample predicts, as plain files under one folder.

    Args:
        folder: Exists. ``labels/<name>.png`` holds the class index of every pixel (8 bits, or 16
            where there are more than 256 classes), ``predictions.jsonl`` one image a line.
        classes: Class names, by index; where missing, indices alone are written.
    """

    def __init__(self, folder: Path, classes: Sequence[str] | None) -> None:
        self.folder = folder
        self.classes = classes
        self.written: dict[str, Path] = {}

    def add(self, sample: Any, image: Path, name: str) -> None:
        """Write the predictions of one image.

        Args:
            sample: The library's data sample.
            image: The file it belongs to.
            name: For the files, without suffix.
        """
        if 'pred_sem_seg' in sample:
            self._add_labels(sample.pred_sem_seg.data, name)
        record: dict[str, Any] = {}
        if 'pred_instances' in sample:
            record['instances'] = self._instances(sample.pred_instances)
        if 'pred_label' in sample:
            record.update(self._classification(sample))
        if record:
            path = self.folder / JSON_FILE
            with path.open('a' if JSON_FILE in self.written else 'w', encoding='utf-8') as file:
                file.write(json.dumps({'image': str(image), **record}) + '\n')
            self.written[JSON_FILE] = path

    def _add_labels(self, labels: torch.Tensor, name: str) -> None:
        """``labels``: (1, H, W) class indices."""
        folder = self.folder / LABEL_FOLDER
        folder.mkdir(exist_ok=True)
        pixels = labels.squeeze(0).cpu().numpy()
        wide = len(self.classes or ()) > 256 or pixels.max(initial=0) > 255
        Image.fromarray(pixels.astype(np.uint16 if wide else np.uint8)).save(folder / f'{name}.png')
        self.written[LABEL_FOLDER] = folder

    def _instances(self, instances: Any) -> list[dict[str, Any]]:
        """Boxes as (x1, y1, x2, y2) in pixels, masks as COCO's uncompressed run lengths."""
        held = instances.cpu()
        found = []
        for index in range(len(held)):
            entry = self._named(int(held.labels[index]))
            if 'scores' in held:
                entry['score'] = float(held.scores[index])
            if 'bboxes' in held:
                entry['bbox'] = [float(value) for value in held.bboxes[index]]
            if 'masks' in held:
                entry['mask'] = run_lengths(np.asarray(held.masks[index], dtype=bool))
            found.append(entry)
        return found

    def _classification(self, sample: Any) -> dict[str, Any]:
        labels = [int(label) for label in sample.pred_label.reshape(-1)]
        scores = sample.pred_score.reshape(-1) if 'pred_score' in sample else None
        records = [
            {**self._named(label), **({} if scores is None else {'score': float(scores[label])})}
            for label in labels
        ]
        return records[0] if len(records) == 1 else {'labels': records}

    def _named(self, label: int) -> dict[str, Any]:
        if self.classes is not None and label < len(self.classes):
            return {'label': label, 'class': self.classes[label]}
        return {'label': label}


def run_lengths(mask: np.ndarray) -> Mapping[str, list[int]]:
    """COCO's uncompressed RLE of a boolean (H, W) mask: runs down the columns, background first."""
    pixels = mask.ravel(order='F')
    edges = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff(np.concatenate([[0], edges, [pixels.size]])).tolist()
    if pixels.size and pixels[0]:
        counts = [0, *counts]
    return {'size': list(mask.shape), 'counts': counts}
