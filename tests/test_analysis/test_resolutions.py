"""Pipelines and windows at other image sizes."""

import copy
from pathlib import Path

import pytest
from mmengine.config import Config

from mmvim.analysis.resolutions import resolution, set_resolution
from mmvim.errors import UserError

LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackInputs')
IMAGENET = [
    LOAD,
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    PACK,
]
ADE20K = [
    LOAD,
    dict(type='mmseg.Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]


def config(scope='mmseg', pipeline=ADE20K, **model):
    return Config(
        dict(
            default_scope=scope,
            model=dict(**model),
            test_dataloader=dict(dataset=dict(type='Repeat', dataset=dict(pipeline=pipeline))),
        )
    )


def at_resolution(pipeline, size):
    cfg = config(pipeline=copy.deepcopy(pipeline))
    set_resolution(cfg, size, 'a.py')
    return cfg.test_dataloader.dataset.dataset.pipeline


@pytest.mark.parametrize(
    'size, edge', [(224, 256), (112, 128), (288, 329), (384, 439), (448, 512), (1024, 1170)]
)
def test_a_crop_keeps_its_share(size, edge):
    changed = at_resolution(IMAGENET, size)
    assert changed[1] == dict(IMAGENET[1], scale=edge)
    assert changed[2] == dict(type='CenterCrop', crop_size=size)
    assert (changed[0], changed[3]) == (LOAD, PACK)
    assert resolution(changed) == size


def test_the_short_edge_of_a_resize():
    assert resolution(ADE20K) == 512
    changed = at_resolution(ADE20K, 1024)
    assert changed[1]['scale'] == (4096, 1024) and changed[1]['keep_ratio'] is True
    shortest = [dict(type='ResizeShortestEdge', scale=512, max_size=2048), PACK]
    assert at_resolution(shortest, 256)[0] == dict(
        type='ResizeShortestEdge', scale=256, max_size=1024
    )
    assert at_resolution([dict(type='Resize', scale=224), PACK], 300)[0]['scale'] == 300


@pytest.mark.parametrize(
    'steps, says',
    [
        ([LOAD, PACK], r'sets no image size \(LoadImageFromFile, PackInputs\): it needs one of'),
        (
            [LOAD, dict(type='RandomResizedCrop', scale=224), PACK],
            r'has RandomResizedCrop\(scale\)',
        ),
        ([LOAD, dict(type='Resize', scale_factor=0.5), PACK], r'has Resize\(scale_factor\)'),
        (
            [LOAD, dict(type='Pad', size=(64, 64))],
            r'has Pad\(size\), whose size cannot be replaced',
        ),
        ([LOAD, dict(type='TestTimeAug', transforms=[])], r'has TestTimeAug\(transforms\)'),
        ([dict(type='torchvision/CenterCrop', size=3)], r'has torchvision/CenterCrop\(size\)'),
    ],
)
def test_what_cannot_be_replaced_is_named(steps, says):
    with pytest.raises(UserError, match=says):
        at_resolution(steps, 256)


def test_windows_grow_with_the_image():
    cfg = config(
        test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
        data_preprocessor=dict(size=(512, 512), test_cfg=dict(size=(512, 512))),
    )
    said = set_resolution(cfg, 768, 'a.py')
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(768, 768), stride=(512, 512))
    assert cfg.model.data_preprocessor == dict(size=(512, 512), test_cfg=dict(size=(768, 768)))
    assert cfg.test_dataloader.dataset.dataset.pipeline[1].scale == (3072, 768)
    assert said == [
        'Resize.scale 2048×512 → 3072×768',
        'model.test_cfg.crop_size 512×512 → 768×768',
        'model.test_cfg.stride 341×341 → 512×512',
        'data_preprocessor.test_cfg.size 512×512 → 768×768',
    ]


def test_whole_images_have_no_windows():
    cfg = config(test_cfg=dict(mode='whole'), data_preprocessor=dict(test_cfg=dict(size_divisor=4)))
    assert set_resolution(cfg, 256, 'a.py') == ['Resize.scale 2048×512 → 1024×256']
    assert cfg.model.test_cfg == dict(mode='whole')
    assert cfg.model.data_preprocessor.test_cfg == dict(size_divisor=4)


def test_other_tasks_and_bad_pipelines_name_the_config():
    with pytest.raises(UserError, match=r"a\.py has default_scope='mmdet'"):
        set_resolution(config('mmdet'), 256, 'a.py')
    with pytest.raises(UserError, match=r'^a\.py: the test pipeline sets no image size'):
        set_resolution(config(pipeline=[LOAD]), 256, 'a.py')


CONFIGS = Path(__file__).parents[2] / 'configs'
OURS = sorted(path for name in ('vim', 'upernet', 'demo') for path in CONFIGS.glob(f'{name}/*.py'))


@pytest.mark.parametrize('path', OURS, ids=lambda path: path.stem)
def test_our_configs_can_be_tested_at_other_sizes(path):
    try:
        cfg = Config.fromfile(path)
    except ImportError as error:  # a base in a library that is not installed
        pytest.skip(str(error))
    if cfg.default_scope == 'mmdet':
        with pytest.raises(UserError, match='classification and segmentation alone'):
            set_resolution(cfg, 640, str(path))
        return
    before = resolution(cfg.test_dataloader.dataset.pipeline)
    assert set_resolution(cfg, 640, str(path))
    assert resolution(cfg.test_dataloader.dataset.pipeline) == 640 != before
