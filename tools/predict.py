"""Run a trained model on your own pictures; write them with the prediction drawn in."""

import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.utils import ProgressBar

from mmvim.checkpoints.reading import read_checkpoint
from mmvim.cli.arguments import ToolParser
from mmvim.cli.config import load_config, require
from mmvim.cli.devices import check_device
from mmvim.cli.models import build_model, predict
from mmvim.cli.output_folders import make_writable
from mmvim.cli.pictures import (
    build_visualizer,
    dataset_meta,
    draw_sample,
    find_images,
    picture_names,
    read_rgb,
)
from mmvim.cli.predictions import LABEL_FOLDER, PredictionFiles
from mmvim.cli.run_tool import run_tool
from mmvim.datasets.pipelines import pipeline_owner, without_annotations
from mmvim.errors import UserError


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """The command line."""
    parser = ToolParser('Predict on pictures that need no ground truth.')
    parser.add_argument('checkpoint', help='weights of exactly this model: a file or an URL')
    parser.add_argument('images', metavar='image', help='a picture, or a folder of pictures')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the results')
    parser.add_argument('--device', default=get_device(), help='default: %(default)s')
    return parser.parse_args(argv)


def refuse_own_input(images: Iterable[Path], names: dict[Path, str], out: Path) -> None:
    """Fail if a result would take the place of a picture that is read."""
    inputs = {image.resolve() for image in images}
    for name in names.values():
        for file in (out / f'{name}.png', out / LABEL_FOLDER / f'{name}.png'):
            if file.resolve() in inputs:
                raise UserError(f'--out {out} would overwrite {file}: give another folder')


def main(argv: Sequence[str] | None = None) -> None:
    """Predict image by image; those that cannot be decoded are named at the end."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    cfg = load_config(args.config, args.cfg_options)
    require(cfg, args.config, 'predicting', 'model', 'test_dataloader')
    device = check_device(args.device)
    images = find_images(args.images)
    names = picture_names(images)
    refuse_own_input(images, names, Path(args.out).expanduser())
    checkpoint = read_checkpoint(args.checkpoint)
    model = build_model(cfg, checkpoint, f'checkpoint {args.checkpoint}', device)
    meta = dataset_meta(cfg, checkpoint)
    visualizer = build_visualizer(cfg, args.config, meta)
    owner = pipeline_owner(cfg.test_dataloader.dataset, f'predicting with {args.config}')
    pipeline = Compose(without_annotations(owner.pipeline))
    out = make_writable(args.out, '--out')
    files = PredictionFiles(out, meta.get('classes'))

    undecoded = []
    progress = ProgressBar(len(images), file=sys.stdout)
    for index, image in enumerate(images):
        try:
            picture = read_rgb(image)
        except UserError as error:
            if len(images) == 1:
                raise
            undecoded.append((image, error))
        else:
            item = pipeline(dict(img_path=str(image), img_id=index, seg_fields=[], instances=[]))
            sample = predict(model, item)
            draw_sample(visualizer, picture, sample, out / f'{names[image]}.png', truth=False)
            files.add(sample, image, names[image])
        progress.update()

    print(f'\npictures: {out} ({len(images) - len(undecoded)})')
    for what, place in files.written.items():
        print(f'{what}: {place}')
    if undecoded:
        listed = ', '.join(str(image) for image, _ in undecoded)
        raise UserError(
            f'{len(undecoded)} of {len(images)} pictures cannot be decoded, truncated or not an '
            f'image: {listed}; the others are done'
        )


if __name__ == '__main__':
    sys.exit(run_tool(main))
