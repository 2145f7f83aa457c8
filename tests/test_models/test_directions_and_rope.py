"""Options of the backbone that no golden covers, against an independent derivation in float64."""

import math
import weakref

import derivation
import numpy as np
import pytest
import torch

from mmvim.checkpoints import to_official
from mmvim.models import VisionMamba
from mmvim.models.layers.rope import rope_table, rotate
from mmvim.models.token_layout import CLS_TOKENS, cls_positions, split_tokens

DIRECTIONS = ['none', 'sequence', 'block', 'block_published', 'ssm', 'ssm_conv']
GRID = (2, 3)


def build(arch=None, **options):
    """A float64 model in which nothing is at its initial value."""
    torch.manual_seed(0)
    model = VisionMamba(
        dict(embed_dims=16, num_layers=4, d_state=4) | (arch or {}),
        img_size=(16, 24),
        patch_size=8,
        out_type='raw',
        out_norm='none',
        **options,
    ).double()
    with torch.no_grad():
        for name, param in model.named_parameters():
            param.add_(0.2 * torch.randn_like(param) * (0.2 if 'A_' in name else 1.0))
    return model.eval()


def derive(model, image, **options):
    weights = to_official(model.state_dict(), model.cls_token_type)
    tokens, grid = model._embed(image)
    assert grid == GRID
    positions = cls_positions(model.cls_token_type, math.prod(grid))
    patches = [i for i in range(tokens.shape[1]) if i not in positions]
    with torch.no_grad():
        taps = [
            derivation.vision_mamba(
                weights, sequence, model.num_layers, grid=grid, patches=patches, **options
            )
            for sequence in tokens
        ]
    return {i: tuple(torch.stack([tap[i][k] for tap in taps]) for k in range(2)) for i in taps[0]}


def image(batch=2):
    return torch.randn(batch, 3, 16, 24, dtype=torch.float64)


@pytest.mark.parametrize('backend', ['chunked', 'reference'])
@pytest.mark.parametrize('cls_token', ['none', 'middle', 'double'])
@pytest.mark.parametrize('direction', DIRECTIONS)
def test_directions(direction, cls_token, backend):
    indices = (1, 3) if direction == 'block_published' else (0, 1, 2, 3)
    for tap in ('residual', 'mixer'):
        model = build(
            direction=direction,
            cls_token=cls_token,
            out_indices=indices,
            tap=tap,
            scan_backend=backend,
        )
        x = image()
        expected = derive(model, x, direction=direction)
        with torch.no_grad():
            taps = model(x)
        for i, found in zip(indices, taps):
            hidden, residual = expected[i]
            wanted = hidden if tap == 'mixer' else hidden + residual
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    'options, arch',
    [
        (dict(layer_scale_init=0.5), {}),
        (dict(norm_cfg=dict(type='LN', eps=1e-5)), {}),
        (dict(average_directions=False), {}),
        ({}, dict(d_conv=2)),
        ({}, dict(d_conv=3, expand=1, dt_rank=3, conv_bias=False)),
        ({}, dict(d_state=8, proj_bias=True)),
        (dict(direction='block'), dict(conv_bias=False, proj_bias=True)),
        (dict(direction='ssm', average_directions=True), dict(d_conv=2)),
    ],
)
def test_mixer_options(options, arch):
    model = build(arch, out_indices=range(4), **options)
    x = image()
    direction = options.get('direction', 'ssm_conv')
    expected = derive(
        model, x, direction=direction, average=options.get('average_directions', True)
    )
    with torch.no_grad():
        taps = model(x)
    for i, found in enumerate(taps):
        torch.testing.assert_close(found, sum(expected[i]), rtol=0, atol=1e-10)


@pytest.mark.parametrize('direction', ['ssm_conv', 'block', 'block_published'])
@pytest.mark.parametrize('cls_token', ['none', 'head', 'middle', 'double'])
@pytest.mark.parametrize('rope', ['hidden', 'both'])
def test_rope(rope, cls_token, direction):
    model = build(rope=rope, cls_token=cls_token, direction=direction)
    x = image()
    expected = derive(model, x, direction=direction, rope_mode=rope)
    with torch.no_grad():
        (found,) = model(x)
    torch.testing.assert_close(found, sum(expected[3]), rtol=0, atol=1e-10)


