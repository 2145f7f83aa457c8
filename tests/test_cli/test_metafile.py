"""Metafiles: entries follow from the configs, and what stands beside is kept."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from mmengine.config import Config
from repository import CONFIGS, ROOT, load_script

import mmvim
from mmvim.cli.config import load_config
from mmvim.cli.metafile import PAPER, describe, entry_of, make_entry, read_metafile
from mmvim.cli.result_table import _NAMES

METAFILES = sorted(CONFIGS.glob('*/metafile.yml'))
ENTRIES = [
    pytest.param(CONFIGS / path.parent / f'{model["Name"]}.py', model, id=model['Name'])
    for path in METAFILES
    for model in read_metafile(path)['Models']
]
SAMPLE = {
    'vim-tiny_8xb128-300e_in1k',
    'vim-tiny_upernet_4xb8-60k_ade20k-512x512',
    'vitdet_mask-rcnn_vim-tiny_lsj-100e_coco',
    'vim-nano_mask-rcnn_1xb8-600_patterns-128x128',
}


def marked(parameter: Any) -> Any:
    """A few entries at once, the others in `make slow`."""
    if parameter.id in SAMPLE:
        return parameter
    return pytest.param(*parameter.values, id=parameter.id, marks=pytest.mark.slow)


@pytest.mark.parametrize('config, entry', [marked(parameter) for parameter in ENTRIES])
def test_metadata_is_what_the_counter_and_the_config_say(
    config: Path, entry: dict[str, Any]
) -> None:
    """`python tools/analysis_tools/update_metafiles.py configs/*/metafile.yml` writes it."""
    assert make_entry(config, load_config(str(config))) == entry


def test_the_sample_is_there_and_equals_the_papers_sizes() -> None:
    """Vim-Ti: 7.1 M parameters and, with the scan counted, 1.5 G at 224 pixels."""
    found = {parameter.id: parameter.values[1]['Metadata'] for parameter in ENTRIES}
    assert set(found) >= SAMPLE
    tiny = found['vim-tiny_8xb128-300e_in1k']
    assert (tiny['Parameters'], tiny['Input Size']) == (7_148_008, '224x224')
    assert 1.4e9 < tiny['FLOPs'] < 1.6e9


@pytest.mark.parametrize('metafile', METAFILES, ids=lambda path: path.parent.name)
def test_metafiles_have_what_mim_and_the_model_zoo_pages_read(metafile: Path) -> None:
    content = read_metafile(metafile)
    (collection,) = content['Collections']
    assert (ROOT / collection['README']).is_file()
    assert (ROOT / collection['Code']['URL']).is_file()
    assert collection['Code']['Version'] == f'v{mmvim.__version__}'
    # It would be inherited: mim refuses a data set that is not the whole of an entry's.
    assert 'Training Data' not in collection['Metadata']
    assert content['Models']
    for model in content['Models']:
        assert model['In Collection'] == collection['Name']
        assert isinstance(model['Metadata']['Training Data'], str)
        for result in model.get('Results') or []:
            assert result.keys() == {'Task', 'Dataset', 'Metrics'}
            names = result['Metrics']
            assert {name.removesuffix(PAPER) for name in names} <= _NAMES.keys()
            assert len({name.endswith(PAPER) for name in names}) == 1, 'the paper stands apart'


@pytest.mark.parametrize(
    ('family', 'code', 'number'),
    [
        ('vim', 'https://github.com/hustvl/Vim', 5),
        ('vmamba', 'https://github.com/MzeroMiko/VMamba', 3),
    ],
)
def test_published_files_are_named_by_their_configs(family: str, code: str, number: int) -> None:
    found = {
        p.id: p.values[1]['Converted From']
        for p in ENTRIES
        if 'Converted From' in p.values[1] and p.values[0].parent.name == family
    }
    assert len(found) == number and {entry['Code'] for entry in found.values()} == {code}
    readme = (CONFIGS / family / 'README.md').read_text()
    for name, entry in found.items():
        file = entry['Weights'].rpartition('/')[2].removesuffix('.pth')
        (row,) = [
            line
            for line in readme.splitlines()
            if f'({name}.py)' in line and '|' in line and file in line
        ]
        assert row


def test_what_a_config_says_of_its_training() -> None:
    cfg = Config(
        dict(
            model=dict(
                type='mmpretrain.ImageClassifier',
                backbone=dict(type='mmvim.VisionMamba', arch='nano', img_size=(32, 64)),
                neck=dict(type='mmpretrain.GlobalAveragePooling'),
                head=dict(type='mmpretrain.LinearClsHead', in_channels=64, num_classes=2),
                train_cfg=dict(
                    augments=[
                        dict(type='Mixup', alpha=1.0),
                        dict(type='mmpretrain.CutMix', alpha=1.0),
                    ]
                ),
            ),
            train_dataloader=dict(
                dataset=dict(
                    type='RepeatDataset', dataset=dict(type='mmseg.Mine', pipeline=[dict(type='A')])
                )
            ),
            optim_wrapper=dict(
                type='AmpOptimWrapper',
                optimizer=dict(type='Lion', weight_decay=0.1),
                clip_grad=dict(max_norm=1.0),
                paramwise_cfg=dict(layer_decay_rate=0.9),
            ),
            custom_hooks=[dict(type='EMAHook')],
            train_cfg=dict(max_epochs=3),
            auto_scale_lr=dict(base_batch_size=8),
        )
    )
    pytest.importorskip('mmpretrain')
    about = describe(cfg)
    assert about.pop('Parameters') > 0 and about.pop('FLOPs') > 0
    assert about == {
        'Input Size': '32x64',
        'Training Data': 'Mine',
        'Training Techniques': [
            *('Lion', 'Weight Decay', 'Layer-wise Learning Rate Decay', 'Gradient Clipping'),
            *('Mixed Precision', 'EMA', 'Mixup', 'CutMix'),
        ],
        'Epochs': 3,
        'Batch Size': 8,
    }
    cfg.train_dataloader.dataset.dataset.data_root = 'elsewhere/ade/ADEChallengeData2016'
    cfg.model.backbone.pop('img_size')
    cfg.pop('optim_wrapper')
    about = describe(cfg)
    assert about['Training Data'] == 'ADE20K'
    assert describe(Config(cfg.to_dict() | dict(crop_size=(64, 32))))['Input Size'] == '64x32'
    assert about.keys() == {'Parameters', 'Training Data', 'Epochs', 'Batch Size'}
    # A model that cannot be built on meta tensors (its dropout rates are read from a tensor).
    cfg.model.backbone = dict(type='VisionTransformer', arch='deit-tiny', out_type='cls_token')
    assert describe(cfg).keys() == about.keys()


def test_update_adds_and_removes_configs_and_keeps_the_rest(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip('mmpretrain')
    folder = tmp_path / 'mine'
    folder.mkdir()
    metafile = folder / 'metafile.yml'
    for name in ('b', 'a'):
        (folder / f'{name}.py').write_text(
            """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmvim.VisionMamba', arch='nano', img_size=64, out_type='cls_token'),
    head=dict(type='LinearClsHead', in_channels=64, num_classes=2))
"""
        )
    results = [dict(Task='T', Dataset='D', Metrics=dict(mIoU=1.5))]
    models = [dict(Name='gone'), dict(Name='b', Results=results, Weights='b.pth')]
    head = '# A comment\n# of two lines.\n'
    metafile.write_text(head + yaml.safe_dump(dict(Collections=[dict(Name='C')], Models=models)))
    update = load_script(ROOT / 'tools' / 'analysis_tools' / 'update_metafiles.py').main
    update([str(metafile)])
    text = metafile.read_text()
    assert (
        text.startswith(head + 'Collections:')
        and f'{metafile}: 2 models' in capsys.readouterr().out
    )
    a, b = read_metafile(metafile)['Models']
    assert list(a) == ['Name', 'In Collection', 'Config', 'Metadata']
    assert a['Config'] == 'configs/mine/a.py' and a['Metadata']['Parameters'] > 0
    assert (b['Results'], b['Weights']) == (results, 'b.pth')
    assert entry_of(folder / 'b.py') == b and entry_of(folder / 'gone.py') == {}
    update([str(metafile)])
    assert metafile.read_text() == text
    metafile.write_text('Models: []\n')
    with pytest.raises(RuntimeError, match='describes no collection'):
        update([str(metafile)])
