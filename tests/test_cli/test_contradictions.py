"""What a config says twice and differently."""

import copy
import importlib.util
import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmvim.cli.config import enter_default_scope, load_config
from mmvim.cli.contradictions import (
    check_batch,
    check_channels,
    check_class_weights,
    check_classes,
    check_config,
    check_schedule,
    check_trackers,
)
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
        ('neck.in_channels', 384, ['gives maps of [192]', 'says [384]']),
        ('backbone.arch', 'base', ['gives maps of [768]', 'says [192]']),
        ('backbone.arch', dict(embed_dims=64), ['gives maps of [64]', 'says [192]']),
        ('backbone.out_indices', [5, 23], ['gives maps of [192, 192]', 'says [192]']),
        ('neck.in_channels', [192] * 4, ['gives maps of [192]', 'says [192, 192, 192, 192]']),
        ('neck.out_channels', 128, ['out_channels is 128', 'rpn_head.in_channels is [256]']),
        ('rpn_head.in_channels', 128, ['is 256', 'model.rpn_head.in_channels is [128]']),
        ('roi_head.mask_head.in_channels', 64, ['model.roi_head.mask_head.in_channels is [64]']),
        ('roi_head.bbox_head.2', dict(in_channels=64), ['roi_head.bbox_head.in_channels is [64]']),
        (
            'roi_head.bbox_roi_extractor.out_channels',
            64,
            ['bbox_roi_extractor.out_channels is [64]'],
        ),
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


PYRAMID = dict(
    backbone=dict(type='mmvim.VisionMamba', arch='tiny', out_indices=[5, 11, 17, 23]),
    neck=dict(type='Feature2Pyramid', embed_dim=192),
    decode_head=dict(type='UPerHead', in_channels=[192] * 4),
    auxiliary_head=dict(type='FCNHead', in_channels=192),
)
CLASSIFIER = dict(
    backbone=dict(type='mmvim.VisionMamba', arch='small', out_type='cls_token'),
    head=dict(type='LinearClsHead', in_channels=384),
)


@pytest.mark.parametrize(
    'model, changes, words',
    [
        (PYRAMID, dict(neck=dict(embed_dim=384)), ['maps of [192, 192, 192, 192]', 'embed_dim']),
        (PYRAMID, dict(backbone=dict(arch='base')), ['maps of [768, 768', 'embed_dim says [192']),
        (PYRAMID, dict(backbone=dict(out_indices=[5, 23])), ['maps of [192, 192] channels']),
        (PYRAMID, dict(neck=dict(rescales=[4, 2])), ['model.neck.embed_dim says [192, 192]']),
        (
            PYRAMID,
            dict(decode_head=dict(in_channels=[192, 192, 192, 96])),
            ['model.neck.embed_dim is 192', 'model.decode_head.in_channels is [192, 192, 192, 96]'],
        ),
        (
            PYRAMID,
            dict(auxiliary_head=dict(in_channels=96)),
            ['auxiliary_head.in_channels is [96]'],
        ),
        (CLASSIFIER, dict(head=dict(in_channels=192)), ['the width of model.backbone is 384']),
        (CLASSIFIER, dict(backbone=dict(arch='tiny')), ['is 192, but model.head.in_channels']),
    ],
)
def test_numbers_that_differ_without_a_neck_or_with_a_pyramid(model, changes, words):
    check_channels(model)
    broken = {name: {**part, **changes.get(name, {})} for name, part in model.items()}
    with pytest.raises(UserError) as error:
        check_channels(broken)
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
    'file', sorted(CONFIGS.glob('[a-z]*/*.py')), ids=lambda path: f'{path.parent.name}/{path.stem}'
)
def test_our_configs_contradict_nothing(file, capsys):
    try:
        cfg = load_config(str(file))
    except UserError as error:  # a base in a library that is not installed
        pytest.skip(str(error))
    check_config(cfg, ['train', 'val', 'test'])
    assert 'warning' not in capsys.readouterr().err


@pytest.mark.parametrize('where', ['model', 'model.backbone'])
def test_weights_by_the_old_name_are_refused(where):
    cfg = Config(dict(default_scope='mmseg', model=dict(backbone=dict(type='mmvim.VisionMamba'))))
    cfg.merge_from_dict({f'{where}.pretrained': None})
    check_config(cfg, [])
    cfg.merge_from_dict({f'{where}.pretrained': 'a.pth'})
    with pytest.raises(UserError, match=rf"{where}\.pretrained='a\.pth' is not .*PretrainedVim"):
        check_config(cfg, [])


def head(loss, weights, **settings):
    loss = {loss: dict(type='L', class_weight=weights, **settings)}
    return dict(roi_head=dict(bbox_head=[dict(num_classes=3, **loss)]))


@pytest.mark.parametrize(
    'loss, settings, length',
    [
        ('loss', {}, 3),
        ('loss_decode', {}, 3),
        ('loss_cls', {}, 4),
        ('loss_cls', dict(use_sigmoid=True), 3),
    ],
)
def test_class_weights(loss, settings, length):
    check_class_weights(head(loss, [1.0] * length, **settings))
    check_class_weights(head(loss, 1.0, **settings))
    for wrong in (length - 1, length + 1):
        says = rf'model\.roi_head\.bbox_head\.{loss}\.class_weight has {wrong} .*give {length}$'
        with pytest.raises(UserError, match=says):
            check_class_weights(head(loss, [1.0] * wrong, **settings))
    several = dict(num_classes=3, loss_decode=[dict(type='A'), dict(type='B', class_weight=[1.0])])
    with pytest.raises(UserError, match='has 1 numbers'):
        check_class_weights(dict(decode_head=several))


