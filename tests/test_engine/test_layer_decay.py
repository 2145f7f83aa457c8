"""Layer-wise decay, against the published optimisers parameter for parameter."""

import json
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.nn.utils import parametrize, prune

from mmvim.engine import LayerDecayOptimWrapperConstructor
from mmvim.models import SimpleFPN, VisionMamba


class Segmentor(nn.Module):
    """Backbone, published pyramid and two heads, under the names that models have."""

    def __init__(self, arch='tiny', **options):
        super().__init__()
        self.backbone = VisionMamba(arch, img_size=512, cls_token='none', **options)
        dims = self.backbone.embed_dims
        self.neck = nn.Module()
        self.neck.upsample_4x = nn.Sequential(
            nn.ConvTranspose2d(dims, dims, 2, 2),
            nn.BatchNorm2d(dims),
            nn.GELU(),
            nn.ConvTranspose2d(dims, dims, 2, 2),
        )
        self.neck.upsample_2x = nn.Sequential(nn.ConvTranspose2d(dims, dims, 2, 2))
        self.decode_head, self.auxiliary_head = nn.Module(), nn.Module()
        self.decode_head.conv_seg = nn.Conv2d(dims, 150, 1)
        self.auxiliary_head.conv_seg = nn.Conv2d(dims, 150, 1)


def build(model, lr=1e-4, weight_decay=0.05, **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=lr, weight_decay=weight_decay),
            constructor='mmvim.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=paramwise,
        ),
    )


def settings(wrapper):
    """Name -> (lr, weight decay, layer)."""
    return {
        name: (group['lr'], group['weight_decay'], group['layer_id'])
        for group in wrapper.optimizer.param_groups
        for name in group['param_names']
    }


def our_name(name):
    """A published parameter's name in our model."""
    for old, new in (
        ('backbone.patch_embed.proj.', 'backbone.patch_embed.projection.'),
        ('backbone.fpn1.', 'neck.upsample_4x.'),
        ('backbone.fpn2.', 'neck.upsample_2x.'),
    ):
        if name.startswith(old):
            return new + name[len(old) :]
    return name


@pytest.mark.parametrize(
    'file, as_published',
    [('seg_official_vim_tiny', 'segmentation'), ('seg_layers_fixed_vim_tiny', False)],
)
def test_published_segmentation_optimiser(goldens, file, as_published):
    golden = json.loads((goldens / 'lrdecay' / f'{file}.json').read_text())
    found = settings(
        build(
            Segmentor(),
            golden['base_lr'],
            golden['base_wd'],
            layer_decay_rate=golden['layer_decay_rate'],
            as_published=as_published,
        )
    )
    expected = {our_name(name): entry for name, entry in golden['params'].items()}
    assert found.keys() == expected.keys()
    for name, entry in expected.items():
        lr, weight_decay, layer = found[name]
        assert lr == pytest.approx(entry['lr'], rel=1e-12), name
        assert layer == entry['layer_id'], name
        if as_published:
            assert weight_decay == entry['weight_decay'], name
        elif name.endswith(('A_log', 'A_b_log', 'pos_embed')):
            assert weight_decay == 0, name
        else:
            assert weight_decay == entry['weight_decay'], name


class Detector(nn.Module):
    """Backbone, a level of the pyramid and a layer of a head, as the golden has them."""

    def __init__(self):
        super().__init__()
        self.backbone = VisionMamba('tiny', img_size=1024, cls_token='none', out_norm='none')
        self.neck = SimpleFPN(self.backbone.embed_dims)
        self.rpn_head = nn.Conv2d(96, 3, 1)


@pytest.mark.parametrize('as_published', ['detection', False])
def test_published_detection_optimiser(goldens, as_published):
    file = goldens / 'lrdecay' / 'det_official_vim_tiny_adj1_0p837.json'
    golden = json.loads(file.read_text())
    found = settings(
        build(
            Detector(),
            golden['base_lr'],
            golden['base_wd'],
            layer_decay_rate=golden['layer_decay_rate'],
            as_published=as_published,
        )
    )
    names = (
        ('backbone.net.patch_embed.proj.', 'backbone.patch_embed.projection.'),
        ('backbone.net.', 'backbone.'),
        ('backbone.simfp_2.', 'neck.levels.0.'),
        ('proposal_generator.', 'rpn_head.'),
    )
    seen = set()
    for published, entry in golden['params'].items():
        old, new = next(pair for pair in names if published.startswith(pair[0]))
        name = new + published[len(old) :]
        seen.add(name)
        lr, weight_decay, layer = found[name]
        assert lr == pytest.approx(entry['lr'], rel=1e-12), name
        assert layer == entry['layer_id'], name
        flat = len(entry['shape']) == 1
        if as_published or not (flat or name.endswith(('A_log', 'A_b_log'))):
            assert weight_decay == entry['weight_decay'], name
        else:
            assert weight_decay == 0, name
    # The golden holds the whole backbone, and one level of the pyramid in part.
    assert {name for name in found if name.startswith('backbone.')} <= seen


