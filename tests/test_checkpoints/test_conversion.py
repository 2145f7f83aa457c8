"""Whole checkpoints, classifier included: complete, reversible, right to the last digit."""

import json

import derivation
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope

from mmvim.checkpoints import to_official
from mmvim.checkpoints.conversion import ours_to_published, published_to_ours
from mmvim.errors import UserError
from mmvim.models import VisionMamba

ARCH = dict(embed_dims=16, num_layers=2, d_state=4)


def published(cls_token='middle', arch=ARCH, classes=5, **options):
    """Seeded weights under published keys, none at its initial value."""
    torch.manual_seed(0)
    model = VisionMamba(arch, **{'img_size': 64, 'cls_token': cls_token, **options})
    weights = to_official(model.state_dict(), cls_token)
    weights['head.weight'] = torch.zeros(classes, model.embed_dims)
    weights['head.bias'] = torch.zeros(classes)
    return {key: value + 0.02 * torch.randn_like(value) for key, value in weights.items()}


def classifier(arch, classes, **options):
    models = pytest.importorskip('mmpretrain.models')
    backbone = VisionMamba(arch, out_type='cls_token', **options)
    head = models.LinearClsHead(classes, backbone.embed_dims)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return models.ImageClassifier(backbone, head=head)


@pytest.mark.parametrize('size', ['tiny', 'small', 'base'])
def test_key_table_fills_the_classifier_and_leaves_none_over(goldens, size):
    """Shapes of a released file, every tensor on the meta device."""
    table = json.loads((goldens / 'cls' / f'statedict_vim_{size}.json').read_text())
    weights = {
        key: torch.empty(entry['shape'], device='meta') for key, entry in table['keys'].items()
    }
    assert len(weights) == 415
    converted = published_to_ours(weights, 'middle')
    with torch.device('meta'):
        model = classifier(size, 1000)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in converted.weights.items()}
    assert found == wanted
    named = {name for name, _ in model.named_parameters()}
    assert named < set(found) and set(found) - named == {'backbone.pos_embed_grid'}
    # The account names every tensor of both sides; class rows and patch rows are from one table.
    assert sum(row.tensors for row in converted.rows) == len(found) == 415 + 2
    assert [(row.source, row.target) for row in converted.rows if 'pos_embed' in row.target] == [
        ('pos_embed', 'backbone.pos_embed'),
        ('pos_embed', 'backbone.cls_pos_embed'),
        ('', 'backbone.pos_embed_grid'),
    ]
    assert {row.what for row in converted.rows} == {'renamed', 'changed', 'added'}
    assert converted.model.startswith(f'Vim {size}: 24 blocks')
    assert converted.model.endswith('class token middle, 1000 classes')


