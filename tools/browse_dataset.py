"""Draw samples of a data set with their ground truth, as they are or as the model gets them."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from mmengine.registry import DATASETS

from mmvim.cli.arguments import ToolParser
from mmvim.cli.pictures import build_visualizer, draw, to_rgb
from mmvim.cli.prepare import prepare
from mmvim.cli.progress import track
from mmvim.cli.run_tool import run_tool
from mmvim.datasets.checked_loading import check_loading, explain_no_sample
from mmvim.datasets.pipelines import annotations_first, loading_only, pipeline_owner
from mmvim.errors import UsageError


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """The command line."""
    parser = ToolParser('Draw samples of a data set with their ground truth.')
    parser.add_out('the pictures')
    parser.add_argument('--mode', choices=('train', 'val', 'test'), default='train')
    parser.add_argument('--number', type=int, metavar='N', help='the first N samples; default: all')
    parser.add_argument(
        '--phase',
        choices=('original', 'transformed'),
        default='transformed',
        help='the picture as it is on disk, or as the pipeline hands it to the model (default)',
    )
    args = parser.parse_args(argv)
    if args.number is not None and args.number < 1:
        raise UsageError(f'--number must be 1 or more, not {args.number}')
    return args


def plain_boxes(sample: Any) -> Any:
    """The sample with mmdet's box objects as tensors, which its visualizer draws."""
    boxes = sample.gt_instances.get('bboxes') if 'gt_instances' in sample else None
    if hasattr(boxes, 'tensor'):
        sample.gt_instances.bboxes = boxes.tensor
    return sample


def main(argv: Sequence[str] | None = None) -> None:
    """Write one picture a sample."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    key = f'{args.mode}_dataloader'
    cfg, _ = prepare(args, f'--mode {args.mode}', key, splits=[args.mode])
    owner = pipeline_owner(cfg[key].dataset, f'drawing samples of {args.config}')
    pipeline = (loading_only if args.phase == 'original' else annotations_first)(owner.pipeline)
    owner.pipeline = pipeline
    with explain_no_sample(cfg[key]):
        dataset = DATASETS.build(cfg[key].dataset)
    check_loading(dataset, cfg.get('model') or {})
    visualizer = build_visualizer(cfg, args.config, dataset.metainfo)
    count = min(len(dataset), args.number or len(dataset))
    for index in track(range(count), 'drawing'):
        item = dataset[index]
        image = to_rgb(item['inputs'].numpy().transpose(1, 2, 0), pipeline)
        file = args.out / f'{index:06d}.png'
        draw(visualizer, image, plain_boxes(item['data_samples']), file, truth=True)
    print(f'pictures: {args.out} ({count} of {len(dataset)})')


if __name__ == '__main__':
    sys.exit(run_tool(main))
