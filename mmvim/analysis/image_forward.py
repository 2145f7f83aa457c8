"""A forward pass of any OpenMMLab model on bare images: no data samples, no post-processing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


class ImageForward(nn.Module):
    """Everything a model computes for an image at test time, up to its scores, boxes and masks.

    Segmentors include resizing the scores to the image. The second stage of Mask R-CNN and Cascade
    R-CNN depends on what the first one finds; with ``proposals`` it runs on as many regions as the
    test settings allow, on features without content, so that the pass works on meta tensors too.

    Args:
        model (nn.Module): A segmentor, detector, classifier, or any model of mmengine.
        proposals (bool): Whether to stand in for the regions. Defaults to True.
    """

    def __init__(self, model: nn.Module, proposals: bool = True) -> None:
        super().__init__()
        self.model: Any = model
        self.proposals = proposals and _has_simple_regions(model)

    def forward(self, images: Tensor) -> Any:
        """Run the model on images (B, C, H, W), preprocessed."""
        model, size = self.model, tuple(images.shape[-2:])
        keys = ('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape')
        about: dict[str, Any] = dict.fromkeys(keys, size)
        if hasattr(model, 'encode_decode'):
            return model.encode_decode(images, [about] * len(images))
        if self.proposals:
            return self._two_stages(images)
        if not type(model).__module__.startswith('mmdet.'):
            return model(images, mode='tensor')
        from mmdet.structures import DetDataSample

        about['scale_factor'] = (1.0, 1.0)
        samples = [DetDataSample(metainfo=about) for _ in images]
        return model(images, samples, mode='tensor')

    def _two_stages(self, images: Tensor) -> list[Any]:
        model = self.model
        features = model.extract_feat(images)
        results = [model.rpn_head(features)]
        for count, head, extractor in self._region_heads():
            size = extractor.roi_layers[0].output_size
            shape = (len(images) * count, extractor.out_channels, *size)
            region = features[0].new_empty(shape)
            if model.roi_head.with_shared_head:
                region = model.roi_head.shared_head(region)
            results.append(head(region))
        return results

    def _region_heads(self) -> Iterator[tuple[int, Any, Any]]:
        """Regions per image, a head that runs on them, and the extractor of their features."""
        head, number = self.model.roi_head, self.regions()
        for kind in ('bbox', 'mask'):
            if getattr(head, f'with_{kind}'):
                heads = _listed(getattr(head, f'{kind}_head'))
                extractors = _listed(getattr(head, f'{kind}_roi_extractor'))
                for stage, extractor in zip(heads, extractors):
                    yield number[kind], stage, extractor

    def regions(self) -> dict[str, int]:
        """Most regions an image that the box and the mask heads get in a test."""
        test_cfg = self.model.test_cfg
        return dict(bbox=test_cfg.rpn.max_per_img, mask=test_cfg.rcnn.max_per_img)

    def replaced(self) -> set[str]:
        """Types of the layers that the regions without content stand in for."""
        layers = [extractor.roi_layers for _, _, extractor in self._region_heads()]
        return {type(layer).__name__ for level in layers for layer in level}


def _listed(module: Any) -> list[Any]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def _has_simple_regions(model: nn.Module) -> bool:
    """Whether there is no more to a detector than two stages, and the heads need but regions."""
    head = getattr(model, 'roi_head', None)
    known = {'data_preprocessor', 'backbone', 'neck', 'rpn_head', 'roi_head'}
    parts = {name for name, _ in model.named_children()}
    if head is None or 'rpn_head' not in parts or not parts <= known:
        return False
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead

    return type(head) in (StandardRoIHead, CascadeRoIHead)