@pytest.mark.parametrize(
    'stride, rows, middle',
    [(16, 196, 98), pytest.param(8, 729, 364, marks=pytest.mark.slow)],
)
def test_full_size_logits_are_those_of_the_derivation(stride, rows, middle):
    """Vim-Ti in float64, as released and as fine-tuned with stride 8, against plain tensors."""
    weights = published(arch='tiny', classes=1000, img_size=224, patch_stride=stride)
    model = classifier('tiny', 1000, patch_stride=stride)
    model.load_state_dict(published_to_ours(weights, 'middle').weights, strict=True)
    image = torch.rand(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        logits = model.double().eval()(image, mode='tensor')
    weights = {key: value.double() for key, value in weights.items()}
    kernel, bias = (weights[f'patch_embed.proj.{name}'] for name in ('weight', 'bias'))
    patches = F.unfold(image, 16, stride=stride)[0].T @ kernel.flatten(1).T + bias
    assert len(patches) == rows
    tokens = torch.cat([patches[:middle], weights['cls_token'][0], patches[middle:]])
    taps = derivation.vision_mamba(weights, tokens + weights['pos_embed'][0], depth=24)
    out = derivation.norm(sum(taps[23]), weights['norm_f.weight'])[middle]
    expected = out @ weights['head.weight'].T + weights['head.bias']
    assert expected.std() > 0.01
    torch.testing.assert_close(logits[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('cls_token', ['none', 'head', 'middle', 'double'])
@pytest.mark.parametrize('head', [True, False])
def test_both_ways_bit_for_bit(cls_token, head):
    weights = published(cls_token)
    converted = published_to_ours(weights, cls_token, head=head)
    assert ('head.fc.weight' in converted.weights) == head
    back = ours_to_published(converted.weights, cls_token)
    if not head:
        del weights['head.weight'], weights['head.bias']
    assert back.weights.keys() == weights.keys()
    assert all(torch.equal(back.weights[key], value) for key, value in weights.items())
    again = published_to_ours(back.weights, cls_token, head=head)
    assert again.weights.keys() == converted.weights.keys()
    assert all(torch.equal(again.weights[key], value) for key, value in converted.weights.items())


@pytest.mark.parametrize(
    'img_size, cls_token, rows',
    [
        (64, 'middle', [8]),  # an even grid, 4 x 4
        (80, 'middle', [12]),  # an odd one, 5 x 5
        (80, 'head', [0]),
        (80, 'double', [0, 26]),
    ],
)
def test_class_rows_on_even_and_odd_grids(img_size, cls_token, rows):
    weights = published(cls_token, img_size=img_size)
    count = weights['pos_embed'].shape[1]
    weights['pos_embed'] = torch.arange(float(count)).reshape(1, -1, 1).repeat(1, 1, 16)
    converted = published_to_ours(weights, cls_token)
    assert converted.weights['backbone.cls_pos_embed'][0, :, 0].tolist() == rows
    (row,) = [row for row in converted.rows if row.target == 'backbone.cls_pos_embed']
    assert row[:4] == (
        'pos_embed',
        row.target,
        f'(1, {count}, 16) → (1, {len(rows)}, 16)',
        'changed',
    )
    back = ours_to_published(converted.weights, cls_token)
    assert torch.equal(back.weights['pos_embed'], weights['pos_embed'])


def test_stride_8_inserts_the_class_row_again(goldens):
    with np.load(goldens / 'posembed' / 'posembed.npz') as file:
        table, expected = (
            torch.from_numpy(file[key]) for key in ('ckpt_mid', 'finetune_correct_27')
        )
    weights = published(img_size=224)
    assert weights['pos_embed'].shape == table.shape == (1, 197, 16)
    weights['pos_embed'] = table
    converted = published_to_ours(weights, 'middle', grid=(27, 27))
    (row,) = [row for row in converted.rows if row.target == 'backbone.pos_embed']
    assert (row.shape, row.what) == ('(1, 197, 16) → (1, 729, 16)', 'changed')
    assert converted.model.endswith('; position embedding resized from 14×14 (bicubic)')
    back = ours_to_published(converted.weights, 'middle').weights['pos_embed']
    torch.testing.assert_close(back, expected, rtol=0, atol=1e-10)
    assert torch.equal(back[:, 364], table[:, 98])


def test_what_is_dropped_is_accounted_for():
    weights = published()
    weights |= {'rope.freqs_cos': torch.ones(16, 16), 'fpn1.0.weight': torch.ones(3)}
    converted = published_to_ours(weights, 'middle')
    dropped = {row.source for row in converted.rows if row.what == 'dropped'}
    assert dropped == {'rope.freqs_cos', 'fpn1.0.weight'}
    bare = published_to_ours(weights, 'middle', head=False)
    dropped = {row.source for row in bare.rows if row.target == ''}
    assert dropped == {'head.weight', 'head.bias', 'rope.freqs_cos', 'fpn1.0.weight'}
    assert not [key for key in bare.weights if key.startswith(('backbone', 'head'))]
    assert {row.what for row in bare.rows} == {'as it is', 'renamed', 'changed', 'added', 'dropped'}
    ours = converted.weights | {'decode_head.conv_seg.bias': torch.ones(3)}
    back = ours_to_published(ours, 'middle')
    assert {row.source for row in back.rows if row.target == ''} == {
        'backbone.pos_embed_grid',
        'decode_head.conv_seg.bias',
    }
    back = ours_to_published(ours, 'middle', head=False)
    assert {row.source for row in back.rows if row.target == ''} >= {
        'head.fc.weight',
        'head.fc.bias',
    }
    assert not [key for key in back.weights if key.startswith('head')]


def test_the_account_names_both_tokens_and_each_copy_of_a_tensor():
    weights = published('double')
    weights['layers.1.norm.weight'] = weights['layers.0.norm.weight']  # one tensor under two keys
    for rows in (
        published_to_ours(weights, 'double', head=False).rows,
        ours_to_published(published_to_ours(weights, 'double').weights).rows,
    ):
        token = {
            (row.source, row.target.rpartition('.')[2]) for row in rows if '_token' in row.source
        }
        assert token in (
            {('cls_token_head, cls_token_tail', 'cls_token')},
            {('backbone.cls_token', name) for name in ('cls_token_head', 'cls_token_tail')},
        )
        assert sum(row.tensors for row in rows if row.target.endswith('.norm.weight')) == 2


def test_whole_modules_that_are_dropped_are_counted():
    ours = dict(published_to_ours(published(), 'middle').weights)
    ours |= {f'decode_head.convs.{i}.weight': torch.ones(1) for i in range(9)}
    ours['neck.scale'] = torch.ones(2)
    dropped = {
        row.source: (row.tensors, row.shape)
        for row in ours_to_published(ours, 'middle').rows
        if row.what == 'dropped' and not row.source.startswith('backbone.')
    }
    assert dropped == {
        'decode_head.* (9 tensors)': (9, 'several'),
        'neck.scale': (1, '(2,)'),
    }


def test_backbone_prefix_of_a_dense_model():
    """A published segmentor: everything beside the backbone is named, nothing is converted."""
    weights = published('none')
    dense = {f'backbone.{k}': v for k, v in weights.items() if not k.startswith('head.')}
    dense['decode_head.conv_seg.weight'] = torch.ones(3)
    converted = published_to_ours(dense, 'none', head=False)
    VisionMamba(ARCH, img_size=64, cls_token='none').load_state_dict(converted.weights)
    (row,) = [row for row in converted.rows if row.source.startswith('decode_head')]
    assert row.what == 'dropped'


@pytest.mark.parametrize(
    'direction, options',
    [
        ('none', {}),
        ('ssm', dict(layer_scale_init=1.0)),
        ('ssm_conv', dict(norm_cfg=dict(type='LN'))),
    ],
)
def test_other_models_are_recognised(direction, options):
    arch = dict(embed_dims=32, num_layers=3, d_state=8, d_conv=3, expand=1, dt_rank=5)
    arch |= dict(conv_bias=False, proj_bias=True)
    weights = published(arch=arch, direction=direction, patch_size=8, in_channels=1, **options)
    converted = published_to_ours(weights, 'middle')
    assert converted.model == (
        f'Vim of its own size: 3 blocks of 32 channels, 8×8 patches of 8×8, direction {direction}, '
        'class token middle, 5 classes'
    )


@pytest.mark.parametrize('kind', ['missing', 'unexpected', 'shape', 'block', 'telling', 'square'])
def test_a_file_that_is_not_whole_is_refused(kind):
    weights = published()
    if kind == 'missing':
        del weights['layers.1.mixer.dt_proj_b.bias']
        says = r'1 key missing \(layers\.1\.mixer\.dt_proj_b\.bias\)'
    elif kind == 'unexpected':
        weights['layers.0.mixer.extra'] = torch.ones(1)
        says = r'1 key unexpected \(layers\.0\.mixer\.extra\)'
    elif kind == 'shape':
        weights['layers.1.mixer.D'] = torch.ones(3)
        says = r'1 key of another shape \(layers\.1\.mixer\.D: \(3\) in the file, \(32\) in'
    elif kind == 'block':
        weights['layers.3.norm.weight'] = torch.ones(16)
        says = r'missing \(layers\.2\..*…\)'
    elif kind == 'telling':
        del weights['layers.0.mixer.A_log']
        says = r'not whole: layers\.0\.mixer\.A_log missing'
    else:
        weights['pos_embed'] = torch.ones(1, 19, 16)
        says = '18 patch rows, which is no square grid'
    with pytest.raises(UserError, match=says):
        published_to_ours(weights, 'middle')


def test_what_cannot_be_converted_is_refused():
    weights = published()
    ours = published_to_ours(weights, 'middle').weights
    bare = {k: v for k, v in weights.items() if not k.startswith('head.')}
    for convert, given, says in (
        (published_to_ours, ours, 'nothing to convert: it has mmvim keys already'),
        (ours_to_published, weights, 'nothing to convert: it has published keys already'),
        (published_to_ours, bare, 'no linear classifier .*--backbone-only'),
        (
            published_to_ours,
            {'hidden.weight': torch.ones(1)},
            'no Vim checkpoint: it has neither patch',
        ),
        (
            published_to_ours,
            {'blocks.0.attn.qkv.weight': torch.ones(1), 'patch_embed.proj.weight': torch.ones(1)},
            'no Vim checkpoint: its keys are those of DeiT, MAE',
        ),
    ):
        with pytest.raises(UserError, match=says):
            convert(given, 'middle')
    with pytest.raises(UserError, match=r"cls_token='double' means"):
        published_to_ours(weights, 'double')
    with pytest.raises(UserError, match=r"1 class tokens, cls_token='none' means 0"):
        ours_to_published(ours, 'none')
    wide = published_to_ours(weights, 'middle', grid=(4, 8)).weights
    with pytest.raises(UserError, match='a grid of 4×8, and the published code knows square ones'):
        ours_to_published(wide, 'middle')
    del weights['pos_embed']
    with pytest.raises(UserError, match='no position embedding to resize'):
        published_to_ours(weights, 'middle', grid=(4, 8))
