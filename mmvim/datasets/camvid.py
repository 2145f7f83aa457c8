"""CamVid in SegNet's version: 480×360 street scenes of 11 classes."""

from mmseg.datasets import BaseSegDataset

from mmvim.registry import DATASETS

CLASSES = (
    'Sky',
    'Building',
    'Pole',
    'Road',
    'Pavement',
    'Tree',
    'SignSymbol',
    'Fence',
    'Car',
    'Pedestrian',
    'Bicyclist',
)
PALETTE = [
    [128, 128, 128],
    [128, 0, 0],
    [192, 192, 128],
    [128, 64, 128],
    [60, 40, 222],
    [128, 128, 0],
    [192, 128, 128],
    [64, 64, 128],
    [64, 0, 128],
    [64, 64, 0],
    [0, 128, 192],
]


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """CamVid as ``tools/dataset_converters/camvid.py`` writes it.

    Brostow, Fauqueur, Cipolla, *Semantic Object Classes in Video*, Pattern Recognition Letters
    2009, in the version of Badrinarayanan, Kendall, Cipolla, *SegNet*, PAMI 2017: 367 training,
    101 validation and 233 test images of 480×360 pixels, 11 classes; unlabelled pixels are 255.

    Args:
        img_suffix (str): Of the images. Defaults to '.png'.
        seg_map_suffix (str): Of the label images. Defaults to '.png'.
        **kwargs: Arguments of mmseg's ``BaseSegDataset``; ``data_prefix`` names the split.
    """

    METAINFO = dict(classes=CLASSES, palette=PALETTE)

    def __init__(
        self, img_suffix: str = '.png', seg_map_suffix: str = '.png', **kwargs: object
    ) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)
