"""VMamba's structure, options, sizes and errors."""

import copy
import itertools
import math

import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch._dynamo.testing import CompileCounter

from mmvim.models import SS2D, VMamba
from mmvim.registry import MODELS
from mmvim_ops import reference

ARCH = dict(dims=16, depths=(1, 2, 1))
V0 = VMamba.arch_zoo['v0_tiny'] | ARCH | dict(d_state=2)


def make(arch=ARCH, **options):
    torch.manual_seed(0)
    return VMamba(arch, **{'img_size': 32, 'out_indices': (0, 1, 2), **options})


def image(height=32, width=40, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, height, width, generator=generator)


def test_registered_for_every_library():
    cfg = dict(type='mmvim.VMamba', arch='nano')
    assert isinstance(MODELS.build(cfg), VMamba)
    assert isinstance(MMENGINE_MODELS.build(cfg), VMamba)


def test_the_four_sequences_are_scanned_in_the_published_order():
    """Against four separate scans, each of a copy in its own order, by the specification."""
    torch.manual_seed(0)
    mixer = SS2D(8, d_state=2, dt_rank=3, conv_kernel=1).double()
    x = torch.randn(1, 2, 3, 8, dtype=torch.float64)
    sequences = ([0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0])
    u = torch.nn.functional.silu(mixer.in_proj(x)).flatten(1, 2)
    total = torch.zeros_like(u)
    for k, order in enumerate(sequences):
        own = slice(8 * k, 8 * k + 8)
        tokens = u[:, order]
        dt, B, C = (tokens @ mixer.x_proj_weight[k].T).split((3, 2, 2), dim=-1)
        y = reference.selective_scan(
            tokens,
            dt @ mixer.dt_projs_weight[k].T,
            -mixer.A_logs[own].exp(),
            B,
            C,
            D=mixer.Ds[own],
            delta_bias=mixer.dt_projs_bias[k],
            delta_softplus=True,
        )
        total[:, order] += y
    expected = mixer.out_proj(mixer.out_norm(total)).unflatten(1, (2, 3))
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-12)


def grid_of(arch, size):
    """Sides of the three maps, as the docstring says that they are rounded."""
    up = {'conv': True, 'patchify': False, 'conv3': True, 'merge': True, 'conv2': False}
    half = up[arch.get('downsample', 'conv3')]
    sides = [math.ceil(n / 4) if up[arch.get('patch_embed', 'conv')] else n // 4 for n in size]
    for _ in ARCH['depths']:
        yield tuple(sides)
        sides = [math.ceil(n / 2) if half else n // 2 for n in sides]


@pytest.mark.parametrize('arch', [ARCH, V0, dict(ARCH, downsample='conv2')])
@pytest.mark.parametrize('size', [(32, 32), (16, 16), (67, 45), (21, 100)])
def test_any_size(arch, size):
    maps = make(arch)(image(*size))
    assert [tuple(m.shape) for m in maps] == [
        (2, 16 * 2**i, *grid) for i, grid in enumerate(grid_of(arch, size))
    ]
    assert all(m.isfinite().all() and m.is_contiguous() for m in maps)


def test_one_pixel_is_enough_for_the_released_form():
    assert [tuple(m.shape[2:]) for m in make()(image(1, 1))] == [(1, 1)] * 3


def test_too_small_maps_are_named():
    with pytest.raises(ValueError, match=r'a map of 3x9 is smaller than the 4x4'):
        make(V0)(image(3, 9))
    with pytest.raises(ValueError, match=r'a map of 1x3 is smaller than the 2x2'):
        make(dict(ARCH, downsample='conv2'))(image(4, 12))


def test_out_types_taps_and_norms():
    x = image()
    options = dict(out_indices=(-1, 0), out_norm='none')
    maps, tokens, means = (
        make(**options, out_type=out_type)(x) for out_type in ('featmap', 'raw', 'avg_featmap')
    )
    for a, b, c in zip(maps, tokens, means):
        torch.testing.assert_close(a.flatten(2).transpose(1, 2), b, rtol=0, atol=0)
        torch.testing.assert_close(a.mean((2, 3)), c)
    assert maps[0].shape[1] == 64 and maps[1].shape[1] == 16
    every = make(out_indices=(-1, 0), out_norm='all')(x)
    last = make(out_indices=(-1, 0), out_norm='last')(x)
    normed = [torch.nn.functional.layer_norm(t, t.shape[-1:]) for t in tokens]
    for found, expected in ((every, normed), (last, [normed[0], tokens[1]])):
        for a, b in zip(found, expected):
            torch.testing.assert_close(a.flatten(2).transpose(1, 2), b)


def test_stages_behind_the_deepest_tap_are_not_built():
    whole, cut = make(out_norm='none'), make(out_indices=1, out_norm='none')
    assert len(cut.layers) == 2 and 'downsample' not in cut.layers[1]
    cut.load_state_dict(whole.state_dict(), strict=True)
    torch.testing.assert_close(cut(image()), whole(image())[1:2], rtol=0, atol=0)


@pytest.mark.parametrize('arch', [ARCH, V0, dict(ARCH, gate='identity', pos_embed=True)])
def test_gradient_reaches_every_parameter(arch):
    model = make(arch)
    # From the image too, but for the last row, which patches leave out.
    sum((out * torch.randn_like(out)).sum() for out in model(image(36, 44))).backward()
    for name, param in model.named_parameters():
        assert param.grad is not None and param.grad.abs().max() > 0, name


@pytest.mark.parametrize('frozen_stages', [-1, 1])
def test_activation_checkpointing_changes_nothing(frozen_stages):
    grads = []
    for with_cp in (False, True):
        model = make(with_cp=with_cp, frozen_stages=frozen_stages)
        sum(out.square().mean() for out in model(image())).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[1][name], grads[0][name])


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 3])
def test_frozen_stages(frozen_stages):
    model = make(dict(ARCH, pos_embed=True), frozen_stages=frozen_stages, drop_path_rate=0.5)
    model.train()
    for name, param in model.named_parameters():
        part, index = name.split('.')[:2] if '.' in name else (name, '')
        if part == 'layers':
            frozen = int(index) < frozen_stages
        elif part in ('tap_norms', 'norm_f'):
            frozen = frozen_stages == 3
        else:
            frozen = frozen_stages >= 0
        assert param.requires_grad is not frozen, name
    assert [stage.training for stage in model.layers] == [i >= frozen_stages for i in range(3)]


