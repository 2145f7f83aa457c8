"""A forward pass of any OpenMMLab model on bare images: no data samples, no post-processing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mmengine.model import BaseModel
from torch import Tensor, nn


def image_forward(model: Any, images: Tensor) -> Any:
    """Everything a model computes for images at test time, up to its scores, boxes and masks.

    Segmentors include resizing the scores to the image.

    Args:
        model (nn.Module): A segmentor, detector, classifier, any model of mmengine, or any other
            module of images, such as a backbone.
        images (Tensor): (B, C, H, W), preprocessed.
    """
    if not isinstance(model, BaseModel):
        return model(images)
    size = tuple(images.shape[-2:])
    keys = ('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape')
    about: dict[str, Any] = dict.fromkeys(keys, size)
    if hasattr(model, 'encode_decode'):
        return model.encode_decode(images, [about] * len(images))
    if not type(model).__module__.startswith('mmdet.'):
        return model(images, mode='tensor')
    from mmdet.structures import DetDataSample

    about['scale_factor'] = (1.0, 1.0)
    samples = [DetDataSample(metainfo=about) for _ in images]
    return model(images, samples, mode='tensor')


class Region(NamedTuple):
    """A head of a second stage."""

    kind: str  # 'boxes' or 'masks'
    number: int  # the most regions an image that the test settings let it see
    head: Any
    extractor: Any  # of their features


def region_heads(model: Any) -> list[Region]:
    """Heads of Mask R-CNN and Cascade R-CNN, which depend on what the first stage finds.

    Empty for any model that is more than two stages, or whose heads need more than regions.
    """
    roi_head = getattr(model, 'roi_head', None)
    known = {'data_preprocessor', 'backbone', 'neck', 'rpn_head', 'roi_head'}
    if roi_head is None or not {name for name, _ in model.named_children()} <= known:
        return []
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead

    if type(roi_head) not in (StandardRoIHead, CascadeRoIHead) or not model.with_rpn:
        return []
    numbers = dict(bbox=model.test_cfg.rpn.max_per_img, mask=model.test_cfg.rcnn.max_per_img)
    return [
        Region(what, numbers[kind], head, extractor)
        for kind, what in (('bbox', 'boxes'), ('mask', 'masks'))
        if getattr(roi_head, f'with_{kind}')
        for head, extractor in zip(
            _listed(getattr(roi_head, f'{kind}_head')),
            _listed(getattr(roi_head, f'{kind}_roi_extractor')),
        )
    ]


def run_on_regions(model: Any, images: Tensor, regions: Sequence[Region]) -> None:
    """Run a detector of two stages, the second on features without content.

    It needs no numbers, so that it runs on meta tensors.
    """
    features = model.extract_feat(images)
    model.rpn_head(features)
    for _, number, head, extractor in regions:
        shape = (len(images) * number, extractor.out_channels, *extractor.roi_layers[0].output_size)
        region = features[0].new_empty(shape)
        head(model.roi_head.shared_head(region) if model.roi_head.with_shared_head else region)


def _listed(module: Any) -> list[Any]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]