@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize('of', ['metainfo', 'type'])
def test_classes_of_a_detector(of, several):
    pytest.importorskip('mmdet')
    enter_default_scope('mmdet', 'a.py')
    data = dict(type='CocoDataset', pipeline=[dict(type='LoadImageFromFile')])
    if of == 'metainfo':
        data['metainfo'] = dict(classes=('a', 'b', 'c'))
    count = 3 if of == 'metainfo' else 80
    loader = dict(dataset=dict(type='RepeatDataset', times=2, dataset=data))

    def model(number):
        heads = dict(bbox_head=dict(num_classes=number), mask_head=dict(num_classes=count))
        return dict(roi_head=dict(heads, bbox_head=[heads['bbox_head']])) if several else heads

    check_classes(model(count), loader, 'train_dataloader')
    with pytest.raises(UserError, match=f'bbox_head has num_classes=7, .*have {count} classes'):
        check_classes(model(7), loader, 'train_dataloader')


def batch(size, launcher='none', norm='BN', type_='mmseg.UPerHead'):
    return Config(
        dict(
            launcher=launcher,
            train_dataloader=dict(batch_size=size),
            model=dict(decode_head=dict(type=type_, norm_cfg=dict(type=norm))),
        )
    )


def test_one_image_a_batch_under_batch_norm():
    for fine in (
        batch(2),
        batch(1, norm='GN'),
        batch(1, launcher='pytorch', norm='SyncBN'),
        batch(1, type_='FCNHead'),
    ):
        check_batch(fine)
    for wrong in (batch(1), batch(1, norm='SyncBN'), batch(1, launcher='pytorch')):
        with pytest.raises(UserError, match=r'UPerHead .*batch_size=1 .*take 2 or more'):
            check_batch(wrong)


def schedule(sampler='DefaultSampler', schedulers=(), saves=False, **loop):
    return Config(
        dict(
            train_cfg=loop,
            train_dataloader=dict(sampler=dict(type=sampler)),
            param_scheduler=list(schedulers),
            default_hooks=dict(checkpoint=dict(by_epoch=saves)),
        )
    )


BY_EPOCH, BY_ITERATION = dict(by_epoch=True, max_epochs=3), dict(by_epoch=False, max_iters=30)


@pytest.mark.parametrize(
    'cfg, says',
    [
        (schedule('InfiniteSampler', **BY_EPOCH), 'sampler=InfiniteSampler the first one never'),
        (
            schedule('mmseg.InfiniteSampler', type='EpochBasedTrainLoop', max_epochs=3),
            'the first one never ends',
        ),
        (
            schedule(schedulers=[dict(by_epoch=False), dict(end=2)], **BY_ITERATION),
            r'param_scheduler\.1 counts epochs',
        ),
        (
            schedule(schedulers=[dict(by_epoch=True)], type='IterBasedTrainLoop', max_iters=30),
            r'param_scheduler\.0 counts epochs',
        ),
    ],
)
def test_epochs_against_iterations(cfg, says):
    with pytest.raises(UserError, match=says):
        check_schedule(cfg)


@pytest.mark.parametrize(
    'cfg, says',
    [
        (schedule(schedulers=[dict(by_epoch=False, end=60000)], **BY_EPOCH), 'their ends: 60000'),
        (schedule(saves=True, **BY_ITERATION), 'nothing is saved before the end'),
        (schedule(saves=True, **BY_EPOCH), None),
        (schedule(schedulers=[dict(by_epoch=False, end=5), dict()], **BY_EPOCH), None),
        (schedule(schedulers=[dict(convert_to_iter_based=True)], **BY_ITERATION), None),
        (schedule(schedulers=[dict(type='ReduceOnPlateauLR')], **BY_ITERATION), None),
        (schedule('InfiniteSampler', [dict(by_epoch=False)], **BY_ITERATION), None),
        (schedule('InfiniteSampler', [dict()], type='LoopOfMyOwn'), None),
    ],
)
def test_schedules_that_run(cfg, says, capsys):
    check_schedule(cfg)
    said = capsys.readouterr().err
    assert re.search(f'^warning: .*{says}', said) if says else not said


@pytest.mark.parametrize('name', ['Tensorboard', 'Wandb', 'MLflow', 'ClearML', 'Neptune', 'Aim'])
def test_a_tracker_that_is_not_installed_is_told_before_the_run(name, monkeypatch):
    installed = []
    monkeypatch.setattr(importlib.util, 'find_spec', lambda package: package in installed or None)
    backends = [dict(type='LocalVisBackend'), dict(type=f'mmengine.{name}VisBackend')]
    cfg = Config(dict(visualizer=dict(type='Visualizer', vis_backends=backends)))
    with pytest.raises(
        UserError, match=rf'{name}VisBackend, which needs .*{name.lower()}'
    ) as error:
        check_trackers(cfg)
    assert f'pip install {name.lower()}' in str(error.value)
    installed.append(name.lower())
    check_trackers(cfg)
    cfg.visualizer.vis_backends = dict(type='DVCLiveVisBackend')
    with pytest.raises(UserError, match='dvclive'):
        check_trackers(cfg)
    check_trackers(Config(dict(visualizer=None)))
