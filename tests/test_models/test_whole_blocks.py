"""Blocks that run as one op: the same taps, and nothing that hangs on a part is passed by."""

import contextlib
import itertools

import pytest
import torch
from attachments import HUNG, LAYERS, ON_ANY, replaced
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.profiler import ProfilerActivity, profile

from mmvim import VisionMamba
from mmvim.models.layers.vim_block import VimBlock
from mmvim_ops import loading
from mmvim_ops.backends import native

pytestmark = pytest.mark.skipif(
    loading.problem() is not None, reason=f'no native library: {loading.problem()}'
)
ARCH = dict(embed_dims=16, num_layers=4, d_state=3)


def build(**options):
    torch.manual_seed(0)
    model = VisionMamba(**{'arch': ARCH, 'img_size': 32, 'out_indices': (0, 2, 3), **options})
    for param in model.parameters():  # biases and scales that are not 0 or 1
        param.data += 0.1 * torch.randn_like(param)
    return model.eval()


def blocks_run_whole(function):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    return sum(e.count for e in profiler.key_averages() if e.key == 'mmvim::vim_block')


@contextlib.contextmanager
def one_by_one(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(VimBlock, 'as_op', lambda self, stream: None)
        yield


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(out_indices=(3, 1), out_norm='all', cls_token='double', out_type='featmap_cls'),
        dict(out_norm='none', out_type='raw', layer_scale_init=0.5),
        dict(arch=dict(**ARCH, proj_bias=True, conv_bias=False), average_directions=False),
        dict(norm_cfg=dict(type='RMSNorm', eps=None)),
        dict(with_cp=True, drop_path_rate=0.3, drop_rate=0.2),
    ],
)
def test_taps_are_those_of_blocks_that_run_op_by_op(options, monkeypatch):
    model, image = build(**options), torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        assert blocks_run_whole(lambda: model(image)) == 4
        found = model(image)
        with one_by_one(monkeypatch):
            assert blocks_run_whole(lambda: model(image)) == 0
            wanted = model(image)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    'options',
    [
        dict(tap='mixer', out_norm='none'),
        dict(rope='hidden'),
        dict(rope='both'),
        dict(direction='ssm'),
        dict(direction='none'),
        dict(direction='block_published', out_indices=(1, 3)),
        dict(norm_cfg=dict(type='LN')),
        dict(scan_backend='chunked'),
    ],
)
def test_what_needs_the_parts_of_a_block_gets_them(options):
    model, image = build(**options), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert blocks_run_whole(lambda: model(image)) == 0


def test_not_in_training_nor_with_gradients_nor_in_half_precision():
    model, image = build(), torch.randn(1, 3, 32, 32)
    assert blocks_run_whole(lambda: model(image)) == 0
    with torch.no_grad():
        with torch.autocast('cpu', torch.bfloat16):
            assert blocks_run_whole(lambda: model(image)) == 0
        assert blocks_run_whole(lambda: model.bfloat16()(image.bfloat16())) == 0
        assert blocks_run_whole(lambda: model.float().train()(image)) == 0
        assert blocks_run_whole(lambda: model.eval()(image)) == 4


def part_of(block, name):
    return {'block': block, 'norm': block.norm, 'mixer': block.mixer}.get(
        name
    ) or block.mixer.get_submodule(name)


# What 'spectral norm' divides by is random without training, and may be next to 0.
ACTING = [kind for kind in HUNG if 'backward' not in kind and kind != 'spectral norm']
PARTS = [
    *itertools.product(LAYERS, ACTING),
    *itertools.product(['norm', 'mixer'], [kind for kind in ON_ANY if 'backward' not in kind]),
    *itertools.product(['norm'], ['parametrisation', 'pruning']),
    *itertools.product(LAYERS, ['adapter', 'other forward of the class']),
]


@pytest.mark.parametrize('name, kind', PARTS)
def test_what_hangs_on_a_part_acts(name, kind, monkeypatch):
    """The block that has it runs part by part, its neighbours as a whole."""
    model, image = build(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        block = model.layers[1]
        if kind == 'adapter':
            replaced(block.mixer, name)
        elif kind == 'other forward of the class':
            layer = part_of(block, name)
            forward = type(layer).forward
            monkeypatch.setattr(type(layer), 'forward', lambda self, x: 1.5 * forward(self, x))
        else:
            HUNG[kind](part_of(block, name))
        found = model(image)
        of_class = kind == 'other forward of the class'
        assert blocks_run_whole(lambda: model(image)) == (0 if of_class else 3)
        with one_by_one(monkeypatch):
            torch.testing.assert_close(found, model(image), rtol=1e-5, atol=1e-5)


def test_hooks_on_blocks_see_their_pairs():
    model, image, seen = build(), torch.randn(1, 3, 32, 32), []
    model.layers[2].register_forward_hook(lambda m, args, outs: seen.append((args, outs)))
    with torch.no_grad():
        found = model(image)
    (((hidden, residual, _), (mixed, stream)),) = seen
    assert residual is None  # the block before gave the whole stream
    torch.testing.assert_close(stream, hidden)
    assert mixed.shape == stream.shape
    torch.testing.assert_close(found[1], build_map(model, mixed + stream), rtol=1e-5, atol=1e-5)


def build_map(model, stream):
    """The feature map of a tap without norm, in the middle of which sits the class token."""
    patches = torch.cat([stream[:, :2], stream[:, 3:]], 1)
    return patches.transpose(1, 2).reshape(1, model.embed_dims, 2, 2)


def test_hooks_of_all_modules_act():
    model, image, called = build(), torch.randn(1, 3, 32, 32), []
    handle = register_module_forward_hook(lambda m, args, out: called.append(type(m)))
    try:
        with torch.no_grad():
            model(image)
    finally:
        handle.remove()
    assert called.count(VimBlock) == 4 and called.count(nn.Conv1d) == 8


def test_another_layer_in_the_place_of_a_block():
    class Doubling(nn.Module):
        def forward(self, hidden, residual, reverse=False):
            return hidden, hidden if residual is None else residual

    model, image = build(), torch.randn(1, 3, 32, 32)
    model.layers[1] = Doubling()
    with torch.no_grad():
        assert blocks_run_whole(lambda: model(image)) == 3


def test_deep_copies_and_loaded_weights_are_read_anew():
    model, other, image = build(), build(), torch.randn(1, 3, 32, 32)
    for param in other.parameters():
        param.data += 0.2
    with torch.inference_mode():
        wanted = other(image)
        model(image)
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(model(image), wanted, rtol=0, atol=0)


def test_epsilon_and_scale_reach_the_op(monkeypatch):
    seen = []
    op = native.VIM_BLOCK
    monkeypatch.setattr(native, 'VIM_BLOCK', lambda *args: seen.append(args[-2:]) or op(*args))
    with torch.no_grad():
        build(norm_cfg=dict(type='RMSNorm', eps=1e-3))(torch.randn(1, 3, 32, 32))
    assert seen == [(1e-3, 0.5)] * 4


def test_a_layer_of_another_size_is_named():
    model = build()
    model.layers[2].mixer.out_proj = nn.Linear(32, 8, bias=False)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r'out_proj has shape \(8, 32\); expected'),
    ):
        model(torch.randn(1, 3, 32, 32))
