"""The simple feature pyramid, against its arithmetic written down again in float64."""

import math

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmvim.models import LN2d, SimpleFPN, VisionMamba


def randomise(module, seed=0):
    """Nothing stays at its initial value, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in module.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.3)
    return module.double().eval()


def image(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_norm(x, weight, bias, eps):
    """Every position of (C, H, W) over its channels, by mean and variance."""
    out = torch.empty_like(x)
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            cell = x[:, row, column]
            spread = ((cell - cell.mean()) ** 2).mean()
            out[:, row, column] = (cell - cell.mean()) / torch.sqrt(spread + eps) * weight + bias
    return out


def doubled(x, weight, bias):
    """Transposed 2x2 convolution of stride 2: every cell becomes a 2x2 block of its own."""
    out = x.new_zeros(weight.shape[1], 2 * x.shape[1], 2 * x.shape[2])
    for i in range(2):
        for j in range(2):
            out[:, i::2, j::2] = torch.einsum('chw,cd->dhw', x, weight[:, :, i, j])
    return out + bias[:, None, None]


def halved(x):
    """Largest of every 2x2 block; blocks at an odd edge are smaller."""
    rows, columns = math.ceil(x.shape[1] / 2), math.ceil(x.shape[2] / 2)
    out = x.new_empty(len(x), rows, columns)
    for i in range(rows):
        for j in range(columns):
            out[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax(dim=(1, 2))
    return out


def convolved(x, weight):
    """Correlation with zeros around, bias-free."""
    reach = weight.shape[-1] // 2
    rows, columns = x.shape[1:]
    padded = x.new_zeros(len(x), rows + 2 * reach, columns + 2 * reach)
    padded[:, reach : reach + rows, reach : reach + columns] = x
    out = x.new_zeros(len(weight), rows, columns)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            window = padded[:, i : i + rows, j : j + columns]
            out += torch.einsum('chw,oc->ohw', window, weight[:, :, i, j])
    return out


def level(p, x, step, eps):
    """One level from the parameters in the order in which they were made."""
    p = iter(p)
    for done in range(step):
        if done:
            x = layer_norm(x, next(p), next(p), eps)
            x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        x = doubled(x, next(p), next(p))
    for _ in range(-step):
        x = halved(x)
    for _ in range(2):
        x = layer_norm(convolved(x, next(p)), next(p), next(p), eps)
    assert next(p, None) is None
    return x


@pytest.mark.parametrize(
    'options, size, steps',
    [
        (dict(in_channels=8), (4, 6), (2, 1, 0, -1)),
        (dict(in_channels=8), (3, 5), (2, 1, 0, -1)),
        (dict(in_channels=[8, 4, 6, 5]), (4, 3), (2, 1, 0, -1)),
        (dict(in_channels=[8], patch_stride=8), (7, 6), (1, 0, -1, -2)),
        (dict(in_channels=8, out_strides=(8, 16, 32)), (4, 4), (1, 0, -1)),
        (dict(in_channels=16, patch_stride=32), (2, 3), (3, 2, 1, 0)),
    ],
)
def test_values(options, size, steps):
    neck = randomise(SimpleFPN(out_channels=6, **options))
    channels = options['in_channels']
    channels = channels if isinstance(channels, list) else [channels]
    maps = [image(2, c, *size, seed=i) for i, c in enumerate(channels)]
    outs = neck(tuple(maps))
    assert len(outs) == 5
    assert {out.dtype for out in outs} == {torch.float64}
    expected = []
    for number, step in enumerate(steps):
        source = maps[number % len(maps)]
        params = list(neck.levels[number].parameters())
        expected.append(torch.stack([level(params, x, step, 1e-6) for x in source]))
    while len(expected) < 5:
        expected.append(expected[-1][:, :, ::2, ::2])
    for out, exact in zip(outs, expected):
        assert out.shape == exact.shape
        torch.testing.assert_close(out, exact, rtol=0, atol=1e-10)


def test_parameters_are_the_published_ones():
    """detectron2's ViTDet pyramid: names differ, shapes and biases do not."""
    neck = SimpleFPN(in_channels=192)
    shapes = [[tuple(p.shape) for p in level.parameters()] for level in neck.levels]

    def tail(c):
        return [(256, c, 1, 1), (256,), (256,), (256, 256, 3, 3), (256,), (256,)]

    first, second = [(192, 96, 2, 2), (96,)], [(96, 48, 2, 2), (48,)]
    assert shapes == [
        [*first, (96,), (96,), *second, *tail(48)],
        [*first, *tail(96)],
        tail(192),
        tail(192),
    ]