def test_given_multipliers_come_before_published_ones():
    found = settings(
        build(Segmentor(SMALL), weight_decay=1.0, as_published='detection', flat_decay_mult=0.2)
    )
    assert found['backbone.layers.0.mixer.D'][1] == 0.2
    assert found['backbone.layers.0.mixer.A_log'][1] == 1.0


SMALL = dict(embed_dims=16, num_layers=2)


def test_groups_are_few_and_hold_every_trainable_parameter_once():
    model = Segmentor(SMALL, frozen_stages=1)
    wrapper = build(model, layer_decay_rate=0.5)
    groups = wrapper.optimizer.param_groups
    params = [param for group in groups for param in group['params']]
    assert len(params) == len(set(params))
    assert set(params) == {param for param in model.parameters() if param.requires_grad}
    assert len(groups) == 4  # block 1 and the rest, decayed and not; frozen parts are left out


def test_multipliers():
    model = Segmentor(SMALL)
    found = settings(
        build(
            model,
            lr=1.0,
            weight_decay=1.0,
            layer_decay_rate=0.5,
            flat_decay_mult=0.1,
            bias_decay_mult=0.2,
            norm_decay_mult=0.3,
            custom_keys={
                'decode_head': dict(lr_mult=10.0),
                'decode_head.conv_seg.bias': dict(decay_mult=0.7, lr_mult=2.0),
            },
        )
    )
    assert found['backbone.layers.0.mixer.D'][:2] == (0.25, 0.1)
    assert found['backbone.layers.0.mixer.dt_proj.bias'][:2] == (0.25, 0.2)
    assert found['backbone.layers.1.norm.weight'][:2] == (0.5, 0.3)
    assert found['backbone.layers.1.mixer.A_log'][:2] == (0.5, 0.0)
    assert found['backbone.layers.1.mixer.in_proj.weight'][:2] == (0.5, 1.0)
    assert found['backbone.pos_embed'][:2] == (0.125, 0.0)
    assert found['decode_head.conv_seg.weight'][:2] == (10.0, 1.0)
    assert found['decode_head.conv_seg.bias'][:2] == (2.0, 0.7)


def test_a_custom_key_leaves_what_it_does_not_set():
    """The rest of a parameter's settings is that of the other rules, and of shorter keys."""
    options = dict(lr=1.0, weight_decay=1.0, layer_decay_rate=0.5)
    others = dict(norm_decay_mult=0.3, bias_decay_mult=0.2, flat_decay_mult=0.1)
    for rules in ({}, others, dict(as_published='detection'), dict(as_published='segmentation')):
        plain = settings(build(Segmentor(SMALL), **options, **rules))
        slower = dict(custom_keys={'backbone': dict(lr_mult=0.1)}, **rules)
        undecayed = dict(custom_keys={'backbone': dict(decay_mult=0.5)}, **rules)
        slower = settings(build(Segmentor(SMALL), **options, **slower))
        undecayed = settings(build(Segmentor(SMALL), **options, **undecayed))
        for name, (lr, decay, *_) in plain.items():
            own = name.startswith('backbone')
            assert slower[name][:2] == pytest.approx((lr * (0.1 if own else 1), decay)), name
            assert undecayed[name][:2] == pytest.approx((lr, 0.5 if own else decay)), name
    keys = {'backbone': dict(lr_mult=0.1), 'A_log': dict(decay_mult=0.7), 'D': dict(fused=False)}
    keys |= {'layers.1.mixer.A_log': dict(lr_mult=2.0)}
    wrapper = build(Segmentor(SMALL), **options, custom_keys=keys)
    found = settings(wrapper)
    assert found['backbone.layers.0.mixer.A_log'][:2] == pytest.approx((0.025, 0.7))
    assert found['backbone.layers.1.mixer.A_log'][:2] == pytest.approx((1.0, 0.7))
    assert found['backbone.layers.1.mixer.D'][:2] == pytest.approx((0.05, 0.0))
    (group, *_) = [g for g in wrapper.optimizer.param_groups if g.get('fused') is False]
    assert all(name.endswith('.D') or name.endswith('.D_b') for name in group['param_names'])


