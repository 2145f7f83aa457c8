"""Test a model on its test split; draw or write the predictions where asked."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from rich.console import Console

from mmvim.cli.arguments import ToolParser
from mmvim.cli.prepare import build_runner, make_writable, prepare
from mmvim.cli.result_table import paper_metrics, result_table
from mmvim.cli.run_tool import run_tool
from mmvim.cli.testing import apply_tta, draw_predictions, format_results
from mmvim.errors import UsageError


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """The command line."""
    parser = ToolParser('Test a model and print its metrics.')
    parser.add_checkpoint()
    parser.add_work_dir('the log and the metrics')
    parser.add_argument('--show-dir', metavar='DIR', help='draw every prediction into this folder')
    parser.add_argument('--dump', metavar='FILE.pkl', help='pickle all predictions')
    parser.add_argument(
        '--format-dir',
        metavar='DIR',
        help="write the predictions in the metric's own format (label PNGs, COCO JSON)",
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help="augment at test time: tta_model and tta_pipeline of the config, else the library's",
    )
    parser.add_launcher()
    args = parser.parse_args(argv)
    if args.dump is not None and not args.dump.endswith(('.pkl', '.pickle')):
        raise UsageError(f'--dump writes a pickle: give a name in .pkl, not {args.dump}')
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Check everything that can be checked first, then test.

    Returns:
        dict[str, Any]: The metrics by name.
    """
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    needs = ('model', 'test_dataloader', 'test_cfg', 'test_evaluator')
    cfg, _ = prepare(args, 'testing', *needs, splits=['test'])
    places = {}
    if args.tta:
        apply_tta(cfg, args.config)
    if args.show_dir is not None:
        folder = make_writable(args.show_dir, '--show-dir')
        places['pictures'] = draw_predictions(cfg, folder, args.config)
    if args.format_dir is not None:
        places['results'] = make_writable(args.format_dir, '--format-dir')
        format_results(cfg, places['results'], args.config)
    if args.dump is not None:
        make_writable(Path(args.dump).parent, 'the folder of --dump')
        places['predictions'] = Path(args.dump)
    runner = build_runner(cfg)
    if args.dump is not None:
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.dump))
    metrics = runner.test()
    table = result_table(metrics, paper_metrics(args.config))
    if table is not None and is_main_process():
        Console().print(table)
    for what, place in places.items():
        print(f'{what}: {place}')
    return metrics


if __name__ == '__main__':
    sys.exit(run_tool(main))
