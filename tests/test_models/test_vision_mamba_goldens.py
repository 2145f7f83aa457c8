"""The backbone against what the published code computes, in float64."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mmvim.checkpoints import convert_official
from mmvim.models import VimMixer, VisionMamba

pytestmark = pytest.mark.stack
ARCH = dict(embed_dims=64, num_layers=4)
# Golden -> class token it was made with, and how the model differs from the published default.
CASES = {
    'main': ('middle', {}),
    'head_cls': ('head', {}),
    'mean_nocls': ('none', dict(out_type='avg_featmap')),
    'nodiv': ('middle', dict(average_directions=False)),
    'v1': ('middle', dict(direction='ssm')),
    'none': ('middle', dict(direction='none')),
}


def load_golden(folder, name):
    with np.load(folder / f'{name}.npz') as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def load_weights(folder, name, cls_token, direction):
    """Published weights of a variant: the main ones with the variant's laid over them."""
    weights = load_file(folder / 'main.weights.safetensors')
    extra = folder / f'{name}.extra.safetensors'
    if extra.exists():
        weights.update(load_file(extra))
    if cls_token == 'none':
        weights.pop('cls_token')
    # What a variant does not have: the backward direction shares or lacks these parameters.
    unused = {'ssm_conv': (), 'ssm': ('D_b', '1d_b.', 'proj_b.')}.get(
        direction, ('D_b', 'A_b_log', '1d_b.', 'proj_b.')
    )
    return {k: v for k, v in weights.items() if not any(u in k for u in unused)}


def build(folder, name, dtype=torch.float64, **overrides):
    cls_token, options = CASES[name]
    options = {'out_type': 'cls_token', **options, **overrides}
    weights = load_weights(folder, name, cls_token, options.get('direction', 'ssm_conv'))
    model = VisionMamba(ARCH, img_size=64, cls_token=cls_token, **options)
    official = convert_official(weights, cls_token)
    if options.get('out_norm') == 'none':
        del official['norm_f.weight']
    model.load_state_dict(official, strict=True)
    head = [official.extras['head.weight'].to(dtype), official.extras['head.bias'].to(dtype)]
    return model.to(dtype).eval(), head


@pytest.mark.parametrize('backend', ['chunked', 'reference'])
@pytest.mark.parametrize('name', CASES)
def test_forward_is_the_published_one(goldens, name, backend):
    golden = load_golden(goldens / 'cls', name)
    model, head = build(goldens / 'cls', name, scan_backend=backend)
    with torch.no_grad():
        (features,) = model(golden['x'].double())
    torch.testing.assert_close(features, golden['features'], rtol=0, atol=1e-10)
    torch.testing.assert_close(F.linear(features, *head), golden['logits'], rtol=0, atol=1e-10)


@pytest.mark.parametrize('name', CASES)
def test_float32_forward(goldens, name):
    golden = load_golden(goldens / 'cls', name)
    model, _ = build(goldens / 'cls', name, dtype=torch.float32)
    with torch.no_grad():
        (features,) = model(golden['x'])
    torch.testing.assert_close(features.double(), golden['features'], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize('tap', ['residual', 'mixer'])
@pytest.mark.parametrize('name', CASES)
def test_every_tap_is_the_published_stream(goldens, name, tap):
    golden = load_golden(goldens / 'cls', name)
    model, _ = build(
        goldens / 'cls', name, out_type='raw', tap=tap, out_norm='none', out_indices=range(4)
    )
    with torch.no_grad():
        taps = model(golden['x'].double())
    for i, tokens in enumerate(taps):
        expected = golden[f'block{i}.hidden']
        if tap == 'residual':
            expected = expected + golden[f'block{i}.residual']
        torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-10)


def test_final_norm_covers_the_whole_sequence(goldens):
    golden = load_golden(goldens / 'cls', 'main')
    model, _ = build(goldens / 'cls', 'main', out_type='raw')
    with torch.no_grad():
        (tokens,) = model(golden['x'].double())
    torch.testing.assert_close(tokens, golden['norm_f_out'], rtol=0, atol=1e-10)


