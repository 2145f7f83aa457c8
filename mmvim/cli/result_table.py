"""The metrics of a test as a table, the published ones beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from mmvim.cli.metafile import PAPER, entry_of

_AP = {'': '', '50': '_50', '75': '_75', ' small': '_s', ' medium': '_m', ' large': '_l'}
# Metafile's name of a metric -> the metric's own, and what makes it per cent.
_NAMES: dict[str, tuple[str, float]] = {
    **{
        f'{kind} AP{name}': (f'coco/{key}_mAP{suffix}', 100.0)
        for kind, key in (('box', 'bbox'), ('mask', 'segm'))
        for name, suffix in _AP.items()
    },
    # A single class, of which an image holds more than the hundred objects that the others count.
    'mask AP, 1,000 detections': ('coco/nucleus_precision', 100.0),
    'mIoU': ('mIoU', 1.0),
    'mAcc': ('mAcc', 1.0),
    'aAcc': ('aAcc', 1.0),
    'Top 1 Accuracy': ('accuracy/top1', 1.0),
    'Top 5 Accuracy': ('accuracy/top5', 1.0),
}


def paper_metrics(config_file: str | Path) -> dict[str, float]:
    """Figures of the paper for a config.

    Args:
        config_file (str | Path): Of a family with a ``metafile.yml`` in the same folder.

    Returns:
        Per cent by the metafile's names without '(paper)'; empty where nothing is published, or
        for a config of the user's.
    """
    return {
        name.removesuffix(PAPER): float(value)
        for result in entry_of(config_file).get('Results') or []
        for name, value in result['Metrics'].items()
        if name.endswith(PAPER)
    }


def named_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What a test returned, in per cent by the metafile's names.

    Args:
        metrics (Mapping[str, Any]): By the metrics' own names.

    Returns:
        dict[str, float]: Those that are known here; negative where COCO's evaluation says -1, for
            no object is of that size.
    """
    known = {name: place for name, place in _NAMES.items() if place[0] in metrics}
    return {name: float(metrics[key]) * scale for name, (key, scale) in known.items()}


def result_table(metrics: Mapping[str, Any], paper: Mapping[str, float]) -> Table | None:
    """Average precision by overlap and size of the objects, mean IoU, or accuracy.

    Sizes are COCO's: small below 32x32 pixels of area, large above 96x96.

    Args:
        metrics (Mapping[str, Any]): What the test returned, by the metrics' own names.
        paper (Mapping[str, float]): What :func:`paper_metrics` returned.

    Returns:
        A table in per cent, '-' where there are no such objects or no such figure; None if no
        metric has a name that is known here.
    """
    table = Table(title='Results in per cent')
    table.add_column('')
    table.add_column('measured', justify='right')
    if paper:
        table.add_column('paper', justify='right')
    for name, value in named_metrics(metrics).items():
        row = [name, '-' if value < 0 else f'{value:.1f}']
        if paper:
            row.append(f'{paper[name]:.1f}' if name in paper else '-')
        table.add_row(*row)
    return table if table.row_count else None
