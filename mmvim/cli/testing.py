"""Options of test.py beside metrics: pictures, files in the metric's format, augmentation."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from mmvim.cli.option_keys import accepted_arguments, resolve
from mmvim.datasets.pipelines import is_loader, pipeline_owner
from mmvim.errors import UserError

# What a metric calls the place for its files, and what has to stand there under a folder.
_FORMAT_OPTIONS = {'output_dir': '', 'outfile_prefix': 'results'}
# mmseg's configs bring theirs along; mmdet and mmpretrain keep theirs in scripts.
_TTA_MODELS: dict[str | None, dict[str, Any]] = {
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


def draw_predictions(cfg: Config, folder: Path, path: str) -> Path:
    """Turn the visualisation hook of the config on for every image.

    Returns:
        Path: Where the pictures will be: ``folder`` or, for mmseg, a folder in it.

    Raises:
        UserError: If the config, of the file ``path``, has no such hook, or no visualizer.
    """
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None or cfg.get('visualizer') is None:
        raise UserError(
            f'--show-dir needs visualizer and default_hooks.visualization in {path}: the '
            'visualizer and the hook of the library'
        )
    accepted = accepted_arguments(*resolve(hook.get('type')))
    hook['interval'] = 1
    hook['enable' if 'enable' in accepted else 'draw'] = True
    for option in accepted & {'test_out_dir', 'out_dir'}:
        # Absolute: mmdet's hook would join a relative one to the work dir, once per image.
        hook[option] = str(folder.resolve())
        return folder
    cfg.visualizer.save_dir = str(folder)
    cfg.visualizer.vis_backends = cfg.visualizer.get('vis_backends') or [
        dict(type='LocalVisBackend')
    ]
    return folder / 'vis_data' / 'vis_image'


def format_results(cfg: Config, folder: Path, path: str) -> None:
    """Let the metrics of the test write their own format.

    They measure all the same, unless the split has no ground truth.

    Raises:
        UserError: If no metric of the config, of the file ``path``, writes files.
    """
    evaluator = cfg.test_evaluator
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    writing = False
    for metric in metrics:
        accepted = accepted_arguments(*resolve(metric.get('type')))
        for option in accepted & _FORMAT_OPTIONS.keys():
            writing = True
            metric[option] = str(folder / _FORMAT_OPTIONS[option])
            if 'keep_results' in accepted:  # Cityscapes' metric deletes its files otherwise
                metric['keep_results'] = True
            if 'format_only' in accepted and not _has_ground_truth(cfg, metric):
                metric['format_only'] = True
    if not writing:
        names = ', '.join(str(metric.get('type')) for metric in metrics)
        raise UserError(
            f'--format-dir: the test metric of {path} ({names}) has no file format of its own; '
            'use --dump FILE.pkl'
        )


def _has_ground_truth(cfg: Config, metric: Mapping[str, Any]) -> bool:
    ann_file = str(metric.get('ann_file'))
    if ann_file.endswith('.json') and Path(ann_file).is_file():
        return bool(json.loads(Path(ann_file).read_text()).get('annotations'))
    pipeline = pipeline_owner(cfg.test_dataloader.dataset, '--format-dir').pipeline
    inner = [s for step in pipeline for group in step.get('transforms', ()) for s in group]
    return any(is_loader(step, of='annotations') for step in [*pipeline, *inner])


def apply_tta(cfg: Config, path: str) -> None:
    """Wrap the config's model and replace its test pipeline, in place.

    What the config lacks of ``tta_model`` and ``tta_pipeline`` is filled in for mmdet and
    mmpretrain: each image as it is, and flipped.

    Raises:
        UserError: If there is neither a setting in the config, of the file ``path``, nor a usual
            one, or if it would drop the masks that the model predicts.
    """
    scope = cfg.get('default_scope')
    model = cfg.get('tta_model') or _TTA_MODELS.get(scope)
    pipeline = cfg.get('tta_pipeline')
    if model is None or (pipeline is None and scope not in _TTA_MODELS):
        raise UserError(
            f'--tta needs tta_model and tta_pipeline in {path}: there is no usual augmentation '
            f'for default_scope={scope!r}'
        )
    heads = {**cfg.model, **(cfg.model.get('roi_head') or {})}
    if model['type'] == 'DetTTAModel' and heads.get('mask_head') is not None:
        raise UserError(
            'mmdet merges boxes only under test-time augmentation, and this model predicts masks: '
            'test it without --tta, or give a tta_model that merges masks'
        )
    owner = pipeline_owner(cfg.test_dataloader.dataset, f'--tta with {path}')
    if pipeline is None:
        *steps, pack = deepcopy(list(owner.pipeline))
        if scope == 'mmdet':
            pack = dict(pack, meta_keys=_DET_META)
        flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
        pipeline = [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    if cfg.get('data_preprocessor') is not None:
        # The runner would give it to the wrapper, which never uses it.
        cfg.model.setdefault('data_preprocessor', cfg.pop('data_preprocessor'))
    cfg.model = ConfigDict(**model, module=cfg.model)
    owner.pipeline = pipeline