def test_drop_path_rates_are_the_published_ones():
    def rates(**options):
        model = make(dict(ARCH, depths=(1, 1, 3)), drop_path_rate=0.2, **options)
        blocks = [block for stage in model.layers for block in stage['blocks']]
        return [getattr(block.drop_path, 'drop_prob', 0.0) for block in blocks]

    expected = torch.linspace(0, 0.2, 5).tolist()
    assert rates() == pytest.approx(expected)
    assert rates(out_indices=1) == pytest.approx(expected[:2])


def test_both_branches_of_a_block_are_dropped_each_for_itself():
    block = make(drop_path_rate=0.5).train().layers[-1]['blocks'][-1]
    x = torch.randn(64, 2, 2, 64)
    mixed = x + 2 * block.op(block.norm(x))  # kept branches are doubled
    kinds = {
        (bool((out == a).all()), bool(torch.isclose(out, b, atol=1e-4).all()))
        for out, a, b in zip(block(x), x, mixed)
    }
    # Neither, the first alone, and the second or both.
    assert kinds == {(True, False), (False, True), (False, False)}


def test_position_embedding_is_fitted_to_the_image_and_to_the_model():
    arch = dict(ARCH, pos_embed=True)
    model = make(arch)
    other = make(arch, img_size=(48, 20))
    other.load_state_dict(model.state_dict())
    assert other.pos_embed.shape == (1, 12 * 5, 16) and model.pos_embed.shape == (1, 64, 16)
    torch.testing.assert_close(other(image(48, 20)), model(image(48, 20)))


def test_autocast_keeps_stream_and_norms_in_float32():
    model, seen = make(), {}
    for name, module in model.named_modules():
        if name.endswith('out_norm') or name.endswith('blocks.0'):
            module.register_forward_hook(
                lambda module, args, out, name=name: seen.update({name: (args[0].dtype, out.dtype)})
            )
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outs = model(image())
    assert seen and set(seen.values()) == {(torch.float32, torch.float32)}
    sum(out.sum() for out in outs).backward()
    assert all(param.grad.isfinite().all() for param in model.parameters())
    for out, exact in zip(outs, make()(image())):
        assert out.dtype == torch.float32
        assert (out - exact).norm() / exact.norm() < 2e-2