def test_rope_taps_are_what_the_next_block_receives():
    """As published: a tap before the last has been rotated once more."""
    model = build(rope='both', cls_token='none', out_indices=(0, 1, 2, 3))
    x = image()
    expected = derive(model, x, rope_mode='both')
    with torch.no_grad():
        taps = model(x)
    for i in range(3):
        torch.testing.assert_close(taps[i], expected[i + 1][1], rtol=0, atol=1e-10)
    torch.testing.assert_close(taps[3], sum(expected[3]), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    'case, grid', [('d64_pt14_ft4', 4), ('d192_pt14_ft14', 14), ('d32_pt14_ft32', 32)]
)
def test_rope_table_is_the_published_one(goldens, case, grid):
    with np.load(goldens / 'ops' / 'rope.npz') as file:
        golden = {k.removeprefix(f'{case}.'): file[k] for k in file.files if k.startswith(case)}
    cos, sin = rope_table(golden['freqs_cos'].shape[1], (grid, grid))
    np.testing.assert_allclose(cos.numpy(), golden['freqs_cos'], rtol=0, atol=1e-7)
    np.testing.assert_allclose(sin.numpy(), golden['freqs_sin'], rtol=0, atol=1e-7)
    for kind, positions in (('even', ()), ('odd', (0,))):
        if f'x_{kind}' in golden:
            x = torch.from_numpy(golden[f'x_{kind}'])
            published = tuple(torch.from_numpy(golden[f'freqs_{name}']) for name in ('cos', 'sin'))
            for _ in positions:
                ones = torch.ones(1, published[0].shape[1])
                published = tuple(
                    torch.cat([still, part]) for still, part in zip((ones, 0 * ones), published)
                )
            y = rotate(x, published)
            np.testing.assert_allclose(y.numpy(), golden[f'y_{kind}'], rtol=0, atol=1e-10)


@pytest.mark.parametrize('cls_token', ['head', 'middle', 'double'])
def test_rope_leaves_class_tokens_alone(cls_token):
    tokens = torch.randn(1, 4 + CLS_TOKENS[cls_token], 8)
    turned = rotate(tokens, rope_table(8, (2, 2), cls_token))
    patches, still = split_tokens(turned, cls_token)
    before = split_tokens(tokens, cls_token)
    assert torch.equal(still, before[1])
    assert torch.equal(patches, rotate(before[0], rope_table(8, (2, 2))))


def test_sequence_flips_every_other_training_step():
    model = build(direction='sequence', cls_token='none')
    x = image()
    weights = to_official(model.state_dict(), 'none')
    tokens, _ = model._embed(x)

    def expected(flip):
        runs = []
        for sequence in tokens:
            tap = derivation.vision_mamba(
                weights, sequence.flip(0) if flip else sequence, 4, 'none'
            )
            out = sum(tap[3])
            runs.append(out.flip(0) if flip else out)
        return torch.stack(runs)

    with torch.no_grad():
        forward, backward = expected(False), expected(True)
        model.train()
        kinds = []
        for _ in range(40):
            (found,) = model(x)
            errors = [(found - wanted).abs().max().item() for wanted in (forward, backward)]
            assert min(errors) <= 1e-10 < max(errors)
            kinds.append(errors[1] < errors[0])
        assert 8 <= sum(kinds) <= 32  # 40 fair coins: five sigma on either side is 4 … 36
        model.eval()
        for _ in range(4):
            torch.testing.assert_close(model(x)[0], forward, rtol=0, atol=1e-10)


def test_published_block_doubles_the_stream_per_pair():
    model = build(direction='block_published', cls_token='none')
    for block in model.layers:
        torch.nn.init.zeros_(block.mixer.out_proj.weight)
    x = image()
    tokens, _ = model._embed(x)
    torch.testing.assert_close(model(x)[0], 4 * tokens, rtol=0, atol=1e-12)


def test_wrong_combinations_are_named():
    with pytest.raises(ValueError, match=r"'block_published'.* odd indices; got .*\[0, 1\]"):
        build(direction='block_published', out_indices=[0, 1])
    with pytest.raises(ValueError, match='num_layers must be even, got 3'):
        build(dict(num_layers=3), direction='block_published')
    with pytest.raises(ValueError, match=r'multiple of 4, got 18'):
        build(dict(embed_dims=18), rope='both')
    with pytest.raises(ValueError, match=r"rope must be one of .*got 'rows'"):
        build(rope='rows')


@torch.no_grad()
@pytest.mark.parametrize('direction', ['ssm_conv', 'block_published'])
def test_untapped_streams_are_not_kept(direction):
    model = build(dict(num_layers=12), direction=direction, tap='mixer', out_indices=[1, 11])
    seen, alive = [], []

    def count(block, args):
        seen.append(weakref.ref(args[0]))
        alive.append(len({id(stream()) for stream in seen} - {id(None)}))

    for block in model.layers:
        block.register_forward_pre_hook(count)
    model(image())
    assert max(alive) <= 3  # the tapped one, that of this block and the one before