@pytest.mark.parametrize('backend', ['chunked', 'reference'])
@pytest.mark.parametrize('name, file', [('main', 'main.grads_f32'), ('v1', 'v1.grads_rounded_f32')])
def test_gradients(goldens, name, file, backend):
    golden = load_golden(goldens / 'cls', name)
    grads = load_golden(goldens / 'cls', file)
    grads = {
        key.removeprefix('grad.'): value
        for key, value in grads.items()
        if key not in ('grad.x', 'loss')
    }
    expected = convert_official(grads, 'middle')
    model, head = build(goldens / 'cls', name, scan_backend=backend)
    head = [tensor.requires_grad_() for tensor in head]
    image = golden['x'].double().requires_grad_()
    (features,) = model(image)
    loss = (F.linear(features, *head) * golden['loss_weight']).sum()
    torch.testing.assert_close(loss, golden['loss'], rtol=0, atol=1e-10)
    loss.backward()
    torch.testing.assert_close(image.grad, golden['grad.x'], rtol=0, atol=1e-10)
    found = {key: param.grad for key, param in model.named_parameters()}
    assert found.keys() == expected.keys()
    pairs = [(key, found[key], expected[key]) for key in expected]
    pairs += [
        ('head.weight', head[0].grad, expected.extras['head.weight']),
        ('head.bias', head[1].grad, expected.extras['head.bias']),
    ]
    for key, grad, wanted in pairs:
        error = (grad - wanted).abs().max() / wanted.abs().max()
        assert error <= 1e-4, (key, error)


@pytest.mark.parametrize('backend', ['chunked', 'reference'])
@pytest.mark.parametrize(
    'case, options',
    [
        ('v2_div', {}),
        ('v2', dict(average_directions=False)),
        ('v1', dict(direction='ssm')),
        ('none', dict(direction='none')),
        ('v2_gamma', dict(layer_scale_init=1.0)),
    ],
)
def test_mixer(goldens, case, options, backend):
    golden = load_golden(goldens / 'ops', 'mixer')
    params = {
        key.removeprefix(f'{case}.param.'): value.double()
        for key, value in golden.items()
        if key.startswith(f'{case}.param.')
    }
    mixer = VimMixer(24, d_state=8, **options, scan_backend=backend).double()
    mixer.load_state_dict(params, strict=True)
    x = golden['x'].double().requires_grad_()
    out = mixer(x)
    torch.testing.assert_close(out, golden[f'{case}.out'], rtol=0, atol=1e-10)
    (out * golden['w']).sum().backward()
    torch.testing.assert_close(x.grad, golden[f'{case}.grad.x'], rtol=0, atol=1e-10)
    for key, param in mixer.named_parameters():
        torch.testing.assert_close(param.grad, golden[f'{case}.grad.{key}'], rtol=1e-10, atol=1e-10)


SEG_CASES = {
    'res0_none': dict(tap='mixer', out_norm='none'),
    'res1_add': dict(out_norm='none'),
    'res1_addandnorm': dict(out_norm='last'),
}


def build_seg(goldens, options):
    weights = load_file(goldens / 'seg' / 'base.weights.safetensors')
    model = VisionMamba(
        dict(embed_dims=32, num_layers=4),
        img_size=96,
        cls_token='none',
        out_indices=(0, 1, 2, 3),
        **options,
    )
    official = convert_official(weights, 'none')
    if options['out_norm'] == 'none':
        # Published files hold a final norm whether or not the taps use it.
        del official['norm_f.weight']
    model.load_state_dict(official, strict=True)
    return model.double().eval(), official.extras


