"""The tables that can be reproduced: rows are configs, published figures the metafiles'."""

import re
from pathlib import Path
from typing import NamedTuple

from mmvim.cli.result_table import paper_metrics

ROOT = Path(__file__).resolve().parents[2]


class Place(NamedTuple):
    """What trainings read.

    Attributes:
        root (str): Folder in which the configs look for it.
        source (str): How to get it.
    """

    root: str
    source: str


class Table(NamedTuple):
    """A table.

    Attributes:
        parts (dict[str, str]): By folder under ``configs``, a pattern of its rows' names.
        published (bool): Only configs with published figures are rows. Defaults to False.
        epoch (int): Images of an epoch, where schedules count epochs. Defaults to 0.
    """

    parts: dict[str, str]
    published: bool = False
    epoch: int = 0


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        config (Path): Its file.
        seeds (tuple[int, ...]): It is trained once with each.
        options (tuple[str, ...]): KEY=VALUE for ``--cfg-options``.
        after (str): Name of the row whose last weights it starts from; empty for none.
    """

    config: Path
    seeds: tuple[int, ...]
    options: tuple[str, ...]
    after: str

    @property
    def name(self) -> str:
        """The config's name."""
        return self.config.stem


PLACES = {
    'camvid': Place('data/camvid', 'configs/camvid/README.md says where to get CamVid'),
    'nuclei': Place('data/nuclei', 'configs/nuclei/README.md says where to get the nuclei'),
    'patterns': Place(
        'data/patterns', 'python tools/dataset_converters/make_patterns.py --out data/patterns'
    ),
    'ade20k': Place('data/ade/ADEChallengeData2016', '"Data" in the README has the link'),
    'coco': Place('data/coco', 'cocodataset.org has train2017, val2017 and the annotations'),
    'imagenet': Place('data/imagenet', 'image-net.org, ILSVRC 2012'),
    'weights': Place(
        'checkpoints', 'configs/vim/README.md and configs/vmamba/README.md name the released files'
    ),
}
TABLES = {
    'camvid': Table({'camvid': ''}),
    'nuclei': Table({'nuclei': ''}),
    'patterns': Table({'demo': ''}),
    'ade20k': Table({'upernet': '', 'vmamba': r'[^_]+_upernet_'}, published=True),
    # Images with objects.
    'coco': Table({'vitdet': '', 'vmamba': r'[^_]+_mask-rcnn_'}, True, 117_266),
    'imagenet': Table(
        {'vim': r'vim-[a-z]+(-stride8)?_', 'vmamba': r'[^_]+_8xb128-'},
        True, 1_281_167,
    ),
    # Tab. 4 and 5: directions, on ADE20K too, and classification designs.
    'ablation': Table(
        {'vim': 'vim-tiny.*_8xb128-300e', 'segmenter': ''},
        True, 1_281_167,
    ),
}  # fmt: skip
# By the beginning of a config's name: seeds, where one alone would not tell peers apart; the
# released classifier, and the row of the same table, whose weights it starts from.
_SEEDS = {
    'camvid/vim-nano_upernet_1xb4-3400': (0, 1, 2),
    'nuclei/vim-nano_mask-rcnn_1xb4-1600': (0, 1),
}
_RELEASED = {
    'upernet/vim-tiny': 'vim_t_midclstok_76p1acc.pth',
    'upernet/vim-small': 'vim_s_midclstok_80p5acc.pth',
    'vitdet/vitdet_cascade-mask-rcnn_vim-tiny': 'vim_t_midclstok_76p1acc.pth',
} | {
    f'vmamba/vmamba-{size}_{model}': f'{file}.pth'
    for model in ('upernet', 'mask-rcnn')
    for size, file in (
        ('tiny-s1l8', 'vssm1_tiny_0230s_ckpt_epoch_264'),
        ('small-s2l15', 'vssm_small_0229_ckpt_epoch_222'),
        ('base-s2l15', 'vssm_base_0229_ckpt_epoch_237'),
    )
}
_AFTER = {
    'segmenter/vim-tiny-none': 'vim-tiny-none_8xb128-300e_in1k',
    'segmenter/vim-tiny-block': 'vim-tiny-block_8xb128-300e_in1k',
    'segmenter/vim-tiny-ssm_': 'vim-tiny-ssm_8xb128-300e_in1k',
    'segmenter/vim-tiny-ssm-conv': 'vim-tiny-mean-pool_8xb128-300e_in1k',
    'demo/vim-nano_mask-rcnn': 'vim-nano_upernet_1xb8-900_patterns-128x128',
}


def start(checkpoint: str | Path, cls_token: str | None) -> str:
    """The option that gives a Vim, or a VMamba (``cls_token`` None), its first weights."""
    family = dict(type='mmvim.PretrainedVMamba')
    if cls_token is not None:
        family = dict(type='mmvim.PretrainedVim', cls_token=cls_token)
    return f'model.backbone.init_cfg={dict(family, checkpoint=str(checkpoint))}'


def rows(table: str) -> list[Row]:
    """The rows of a table, in the order of their names."""
    found = []
    for folder, pattern in TABLES[table].parts.items():
        for file in sorted((ROOT / 'configs' / folder).glob('*.py')):
            unpublished = TABLES[table].published and not paper_metrics(file)
            if unpublished or not re.match(pattern, file.name):
                continue
            name = f'{folder}/{file.name}'
            seeds = next((seeds for part, seeds in _SEEDS.items() if name.startswith(part)), (0,))
            after = next((row for part, row in _AFTER.items() if name.startswith(part)), '')
            weights = [file for part, file in _RELEASED.items() if name.startswith(part)]
            cls_token = None if folder == 'vmamba' else 'middle'
            options = [start(f'checkpoints/{file}', cls_token) for file in weights]
            found.append(Row(file, seeds, tuple(options), after))
    return found