@pytest.mark.parametrize('arch', [ARCH, V0])
def test_half_precision_weights(arch):
    model = make(arch).to(torch.bfloat16).eval()
    outs = model(image().bfloat16())
    assert all(out.isfinite().all() and out.dtype == torch.bfloat16 for out in outs)


@pytest.mark.parametrize('library', ['mmvim', 'mmpretrain'])
@pytest.mark.parametrize('arch', [ARCH, V0])
def test_the_norm_of_maps_is_that_of_channels(arch, library):
    pytest.importorskip(library)
    kinds = ('LN', 'LN2d', f'{library}.LN2d', MMENGINE_MODELS.get(f'{library}.LN2d'))
    models = [make(arch, norm_cfg=dict(type=kind)) for kind in kinds]
    outs = models[0](image())
    for model in models:
        assert str(model) == str(models[0])
        assert model.state_dict().keys() == models[0].state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(model(image()), outs))
    own = make(arch, norm_cfg=dict(type='LN2d', eps=0.5, elementwise_affine=False))
    norms = [module for module in own.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {(norm.eps, norm.weight) for norm in norms} == {(0.5, None)}


def test_drawn_again_from_the_meta_device():
    with torch.device('meta'):
        model = make(dict(ARCH, pos_embed=True))
    torch.manual_seed(3)
    model.to_empty(device='cpu')
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert model.layers[0]['blocks'][0].op.Ds.eq(1).all()
    assert model.pos_embed_grid.tolist() == [8, 8]
    twin = make(dict(ARCH, pos_embed=True))
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    torch.testing.assert_close(model(image()), twin(image()), rtol=0, atol=0)


def test_layer_depth_and_what_does_not_decay():
    model = make(dict(ARCH, pos_embed=True))
    for name, depth in {
        'backbone.patch_embed.0.conv.weight': 0,
        'backbone.pos_embed': 0,
        'backbone.layers.0.blocks.0.op.A_logs': 1,
        'backbone.layers.0.downsample.conv.weight': 1,
        'backbone.layers.1.blocks.1.mlp.fc1.weight': 3,
        'backbone.layers.1.downsample.norm.weight': 3,
        'backbone.layers.2.blocks.0.norm.weight': 4,
        'backbone.tap_norms.0.weight': 5,
        'head.fc.weight': 5,
    }.items():
        assert model.get_layer_depth(name, 'backbone.') == (depth, 6), name
    kept = model.no_weight_decay()
    assert {name.rpartition('.')[2] for name in kept} == {'A_logs', 'dt_projs_bias', 'pos_embed'}
    assert len(kept) == 2 * 4 + 1


@pytest.mark.slow  # the sizes of maps behind convolutions are long expressions
@pytest.mark.parametrize('arch', [ARCH, V0])
def test_exported_for_any_size(arch):
    model = make(arch | dict(depths=(1, 1)), out_indices=(0, 1)).eval()
    sides = {2: torch.export.Dim('height', min=16), 3: torch.export.Dim('width', min=16)}
    program = torch.export.export(model, (torch.randn(2, 3, 36, 28),), dynamic_shapes=(sides,))
    for size in ((36, 28), (32, 64), (45, 67)):
        x = image(*size)
        torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('arch', [ARCH, V0])
def test_exported_at_a_fixed_size(arch):
    model, x = make(arch).eval(), image(36, 28)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))


