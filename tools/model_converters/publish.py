"""Publish a checkpoint of a training: weights and what inference needs, named by their digest.

Optimiser, schedules, histories and the state of hooks stay behind. A name ends in the first digits
of the file's SHA-256, as those of OpenMMLab do.
"""

import glob
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmvim
from mmvim.analysis.model_views import build_model
from mmvim.atomic_files import write_atomically
from mmvim.checkpoints.publishing import (
    AVERAGED,
    check_unpublished,
    published_meta,
    run_notes,
    to_half,
)
from mmvim.checkpoints.reading import SUFFIXES, read_checkpoint
from mmvim.checkpoints.strict import load_strictly
from mmvim.cli.arguments import PlainParser
from mmvim.cli.config import load_config
from mmvim.cli.converter import pack_weights
from mmvim.cli.metafile import make_entry, to_yaml
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UserError

OURS = Path(mmvim.__file__).parent / '.mim'
DIGITS = 8


def config_of(checkpoint: Mapping[str, Any], source: str) -> Path:
    """Our config of the name that the run noted, which is the config's and the time.

    Raises:
        UserError: If there is none.
    """
    noted = run_notes(checkpoint).get('experiment_name', '')
    name = re.sub(r'_\d{8}_\d{6}$', '', str(noted))
    found = [file for file in OURS.glob('configs/*/*.py') if file.stem == name]
    if len(found) != 1:
        raise UserError(
            f'{source} is of the run {name}, and no config of mmvim has that name: give '
            '--config FILE'
        )
    return found[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Check that the weights are those of the config, write both files, print the entry."""
    parser = PlainParser('Publish a checkpoint: the weights alone, with a digest in the name.')
    parser.add_argument('source', metavar='in', help='checkpoint of a training')
    kinds = ' and '.join(f'OUT-<digest>{suffix}' for suffix in SUFFIXES)
    parser.add_argument('out', type=Path, help=f'name of the files, which become {kinds}')
    parser.add_argument(
        '--config', help='config of the training (default: ours of the name that the file notes)'
    )
    parser.add_argument('--half', action='store_true', help='write matrices and kernels in float16')
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    out = args.out.expanduser()
    out = out.with_suffix('') if out.suffix in SUFFIXES else out
    for file in out.parent.glob(f'{glob.escape(out.name)}-{"[0-9a-f]" * DIGITS}.*'):
        raise UserError(f'{file} exists: remove it, or give another name')

    checkpoint = read_checkpoint(args.source)
    check_unpublished(checkpoint, args.source)
    config = Path(args.config or config_of(checkpoint, args.source))
    cfg = load_config(str(config))
    model = build_model(cfg)
    weights = load_strictly(model, checkpoint, f'checkpoint {args.source}')
    left = [str(key) for key in checkpoint if key not in ('meta', 'state_dict')]
    print(f'left behind: {", ".join(left)}')
    if AVERAGED in checkpoint:
        print('weights: their average (EMA), with which the run was validated')
    if args.half:
        weights = to_half(weights)
        rest = sum(value.numel() for value in weights.values() if value.itemsize > 2)
        print(f'float16, but for {rest} numbers of vectors and A_log')

    meta = published_meta(checkpoint, model, cfg.pretty_text)
    packed = {suffix: pack_weights(weights, suffix, 'state_dict', meta) for suffix in SUFFIXES}
    digests = {suffix: hashlib.sha256(content).hexdigest() for suffix, content in packed.items()}
    files = {s: out.with_name(f'{out.name}-{digests[s][:DIGITS]}{s}') for s in SUFFIXES}
    entry = make_entry(config, cfg, Weights=files['.pth'].as_posix())
    for suffix, content in packed.items():
        write_atomically(files[suffix], content)
        print(f'{files[suffix]}: {len(content) / 2**20:.2f} MiB, SHA-256 {digests[suffix]}')
    print(f'\nEntry of the metafile:\n\n{to_yaml([entry])}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
