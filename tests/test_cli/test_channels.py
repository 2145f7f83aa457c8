"""Channels of backbone, neck and heads are compared before anything is built."""

import copy
from pathlib import Path

import pytest
from mmengine.config import Config

from mmvim.cli.channels import check_channels
from mmvim.cli.config import require
from mmvim.errors import UserError

CONFIGS = Path(__file__).parents[2] / 'configs'
MODEL = dict(
    backbone=dict(type='mmvim.VisionMamba', arch='tiny', out_indices=-1),
    neck=dict(type='mmvim.SimpleFPN', in_channels=192, out_channels=256),
    rpn_head=dict(type='RPNHead', in_channels=256),
    roi_head=dict(
        bbox_roi_extractor=dict(type='SingleRoIExtractor', out_channels=256),
        bbox_head=[dict(type='BBoxHead', in_channels=256)] * 3,
        mask_head=dict(type='FCNMaskHead', in_channels=256),
    ),
)


def changed(path, value):
    model = copy.deepcopy(MODEL)
    *parents, last = path.split('.')
    node = model
    for key in parents:
        node = node[int(key) if key.isdigit() else key]
    node[last] = value
    return model


@pytest.mark.parametrize(
    'path, value, words',
    [
        ('neck.in_channels', 384, ['gives 1 map of [192]', 'says 1 map of [384]']),
        ('backbone.arch', 'base', ['gives 1 map of [768]', 'says 1 map of [192]']),
        ('backbone.arch', dict(embed_dims=64), ['gives 1 map of [64]', 'says 1 map of [192]']),
        ('backbone.out_indices', [5, 23], ['gives 2 maps of [192, 192]', 'says 1 map of [192]']),
        ('neck.in_channels', [192] * 4, ['gives 1 map of [192]', 'says 4 maps of']),
        ('neck.out_channels', 128, ['out_channels is 128', 'rpn_head.in_channels is 256']),
        ('rpn_head.in_channels', 128, ['is 256', 'model.rpn_head.in_channels is 128']),
        ('roi_head.mask_head.in_channels', 64, ['model.roi_head.mask_head.in_channels is 64']),
        ('roi_head.bbox_head.2', dict(in_channels=64), ['bbox_head[2].in_channels is 64']),
        ('roi_head.bbox_roi_extractor.out_channels', 64, ['bbox_roi_extractor.out_channels is 64']),
    ],
)
def test_numbers_that_differ(path, value, words):
    model = copy.deepcopy(MODEL)
    if path == 'roi_head.bbox_head.2':
        model['roi_head']['bbox_head'][2] = value
    else:
        model = changed(path, value)
    with pytest.raises(UserError) as error:
        check_channels(model)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    'model',
    [
        MODEL,
        dict(backbone=MODEL['backbone']),
        dict(MODEL, backbone=dict(type='ResNet', depth=50)),
        dict(MODEL, neck=dict(type='FPN', in_channels=[192], out_channels=256)),
        dict(MODEL, bbox_head=dict(type='Head')),
        dict(MODEL, neck=[dict(type='FPN', in_channels=[1]), dict(type='Other')]),
        changed('roi_head.bbox_roi_extractor', dict(type='GenericRoIExtractor', out_channels=512)),
        changed('backbone.arch', 'unknown'),
    ],
)
def test_silent_about_what_fits_or_is_unknown(model):
    check_channels(model)


@pytest.mark.parametrize(
    'file',
    [
        'upernet/vim-tiny_upernet_4xb8-60k_ade20k-512x512.py',
        'dropin/vim-tiny_setr-mla_4xb8-60k_ade20k-512x512.py',
        'dropin/vim-tiny_dpt_4xb8-60k_ade20k-512x512.py',
    ],
)
def test_segmentation_configs_fit(file):
    pytest.importorskip('mmseg')
    check_channels(Config.fromfile(CONFIGS / file).model)


def test_tools_check_before_they_build():
    with pytest.raises(UserError, match=r'\[192\].*\[384\]'):
        require(Config(dict(model=changed('neck.in_channels', 384))), 'c.py', 'testing', 'model')