@pytest.mark.parametrize('case', SEG_CASES)
def test_dense_taps(goldens, case):
    golden = load_golden(goldens / 'seg', 'grid')
    model, _ = build_seg(goldens, SEG_CASES[case])
    with torch.no_grad():
        taps = model(golden['x'].double())
    for i, tap in enumerate(taps):
        expected = golden[f'fpn0_{case}.feat{i}']
        torch.testing.assert_close(tap, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize('case', SEG_CASES)
def test_dense_pyramid_is_mmsegs(goldens, case):
    necks = pytest.importorskip('mmseg.models.necks')
    golden = load_golden(goldens / 'seg', 'grid')
    model, extras = build_seg(goldens, SEG_CASES[case])
    neck = necks.Feature2Pyramid(32, norm_cfg=dict(type='BN')).double().eval()
    names = {'fpn1.': 'upsample_4x.', 'fpn2.': 'upsample_2x.'}
    weights = {}
    for key, value in extras.items():
        old = next(old for old in names if key.startswith(old))
        weights[names[old] + key.removeprefix(old)] = value
    neck.load_state_dict(weights, strict=True)
    with torch.no_grad():
        levels = neck(model(golden['x'].double()))
    for i, level in enumerate(levels):
        expected = golden[f'fpn1_{case}.feat{i}']
        torch.testing.assert_close(level, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    'source, cls_token, img_size, expected',
    [
        ('ckpt_mid', 'middle', 224, 'mid_correct_14'),
        ('ckpt_mid', 'middle', 512, 'mid_correct_32'),
        ('ckpt_mid', 'middle', 1024, 'mid_correct_64'),
        ('ckpt_nocls', 'none', 512, 'nocls_official_32'),
        ('ckpt_nocls', 'none', (320, 576), 'nocls_to_20x36'),
        ('ckpt_nocls', 'none', 112, 'nocls_to_7x7'),
    ],
)
def test_loading_gives_every_patch_its_own_row(goldens, source, cls_token, img_size, expected):
    golden = load_golden(goldens / 'posembed', 'posembed')
    table = golden[source]
    tokens = {} if cls_token == 'none' else {'cls_token': torch.zeros(1, 1, 16)}
    official = convert_official({'pos_embed': table, **tokens}, cls_token)
    model = VisionMamba(
        dict(embed_dims=16, num_layers=1), img_size=img_size, cls_token=cls_token
    ).double()
    state = model.state_dict() | official
    del state['pos_embed_grid']
    model.load_state_dict(state, strict=True)
    torch.testing.assert_close(model.pos_embed.data, golden[expected], rtol=0, atol=1e-10)
    if cls_token == 'middle':
        torch.testing.assert_close(model.cls_pos_embed.data, table[:, 98:99], rtol=0, atol=0)


def test_stride_8_fine_tune_inserts_the_class_row(goldens):
    from mmvim.checkpoints import to_official

    golden = load_golden(goldens / 'posembed', 'posembed')
    official = convert_official(
        {'pos_embed': golden['ckpt_mid'], 'cls_token': torch.zeros(1, 1, 16)}
    )
    model = VisionMamba(dict(embed_dims=16, num_layers=1), patch_stride=8).double()
    state = model.state_dict() | official
    del state['pos_embed_grid']
    model.load_state_dict(state, strict=True)
    table = to_official(model.state_dict())['pos_embed']
    torch.testing.assert_close(table, golden['finetune_correct_27'], rtol=0, atol=1e-10)


@pytest.mark.parametrize('size', ['tiny', 'small', 'base'])
def test_published_key_table(goldens, size):
    """Every published key maps to one of ours with its shape, and none is left over."""
    table = json.loads((goldens / 'cls' / f'statedict_vim_{size}.json').read_text())
    shapes = table.get('keys', table)
    official = convert_official({key: torch.zeros(_shape(v)) for key, v in shapes.items()})
    with torch.device('meta'):
        model = VisionMamba(size)
    ours = {key: tuple(param.shape) for key, param in model.named_parameters()}
    assert {key: tuple(value.shape) for key, value in official.items()} == ours
    assert set(official.extras) == {'head.weight', 'head.bias'}


def _shape(entry):
    return entry['shape'] if isinstance(entry, dict) else entry


def test_initialisation_is_the_published_one(goldens):
    """Mean, spread and range of each parameter; dt_proj_b.bias is drawn like dt_proj.bias."""
    table = json.loads((goldens / 'cls' / 'init_stats_vim_tiny.json').read_text())['keys']
    torch.manual_seed(0)
    model = VisionMamba('tiny')
    from mmvim.checkpoints import to_official

    ours = to_official(model.state_dict())
    for key, stats in table.items():
        if key.startswith('head.'):
            continue
        if key.endswith('dt_proj_b.bias'):
            stats = table[key.replace('dt_proj_b', 'dt_proj')]
        value = ours[key].double()
        assert list(value.shape) == stats['shape']
        if stats['std'] == 0 or value.numel() == 1:
            assert value.std().item() == 0 and value.mean().item() == pytest.approx(stats['mean'])
            continue
        # Two independent draws: standard errors of mean and spread, at five sigma.
        sigma, n = stats['std'], value.numel()
        assert value.mean().item() == pytest.approx(stats['mean'], abs=7 * sigma / n**0.5), key
        assert value.std().item() == pytest.approx(sigma, rel=10 / n**0.5), key
        assert value.min().item() >= stats['min'] - 1.5 * sigma, key
        assert value.max().item() <= stats['max'] + 1.5 * sigma, key
