"""Test-time augmentation: the config's own, or the usual one of its library."""

from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict

from mmvim.datasets.pipelines import is_loader, pipeline_owner
from mmvim.errors import UserError

# mmseg's stock test-time augmentation.
_SEG_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_MODELS: dict[str, dict[str, Any]] = {
    'mmseg': dict(type='SegTTAModel'),
    'mmdet': dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    'mmpretrain': dict(type='AverageClsScoreTTA'),
}
# mmdet's packing leaves the flip out unless asked, and merging the boxes needs it.
_DET_META = (
    'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction',
)  # fmt: skip


def apply_tta(cfg: Config, path: str) -> None:
    """Wrap the config's model and replace its test pipeline, in place.

    What the config lacks of ``tta_model`` and ``tta_pipeline`` is filled in for mmseg (scales 0.5
    to 1.75, each flipped too), mmdet and mmpretrain (flipped).

    Args:
        cfg: The config.
        path: Its file, for the message.

    Raises:
        UserError: If there is neither a setting in the config nor a usual one.
    """
    scope = cfg.get('default_scope')
    own = [key for key in ('tta_model', 'tta_pipeline') if cfg.get(key) is not None]
    if scope not in _MODELS and len(own) < 2:
        raise UserError(
            f'--tta needs tta_model and tta_pipeline in {path}: there is no usual augmentation '
            f'for default_scope={scope!r}'
        )
    owner = pipeline_owner(cfg.test_dataloader.dataset, f'--tta with {path}')
    model = cfg.get('tta_model') or _MODELS[scope]
    pipeline = cfg.get('tta_pipeline') or _usual_pipeline(scope, owner.pipeline)
    if cfg.get('data_preprocessor') is not None:
        # The runner would give it to the wrapper, which never uses it.
        cfg.model.setdefault('data_preprocessor', cfg.pop('data_preprocessor'))
    cfg.model = ConfigDict(**model, module=cfg.model)
    owner.pipeline = pipeline


def _usual_pipeline(scope: str, pipeline: list[Any]) -> list[Any]:
    *steps, pack = deepcopy(list(pipeline))
    flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
    if scope == 'mmseg':
        images = [step for step in steps if is_loader(step, of='image')]
        labels = [step for step in steps if is_loader(step, of='annotations')]
        for flip in flips:
            flip['direction'] = 'horizontal'
        sizes = [dict(type='Resize', scale_factor=s, keep_ratio=True) for s in _SEG_SCALES]
        return [*images, dict(type='TestTimeAug', transforms=[sizes, flips, labels, [pack]])]
    if scope == 'mmdet':
        pack = dict(pack, meta_keys=_DET_META)
    return [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]