def test_compiled_as_one_graph():
    model, counter = make(dict(dims=8, depths=(1,)), out_indices=0), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    torch.testing.assert_close(compiled(image()), model(image()))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    'options, error, words',
    [
        (dict(arch='tiny'), ValueError, ['arch', "'tiny'", 'tiny_s1l8']),
        (dict(arch=7), TypeError, ['arch', 'int', 'tiny_s1l8']),
        (dict(arch=dict(dims=16)), ValueError, ['depths', 'missing']),
        (dict(arch=dict(ARCH, dims=[8, 16])), ValueError, ['dims', '[8, 16]', '3']),
        (dict(arch=dict(ARCH, depths=[1, 0, 1])), ValueError, ['depths', '[1, 0, 1]']),
        (dict(arch=dict(ARCH, ssm_ration=2)), ValueError, ['ssm_ration', "'ssm_ratio'"]),
        (dict(arch=dict(ARCH, ssm_ratio=0)), ValueError, ['ssm_ratio', 'positive number', '0']),
        (dict(arch=dict(ARCH, mlp_ratio=-1)), ValueError, ['mlp_ratio', 'at least 0', '-1']),
        (dict(arch=dict(ARCH, conv_kernel=4)), ValueError, ['conv_kernel', 'odd', '4']),
        (dict(arch=dict(ARCH, gate='sigmoid')), ValueError, ['gate', 'sigmoid', 'silu']),
        (dict(arch=dict(ARCH, downsample='v3')), ValueError, ['downsample', 'v3', 'conv3']),
        (dict(patch_size=8), ValueError, ['patch_embed', 'patch_size=4', '8', 'patchify']),
        (dict(arch=V0, patch_size=64), ValueError, ['img_size', '(32, 32)', '64']),
        (dict(patch_size=(4, 4)), ValueError, ['patch_size', '(4, 4)', 'positive int']),
        (dict(out_indices=(0, 3)), ValueError, ['out_indices', '3 stages', '(0, 3)']),
        (dict(out_indices=(2, -1)), ValueError, ['out_indices', 'stage twice']),
        (dict(out_norm='first'), ValueError, ['out_norm', 'first', 'all']),
        (dict(out_type='cls_token'), ValueError, ['out_type', 'cls_token', 'featmap']),
        (dict(frozen_stages=4), ValueError, ['frozen_stages', '4', 'stages']),
        (dict(frozen_stages=True), ValueError, ['frozen_stages', 'True', '3']),
        (dict(drop_path_rate=1), ValueError, ['drop_path_rate', '1']),
        (dict(drop_path_rate=None), ValueError, ['drop_path_rate', 'None']),
        (dict(in_channels='3'), ValueError, ['in_channels', 'positive int', "'3'"]),
        (dict(img_size=(32, 32, 3)), ValueError, ['img_size', '(32, 32, 3)']),
        (dict(arch=dict(ARCH, ssm_ratio=0.01)), ValueError, ['ssm_ratio=0.01', '16 channels']),
        (dict(arch=dict(ARCH, mlp_ratio=0.01)), ValueError, ['mlp_ratio=0.01', '16 channels']),
        (dict(arch=dict(ARCH, dims=True)), ValueError, ['dims', 'True']),
        *(
            (dict(out_indices=given), ValueError, ['out_indices', 'one or more ints', repr(given)])
            for given in ([], None, True, {0, 1}, '0', [0.0])
        ),
        (dict(norm_cfg=None), ValueError, ['norm_cfg', "'type'", 'None']),
        (dict(norm_cfg=dict(type='LN', epsilon=1)), TypeError, ['epsilon']),
        *(
            (dict(norm_cfg=dict(type=name)), ValueError, ['norm_cfg', name, "type='LN'"])
            for name in ('BN', 'SyncBN', 'IN', 'Norm')
        ),
        (dict(scan_backend='triton2'), ValueError, ['scan_backend', 'triton2', 'chunked']),
        (dict(drop_path=0.1), TypeError, ['drop_path', 'drop_path_rate']),
        (dict(cls_token='none'), TypeError, ['VMamba', 'cls_token']),
    ],
)
def test_bad_arguments_are_named(options, error, words):
    with pytest.raises(error) as caught:
        make(**options)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_bad_images_are_refused():
    for x in (image()[0], image()[:, :2], image(0, 32)):
        with pytest.raises(ValueError, match=r'\(B, 3, H, W\), got'):
            make()(x)


def test_published_keys_are_refused_with_the_way_to_read_them():
    state = {'patch_embed.0.weight': torch.zeros(1)}
    with pytest.raises(ValueError, match=r'mmvim\.PretrainedVMamba'):
        make().load_state_dict(state)


def test_many_mixers_of_odd_sizes():
    for dims, ratio, kernel, rank in itertools.product((6, 10), (0.5, 1, 2), (1, 5), ('auto', 2)):
        mixer = SS2D(dims, ssm_ratio=ratio, conv_kernel=kernel, dt_rank=rank, conv_bias=True)
        out = mixer(torch.randn(1, 3, 2, dims))
        assert out.shape == (1, 3, 2, dims) and out.isfinite().all()
