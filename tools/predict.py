"""Run a trained model on your own pictures; write them with the prediction drawn in."""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmvim.cli.arguments import ToolParser
from mmvim.cli.inferencers import LABELS, Predictor
from mmvim.cli.pictures import each_picture, find_images, raise_failed, read_rgb
from mmvim.cli.prepare import prepare
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UserError


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """The command line."""
    parser = ToolParser('Predict on pictures that need no ground truth.')
    parser.add_checkpoint()
    parser.add_pictures()
    parser.add_out('the pictures and the predictions')
    return parser.parse_args(argv)


def refuse_own_input(images: Mapping[Path, str], out: Path) -> None:
    """Fail if a result would take the place of a picture that is read."""
    inputs = {image.resolve() for image in images}
    for name in images.values():
        for file in (out / f'{name}.png', out / LABELS / f'{name}.png'):
            if file.resolve() in inputs:
                raise UserError(f'--out {out} would overwrite {file}: give another folder')


def main(argv: Sequence[str] | None = None) -> None:
    """Predict image by image; those that fail are named, and the others done."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    images = find_images(args.images)
    refuse_own_input(images, args.out)
    cfg, checkpoint = prepare(args, 'predicting', 'model', 'test_dataloader')
    predictor = Predictor(cfg, args, checkpoint)

    def predict(image: Path) -> None:
        read_rgb(image)  # says which file it is, where the libraries say nothing
        predictor(image, images[image])

    failed = each_picture(images, predict, 'predicting')
    print(f'pictures: {args.out} ({len(images) - len(failed)})')
    for what, place in predictor.written.items():
        print(f'{what}: {place}')
    raise_failed(failed, len(images))


if __name__ == '__main__':
    sys.exit(run_tool(main))
