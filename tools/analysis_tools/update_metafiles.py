"""Bring metafiles up to date: an entry for every config beside them, Metadata from the configs.

Parameters and FLOPs are counted, the rest of the Metadata is read in the config. What else an entry
says (Results, Weights, Converted From) is kept; that of a config which is gone goes too.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mmvim.cli.arguments import PlainParser
from mmvim.cli.config import load_config
from mmvim.cli.metafile import make_entry, read_metafile, write_metafile
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Rewrite the metafiles that the command line names."""
    parser = PlainParser('Bring the entries of metafiles up to date with the configs beside them.')
    parser.add_argument(
        'metafiles', nargs='+', type=Path, metavar='metafile', help='configs/FAMILY/metafile.yml'
    )
    for metafile in parser.parse_args(sys.argv[1:] if argv is None else argv).metafiles:
        content = read_metafile(metafile)
        if not content.get('Collections'):
            raise UserError(
                f'{metafile} describes no collection: write its name, paper and README under '
                'Collections first'
            )
        models = []
        for file in sorted(metafile.parent.glob('*.py')):
            more = {'Config': f'configs/{file.parent.name}/{file.name}'}
            more['In Collection'] = content['Collections'][0]['Name']
            models.append(make_entry(file, load_config(str(file)), **more))
        write_metafile(metafile, content | dict(Models=models))
        print(f'{metafile}: {len(models)} models')


if __name__ == '__main__':
    sys.exit(run_tool(main))
