"""Where a test writes its pictures and its results in the format of the metric."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmvim.cli.registered_types import accepted_arguments, resolve
from mmvim.datasets.pipelines import is_loader, pipeline_owner
from mmvim.errors import UserError

# What a metric calls the place for its files, and what has to stand there under a folder.
_FORMAT_OPTIONS = {'output_dir': '', 'outfile_prefix': 'results'}


def draw_predictions(cfg: Config, folder: Path, path: str) -> Path:
    """Turn the visualisation hook of the config on for every image.

    Args:
        cfg: Changed in place.
        folder: For the pictures; exists.
        path: The config's file, for the message.

    Returns:
        Where the pictures will be: ``folder`` or, for mmseg, a folder in it.
    """
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None or cfg.get('visualizer') is None:
        raise UserError(
            f'--show-dir needs visualizer and default_hooks.visualization in {path}: the '
            'visualizer and the hook of the library'
        )
    accepted = set().union(*(accepted_arguments(target) for target in resolve(hook.get('type'))))
    hook['interval'] = 1
    hook['enable' if 'enable' in accepted else 'draw'] = True
    for option in ('test_out_dir', 'out_dir'):
        if option in accepted:
            # Absolute: mmdet's hook would join a relative one to the work dir, once per image.
            hook[option] = str(folder.resolve())
            return folder
    cfg.visualizer.save_dir = str(folder)
    if not cfg.visualizer.get('vis_backends'):
        cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    return folder / 'vis_data' / 'vis_image'


def format_results(cfg: Config, folder: Path, path: str) -> None:
    """Let the metrics of the test write their own format.

    They measure all the same, unless the split has no ground truth.

    Args:
        cfg: Changed in place.
        folder: For the files; exists.
        path: The config's file, for the message.

    Raises:
        UserError: If no metric of the config writes files.
    """
    evaluator = cfg.test_evaluator
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    writing = [metric for metric in metrics if _let_write(cfg, metric, folder)]
    if not writing:
        names = ', '.join(str(metric.get('type')) for metric in metrics)
        raise UserError(
            f'--format-dir: the test metric of {path} ({names}) has no file format of its own; '
            'use --dump FILE.pkl'
        )


def _let_write(cfg: Config, metric: Any, folder: Path) -> bool:
    accepted = set().union(*(accepted_arguments(target) for target in resolve(metric.get('type'))))
    for option, name in _FORMAT_OPTIONS.items():
        if option in accepted:
            metric[option] = str(folder / name)
            if 'keep_results' in accepted:  # Cityscapes' metric deletes its files otherwise
                metric['keep_results'] = True
            if 'format_only' in accepted and not _has_ground_truth(cfg, metric):
                metric['format_only'] = True
            return True
    return False


def _has_ground_truth(cfg: Config, metric: Mapping[str, Any]) -> bool:
    ann_file = metric.get('ann_file')
    if isinstance(ann_file, str) and ann_file.endswith('.json') and Path(ann_file).is_file():
        return bool(json.loads(Path(ann_file).read_text()).get('annotations'))
    pipeline = pipeline_owner(cfg.test_dataloader.dataset, '--format-dir').pipeline
    return any(is_loader(step, of='annotations') for step in _flat(pipeline))


def _flat(steps: Any) -> list[Any]:
    """Transforms with those inside TestTimeAug's nested lists."""
    found = []
    for step in steps:
        if isinstance(step, (list, tuple)):
            found += _flat(step)
        else:
            found += [step, *_flat(step.get('transforms', []))]
    return found
