"""Nuclei of the 2018 Data Science Bowl: instance segmentation with one class."""

from mmdet.datasets import CocoDataset

from mmvim.registry import DATASETS


@DATASETS.register_module()
class NucleiDataset(CocoDataset):
    """Nuclei as ``tools/dataset_converters/nuclei.py`` writes them, COCO JSON with RLE masks.

    Caicedo et al., *Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl*,
    Nature Methods 16, 2019 (BBBC038v1, stage1_train): 664 microscope pictures, CC0.
    """

    METAINFO = dict(classes=('nucleus',), palette=[(0, 158, 115)])