def test_convolutions_start_as_torch_draws_them():
    """Uniform below the root of the fan-in's inverse, not ConvModule's draw for a ReLU."""
    torch.manual_seed(0)
    neck = SimpleFPN(in_channels=64)
    neck.init_weights()
    for module in neck.modules():
        if isinstance(module, torch.nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            assert 0.95 * bound < module.weight.abs().max() <= bound


@pytest.mark.parametrize('patch_stride, pixels', [(16, 64), (8, 64), (8, 56), (32, 128)])
def test_strides_follow_the_backbone(patch_stride, pixels):
    """Whatever the patch stride, the levels have strides 4, 8, 16, 32 and 64."""
    arch = dict(embed_dims=16, num_layers=2, d_state=4)
    backbone = VisionMamba(
        arch, img_size=pixels, patch_size=patch_stride, cls_token='none', out_norm='none'
    )
    neck = SimpleFPN(in_channels=16, out_channels=8, patch_stride=patch_stride)
    outs = neck(backbone(torch.rand(1, 3, pixels, pixels)))
    assert [out.shape[-1] for out in outs] == [math.ceil(pixels / s) for s in (4, 8, 16, 32, 64)]


def test_maps_are_contiguous_and_gradients_reach_everything():
    neck = SimpleFPN(in_channels=8, out_channels=4)
    x = torch.randn(2, 8, 4, 6).to(memory_format=torch.channels_last).requires_grad_()
    outs = neck((x,))
    assert all(out.is_contiguous() for out in outs)
    torch.testing.assert_close(outs, neck((x.contiguous(),)))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for name, param in neck.named_parameters():
        assert param.grad is not None and param.grad.abs().max() > 0, name
    assert x.grad.abs().min() > 0


def test_normalises_in_float32_under_autocast():
    neck = SimpleFPN(in_channels=8, out_channels=4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outs = neck((torch.randn(1, 8, 4, 4),))
    assert {out.dtype for out in outs} == {torch.float32}


@pytest.mark.parametrize('norm_cfg', [None, dict(type='GN', num_groups=2), dict(type='BN')])
def test_other_norms(norm_cfg):
    neck = SimpleFPN(in_channels=8, out_channels=4, norm_cfg=norm_cfg)
    assert not any(isinstance(module, LN2d) for module in neck.modules())
    assert [out.shape[1] for out in neck((torch.randn(2, 8, 4, 4),))] == [4] * 5


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_built_by_name_in_any_library(scope):
    pytest.importorskip(scope)
    with DefaultScope.overwrite_default_scope(scope):
        neck = MODELS.build(dict(type='mmvim.SimpleFPN', in_channels=8, out_channels=4))
    assert isinstance(neck, SimpleFPN)
    assert sum(isinstance(module, LN2d) for module in neck.modules()) == 9


def test_a_neck_of_a_segmentor():
    segmentors = pytest.importorskip('mmseg.models.segmentors')
    arch = dict(embed_dims=16, num_layers=2, d_state=4)
    model = segmentors.EncoderDecoder(
        data_preprocessor=dict(type='mmseg.SegDataPreProcessor'),
        backbone=dict(
            type='mmvim.VisionMamba', arch=arch, img_size=32, cls_token='none', out_norm='none'
        ),
        neck=dict(type='mmvim.SimpleFPN', in_channels=16, out_channels=8, num_outs=4),
        decode_head=dict(
            type='mmseg.UPerHead', in_channels=[8] * 4, in_index=[0, 1, 2, 3], channels=8,
            num_classes=3, norm_cfg=dict(type='BN'),
        ),
        test_cfg=dict(mode='whole'),
    )  # fmt: skip
    with torch.no_grad():
        logits = model.eval().encode_decode(torch.rand(1, 3, 48, 32), [dict(img_shape=(48, 32))])
    assert logits.shape == (1, 3, 48, 32)


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(in_channels=[8, 8]), ['one map or of 4', 'got 2: [8, 8]']),
        (dict(in_channels=[]), ['one map or of 4', 'got 0']),
        (dict(in_channels=6), ['divisible by 4', 'got 6']),
        (dict(in_channels=0), ['positive', 'in_channels=0']),
        (dict(in_channels=8, num_outs=3), ['at least 4', 'got 3']),
        (dict(in_channels=8, patch_stride=14), ['patch_stride=14', '7, 14 or 28', 'got 4']),
        (dict(in_channels=8, out_strides=(8, 4)), ['ascend', '(8, 4)']),
        (dict(in_channels=8, out_strides=()), ['ascend', '()']),
    ],
)
def test_numbers_that_do_not_fit(options, words):
    with pytest.raises(ValueError) as error:
        SimpleFPN(**options)
    assert all(word in str(error.value) for word in words), error.value


def test_misspelt_argument():
    with pytest.raises(TypeError, match=r"'in_channel'.*did you mean 'in_channels'"):
        SimpleFPN(in_channel=8)


@pytest.mark.parametrize('shapes', [[(1, 16, 2, 2)], [(1, 8, 2, 2)] * 2, [(1, 8)], []])
def test_inputs_that_do_not_fit(shapes):
    neck = SimpleFPN(in_channels=8, out_channels=4)
    with pytest.raises(ValueError) as error:
        neck(tuple(torch.zeros(shape) for shape in shapes))
    for words in ('C=[8]', f'got {len(shapes)} of shapes {shapes}'):
        assert words in str(error.value)
