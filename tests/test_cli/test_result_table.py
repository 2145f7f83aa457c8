"""The table of results: measured beside published, nothing invented."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from mmvim.cli.result_table import paper_metrics, result_table

CONFIGS = Path(__file__).parents[2] / 'configs'
CASCADE = CONFIGS / 'vitdet' / 'vitdet_cascade-mask-rcnn_vim-tiny_lsj-100e_coco.py'


def text(table):
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return console.file.getvalue()


def row(table, name):
    line = next(line for line in text(table).splitlines() if line[1:].startswith(f' {name} '))
    return [cell.strip() for cell in line.strip('│').split('│')]


def test_paper_metrics_come_from_the_metafile_of_the_family(tmp_path):
    paper = paper_metrics(CASCADE)
    assert paper['box AP'] == 45.7 and paper['mask AP small'] == 18.2 and len(paper) == 12
    assert paper_metrics(CASCADE.with_name('fcos_vim-tiny_simple-fpn_1x_coco.py')) == {}
    assert paper_metrics(tmp_path / 'own.py') == {}


def test_average_precision_by_size_beside_the_paper():
    metrics = {'coco/bbox_mAP': 0.457, 'coco/bbox_mAP_l': -1.0, 'coco/segm_mAP_s': 0.1}
    table = result_table(metrics, {'box AP': 45.7, 'box AP large': 63.2})
    assert table.row_count == 3
    assert row(table, 'box AP') == ['box AP', '45.7', '45.7']
    assert row(table, 'box AP large') == ['box AP large', '-', '63.2']
    assert row(table, 'mask AP small') == ['mask AP small', '10.0', '-']


@pytest.mark.parametrize(
    'metrics, name, value',
    [({'mIoU': 41.25}, 'mIoU', '41.2'), ({'accuracy/top1': 76.1}, 'Top 1 Accuracy', '76.1')],
)
def test_other_tasks_without_a_paper(metrics, name, value):
    table = result_table(metrics, {})
    assert row(table, name) == [name, value]
    assert 'paper' not in text(table)


def test_unknown_metrics_make_no_table():
    assert result_table({'loss': 1.0}, {'box AP': 45.7}) is None