@pytest.mark.parametrize('cls_token', ['middle', 'double'])
def test_tokens_and_steps_do_not_decay(cls_token):
    model = nn.Module()
    model.backbone = VisionMamba(SMALL, img_size=32, cls_token=cls_token)
    found = settings(build(model, weight_decay=0.3, layer_decay_rate=0.5))
    tokens = ['cls_token', 'cls_pos_embed', 'pos_embed']
    mixer = ['A_log', 'A_b_log', 'D', 'D_b', 'dt_proj.bias', 'dt_proj_b.bias', 'conv1d.bias']
    names = [*tokens, 'norm_f.weight', 'layers.1.norm.weight']
    for name in [*names, *(f'layers.1.mixer.{part}' for part in mixer)]:
        assert found[f'backbone.{name}'][1] == 0, name
    for name in ('patch_embed.projection.weight', 'layers.1.mixer.dt_proj.weight'):
        assert found[f'backbone.{name}'][1] == 0.3, name


def test_other_names_of_pruned_and_parametrised_ones_do_not_decay_either():
    model = Segmentor(SMALL)
    mixer = model.backbone.layers[0].mixer
    prune.l1_unstructured(mixer, 'A_log', amount=0.5)
    parametrize.register_parametrization(mixer, 'A_b_log', nn.Identity())
    found = settings(build(model, weight_decay=0.3))
    decayed = {name for name, (_, decay, _) in found.items() if 'A_' in name and decay}
    assert not decayed and 'backbone.layers.0.mixer.A_log_orig' in found


def test_groups_are_logged_as_a_table():
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        wrapper = build(Segmentor(SMALL), lr=0.25, weight_decay=0.3, layer_decay_rate=0.5)
    finally:
        logger.removeHandler(handler)
    (table,) = [line for line in lines if line.startswith('Parameter groups')]
    head, *rows = [line.split() for line in table.splitlines()[1:]]
    assert head[:4] == ['layer', 'lr', 'lr', 'scale']
    assert len(rows) == len(wrapper.optimizer.param_groups)
    assert rows[:2] == [
        ['0', '0.0312', '0.125', '0', '2', 'backbone.pos_embed'],
        ['0', '0.0312', '0.125', '0.3', '1', 'backbone.patch_embed.projection.weight'],
    ]


def test_other_backbones_with_depths():
    pytest.importorskip('mmpretrain')
    from mmpretrain.models import ImageClassifier

    model = ImageClassifier(
        backbone=dict(type='VisionTransformer', arch='deit-tiny', img_size=32),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=192),
    )
    found = settings(build(model, lr=1.0, layer_decay_rate=0.9))
    assert found['backbone.layers.0.attn.qkv.weight'][0] == pytest.approx(0.9**12)
    assert found['head.fc.weight'][0] == 1.0


def test_scheduler_keeps_the_ratios():
    from mmengine.optim import LinearLR

    model = Segmentor(SMALL)
    wrapper = build(model, lr=1.0, layer_decay_rate=0.5)
    scheduler = LinearLR(wrapper, start_factor=0.1, by_epoch=False, begin=0, end=10)
    scheduler.step()
    ratios = [group['lr'] / group['lr_scale'] for group in wrapper.optimizer.param_groups]
    assert ratios == pytest.approx([ratios[0]] * len(ratios)) and 0.1 <= ratios[0] < 1


def test_bad_settings_are_named():
    model = Segmentor(SMALL)
    with pytest.raises(ValueError, match=r"layer_decay_rat'.*did you mean 'layer_decay_rate'"):
        build(model, layer_decay_rat=0.9)
    with pytest.raises(ValueError, match=r'layer_decay_rate must lie in \(0, 1\], got 1.5'):
        build(model, layer_decay_rate=1.5)
    with pytest.raises(ValueError, match=r"'segmentation', 'detection'.*got True"):
        build(model, as_published=True)
    with pytest.raises(TypeError, match=r'get_layer_depth.*Sequential'):
        build(nn.Sequential(nn.Linear(1, 1)), layer_decay_rate=0.9)


def test_it_trains():
    model = nn.Module()
    model.backbone = VisionMamba(SMALL, img_size=32, cls_token='none')
    wrapper = build(model, lr=1e-3, layer_decay_rate=0.9)
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
    before = model.backbone.pos_embed.clone()
    wrapper.update_params(model.backbone(torch.randn(2, 3, 32, 32))[0].square().mean())
    assert not torch.equal(before, model.backbone.pos_embed)


def test_registered():
    from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

    found = OPTIM_WRAPPER_CONSTRUCTORS.get('mmvim.LayerDecayOptimWrapperConstructor')
    assert found is LayerDecayOptimWrapperConstructor
