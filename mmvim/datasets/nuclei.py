"""Nuclei of the 2018 Data Science Bowl, and what helps with microscope pictures like them."""

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.datasets import CocoDataset
from mmdet.visualization import DetLocalVisualizer

from mmvim.datasets.instance_masks import draw_outlines, number_masks
from mmvim.registry import DATASETS, TRANSFORMS, VISUALIZERS

_PERCENTILES = (0.1, 99.9)  # single hot pixels set no range


@DATASETS.register_module()
class NucleiDataset(CocoDataset):
    """Nuclei as ``tools/dataset_converters/nuclei.py`` writes them, COCO JSON with RLE masks.

    Caicedo et al., *Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl*,
    Nature Methods 16, 2019 (BBBC038v1, stage1_train): 664 microscope pictures, CC0.
    """

    METAINFO = dict(classes=('nucleus',), palette=[(0, 158, 115)])


@TRANSFORMS.register_module()
class To8BitBGR(BaseTransform):
    """Brings ``img`` of any depth and any channels, as microscopes write it, to 8 bits and three.

    More than 8 bits are stretched to their own range: a camera of 12 bits fills a sixteenth of 16,
    so that the upper 8 of these, which is what loaders of 8 bits take, are black. Of 8 bits the
    values stay. Grey is repeated, and of more than three channels the first three are taken.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Map the 0.1th percentile to 0 and the 99.9th to 255."""
        image = np.atleast_3d(results['img'])
        image = image[..., :3] if image.shape[2] > 2 else image[..., [0, 0, 0]]
        if image.dtype != np.uint8:
            image = np.nan_to_num(image.astype(np.float32))
            low, high = np.percentile(image, _PERCENTILES)
            image = ((image - low) * (255 / max(high - low, 1e-6))).clip(0, 255)
        return dict(results, img=np.ascontiguousarray(image, np.uint8))


@VISUALIZERS.register_module()
class OutlineVisualizer(DetLocalVisualizer):
    """mmdet's visualizer with outlines of the masks alone.

    Its boxes and a label for each would hide a picture of 300 nuclei, and no option leaves them
    out.
    """

    def _draw_instances(
        self, image: np.ndarray, instances: Any, classes: Any, palette: Any
    ) -> np.ndarray:
        if 'masks' not in instances:
            return super()._draw_instances(image, instances, classes, palette)
        masks = instances.masks
        masks = masks.to_ndarray() if hasattr(masks, 'to_ndarray') else np.asarray(masks)
        return draw_outlines(image, number_masks(masks.astype(bool)))
