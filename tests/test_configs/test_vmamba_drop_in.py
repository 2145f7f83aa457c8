"""VMamba in the libraries' own models: the backbone changes, and the channels that are read."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

DIMS = [8, 16, 32, 64]
SIDE = 64
BACKBONE = dict(_delete_=True, type='mmvim.VMamba', arch=dict(dims=8, depths=(1, 1, 1, 1)))
SMALL_DETR = dict(num_queries=10, encoder=dict(num_layers=1), decoder=dict(num_layers=1))
STOCK = {
    'upernet': ('mmseg::_base_/models/upernet_swin.py', dict(
        decode_head=dict(in_channels=DIMS, channels=8, norm_cfg=dict(type='BN')),
        auxiliary_head=dict(in_channels=DIMS[2], channels=8, norm_cfg=dict(type='BN')),
    )),
    'mask-rcnn': ('mmdet::_base_/models/mask-rcnn_r50_fpn.py', dict(neck=dict(in_channels=DIMS))),
    # Its pyramid begins at the second map: the norm of the first would learn nothing.
    'retinanet': ('mmdet::_base_/models/retinanet_r50_fpn.py', dict(
        backbone=dict(out_indices=(1, 2, 3)), neck=dict(in_channels=DIMS[1:], start_level=0),
    )),
    'deformable-detr': ('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', dict(
        SMALL_DETR, backbone=dict(out_indices=(1, 2, 3)), neck=dict(in_channels=DIMS[1:]),
    )),
}  # fmt: skip


def samples(scope: str) -> dict:
    """Two images of random pixels with their annotations."""
    if scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(2, (3, SIDE, SIDE), num_items=[2, 2], num_classes=80, with_mask=True)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=generator)
    maps = torch.randint(0, 19, (2, 1, SIDE, SIDE), generator=generator)
    shape = dict(img_shape=(SIDE, SIDE), ori_shape=(SIDE, SIDE))
    labelled = [SegDataSample(metainfo=shape, gt_sem_seg=PixelData(data=labels)) for labels in maps]
    return dict(inputs=list(images), data_samples=labelled)


@pytest.mark.operators
@pytest.mark.parametrize('name', STOCK)
def test_takes_the_place_of_the_backbone(name: str, tmp_path: Path) -> None:
    base, changes = STOCK[name]
    scope = base.partition('::')[0]
    changes = dict(changes, backbone=BACKBONE | changes.get('backbone', {}))
    config = tmp_path / 'config.py'
    text = f'_base_ = {base!r}\nmodel = {changes!r}\n'
    if scope == 'mmseg':
        text += f'model["data_preprocessor"] = dict(size=({SIDE}, {SIDE}))\n'
    config.write_text(text)
    cfg = Config.fromfile(config)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg.model).train()
        data = model.data_preprocessor(samples(scope), training=True)
        losses, _ = model.parse_losses(model(**data, mode='loss'))
    losses.backward()
    assert torch.isfinite(losses)
    missed = [key for key, param in model.backbone.named_parameters() if param.grad is None]
    assert missed == []
