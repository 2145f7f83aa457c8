"""The backbone's structure, options, sizes and errors."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope

from mmvim.models import VisionMamba
from mmvim.models.pos_embed import pad_to_patches, patch_grid, resize_pos_embed
from mmvim.models.token_layout import cls_positions, format_output
from mmvim.registry import MODELS

TINY = dict(embed_dims=16, num_layers=3, d_state=4)


def make(**options):
    torch.manual_seed(0)
    return VisionMamba(**{'arch': TINY, 'img_size': 32, 'patch_size': 8, **options})


def image(height=32, width=32, channels=3, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, height, width, generator=generator)


@pytest.mark.parametrize(
    'arch, stride, params',
    [
        ('tiny', None, 6_955_008),
        ('small', None, 25_411_584),
        ('base', None, 96_829_440),
        ('tiny', 8, 7_057_344),
        ('small', 8, 25_616_256),
    ],
)
def test_published_parameter_counts(arch, stride, params):
    with torch.device('meta'):
        model = VisionMamba(arch, patch_stride=stride)
    assert sum(p.numel() for p in model.parameters()) == params


def test_nano_is_small():
    assert sum(p.numel() for p in VisionMamba('nano').parameters()) <= 1_000_000


def test_registered_for_every_library():
    cfg = dict(type='mmvim.VisionMamba', arch='nano')
    assert isinstance(MODELS.build(cfg), VisionMamba)
    assert isinstance(MMENGINE_MODELS.build(cfg), VisionMamba)


@pytest.mark.parametrize('cls_token', ['none', 'head', 'middle', 'double'])
@pytest.mark.parametrize('size', [(32, 32), (8, 8), (33, 47), (9, 64), (100, 20)])
def test_any_size(size, cls_token):
    model = make(cls_token=cls_token)
    (featmap,) = model(image(*size))
    assert featmap.shape == (2, 16, math.ceil(size[0] / 8), math.ceil(size[1] / 8))
    assert featmap.isfinite().all()


@pytest.mark.parametrize('patch', [4, 8, (8, 4)])
@pytest.mark.parametrize('stride', [2, 3, 8, 11, (4, 8)])
@pytest.mark.parametrize('size', [(16, 24), (19, 33)])
def test_patch_stride(size, patch, stride):
    model = make(patch_size=patch, patch_stride=stride, cls_token='none')
    (featmap,) = model(image(*size))
    pair = lambda v: v if isinstance(v, tuple) else (v, v)  # noqa: E731
    expected = [
        math.ceil(max(n - p, 0) / s) + 1 for n, p, s in zip(size, pair(patch), pair(stride))
    ]
    assert list(featmap.shape[2:]) == expected


def test_padding_is_at_the_bottom_right():
    model = make().eval()
    small = image(29, 43)
    padded = F.pad(small, (0, 5, 0, 3))
    torch.testing.assert_close(model(small), model(padded), rtol=0, atol=0)


def test_whole_patches_are_not_copied():
    x = image(32, 48)
    padded, grid = pad_to_patches(x, (8, 8), (8, 8))
    assert padded is x and grid == (4, 6)
    padded, grid = pad_to_patches(x, (8, 8), (6, 6))
    assert padded.shape == (2, 3, 32, 50) and grid == (5, 8)


def test_position_embedding_is_interpolated_to_the_grid():
    model = make(cls_token='none').eval()
    x = image(24, 56)
    reference = make(cls_token='none', img_size=(24, 56)).eval()
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), reference(x))
    expected = F.interpolate(
        model.pos_embed.data.reshape(1, 4, 4, 16).permute(0, 3, 1, 2), (3, 7), mode='bicubic'
    )
    torch.testing.assert_close(
        reference.pos_embed.data, expected.permute(0, 2, 3, 1).reshape(1, 21, 16)
    )


def test_non_square_position_embedding_keeps_its_shape_through_a_checkpoint():
    wide = make(img_size=(16, 72), cls_token='none')  # 2 x 9 patches: as many as 3 x 6
    tall = make(img_size=(24, 48), cls_token='none')
    tall.load_state_dict(wide.state_dict())
    expected = resize_pos_embed(wide.pos_embed.data, (2, 9), (3, 6))
    torch.testing.assert_close(tall.pos_embed.data, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    'changed, words',
    [
        (dict(pos_embed_grid=None), ['18 patch rows, which is no square grid']),
        (dict(pos_embed_grid=torch.tensor([3, 7])), ['18 patch rows', '[3, 7]']),
        (dict(pos_embed_grid=torch.tensor([-2, -9])), ['18 patch rows', '[-2, -9]']),
        (dict(pos_embed_grid=torch.tensor(18)), ['18 patch rows', 'tensor(18)']),
        (dict(pos_embed_grid='2x9'), ['18 patch rows', "'2x9'"]),
        (dict(pos_embed='rows'), ['dense floating-point tensor', "'rows'"]),
        (dict(pos_embed=torch.tensor(1.0)), ['dense floating-point tensor', 'shape ()']),
        (dict(pos_embed=torch.zeros(1, 18, 16).to_sparse()), ['dense', 'torch.sparse_coo']),
        (dict(pos_embed=torch.zeros(1, 18, 16, dtype=torch.int64)), ['dense', 'torch.int64']),
    ],
)
def test_bad_position_embeddings_of_a_checkpoint_are_named(changed, words):
    state = make(img_size=(16, 72), cls_token='none').state_dict()
    state = {k: v for k, v in (state | changed).items() if v is not None}
    with pytest.raises(ValueError, match=r'^pos_embed does not fit the grid of') as caught:
        make(img_size=64, cls_token='none').load_state_dict(state)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_the_grid_survives_the_meta_device():
    """It is saved, so it must not be what the memory happened to hold."""
    source = make(img_size=(16, 72))
    state = source.state_dict()
    alone = {key: value for key, value in state.items() if key != 'pos_embed_grid'}
    for given, assign in itertools.product((state, alone), (False, True)):
        with torch.device('meta'):
            model = make(img_size=(16, 72))
        if not assign:
            model.to_empty(device='cpu')
            assert model.state_dict()['pos_embed_grid'].tolist() == [2, 9]
        model.load_state_dict(given, assign=assign)
        assert not any(value.is_meta for value in model.state_dict().values())
        assert model.state_dict()['pos_embed_grid'].tolist() == [2, 9]
        torch.testing.assert_close(model.eval()(image()), source.eval()(image()), rtol=0, atol=0)


@pytest.mark.parametrize('patches, middle', [(16, 8), (15, 7), (1, 0)])
def test_class_token_sits_where_it_should(patches, middle):
    x = torch.zeros(1, 3, 8, 8 * patches)
    for cls_token, positions in (
        ('head', [0]),
        ('middle', [middle]),
        ('double', [0, patches + 1]),
        ('none', []),
    ):
        model = make(cls_token=cls_token, pos_embed=False)
        if cls_token != 'none':
            torch.nn.init.constant_(model.cls_token, 7.0)
        tokens, grid = model._embed(x)
        assert grid == (1, patches)
        found = (tokens[0] == 7).all(dim=-1).nonzero().flatten().tolist()
        assert found == positions
        assert tokens.shape[1] == patches + len(positions)


def test_feature_maps_leave_the_class_token_out():
    """Each patch lands in its own cell, wherever the class token sits."""
    for cls_token in ('none', 'head', 'middle', 'double'):
        model = make(cls_token=cls_token)
        tokens, grid = model._embed(image(24, 40))
        featmap = format_output(tokens, grid, 'featmap', cls_token)
        patches = tokens
        positions = cls_positions(model.cls_token_type, 15)
        keep = [i for i in range(tokens.shape[1]) if i not in positions]
        patches = tokens[:, keep]
        torch.testing.assert_close(
            featmap, patches.reshape(2, 3, 5, 16).permute(0, 3, 1, 2), rtol=0, atol=0
        )


def test_out_types():
    x = image(24, 40)
    kwargs = dict(cls_token='double', out_indices=[0, -1])
    state = make(**kwargs).state_dict()

    def run(out_type):
        model = make(**kwargs, out_type=out_type).eval()
        model.load_state_dict(state)
        return model(x)

    raw, featmap, cls_token = run('raw'), run('featmap'), run('cls_token')
    mean, pairs = run('avg_featmap'), run('featmap_cls')
    for i in range(2):
        assert raw[i].shape == (2, 17, 16)
        torch.testing.assert_close(cls_token[i], (raw[i][:, 0] + raw[i][:, 16]) / 2)
        torch.testing.assert_close(mean[i], raw[i][:, 1:16].mean(dim=1))
        torch.testing.assert_close(featmap[i].flatten(2).transpose(1, 2), raw[i][:, 1:16])
        assert isinstance(pairs[i], tuple)
        torch.testing.assert_close(pairs[i][0], featmap[i])
        torch.testing.assert_close(pairs[i][1], cls_token[i])


def test_taps_follow_out_indices_in_the_order_given():
    x = image()
    model = make(out_indices=(0, 1, 2), out_norm='none').eval()
    other = make(out_indices=(-1, 0), out_norm='none').eval()
    other.load_state_dict(model.state_dict())
    first, _, last = model(x)
    torch.testing.assert_close(other(x), (last, first), rtol=0, atol=0)
    assert other.out_indices == (2, 0)


def test_out_norm():
    x = image()
    none = make(out_indices=(0, 2), out_norm='none').eval()
    last = make(out_indices=(0, 2), out_norm='last').eval()
    every = make(out_indices=(0, 2), out_norm='all').eval()
    last.load_state_dict(none.state_dict() | {'norm_f.weight': torch.full((16,), 2.0)})
    every.load_state_dict(last.state_dict() | {'tap_norms.0.weight': torch.full((16,), 3.0)})

    def norm(featmap, gain):
        return gain * featmap * (featmap.square().mean(dim=1, keepdim=True) + 1e-5).rsqrt()

    bare = none(x)
    torch.testing.assert_close(last(x), (bare[0], norm(bare[1], 2.0)))
    torch.testing.assert_close(every(x), (norm(bare[0], 3.0), norm(bare[1], 2.0)))


@pytest.mark.parametrize(
    'norm_cfg, norm_type',
    [
        (dict(type='RMSNorm', eps=1e-6), torch.nn.RMSNorm),
        (dict(type='LN', eps=1e-6), torch.nn.LayerNorm),
        (dict(type=torch.nn.LayerNorm), torch.nn.LayerNorm),
    ],
)
def test_norms(norm_cfg, norm_type):
    model = make(norm_cfg=norm_cfg)
    assert type(model.norm_f) is norm_type
    assert all(type(block.norm) is norm_type for block in model.layers)
    model(image())[0].sum().backward()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_norms_without_parameters(dtype):
    model = make(norm_cfg=dict(type='RMSNorm', elementwise_affine=False)).to(dtype)
    (featmap,) = model(image().to(dtype))
    assert featmap.dtype == dtype
    mean_square = featmap.float().square().mean(dim=1)
    atol = 2e-2 if dtype == torch.bfloat16 else 1e-4  # of squares of numbers rounded to 8 bits
    torch.testing.assert_close(mean_square, torch.ones_like(mean_square), rtol=0, atol=atol)


def test_norms_are_called_where_something_hangs_on_them():
    model, x = make().eval(), image()
    plain, seen = model(x), []
    for block in model.layers:
        block.norm.register_forward_hook(lambda norm, args, out: seen.append(out.shape))
    torch.testing.assert_close(model(x), plain)
    assert seen == [(2, 17, 16)] * 3
    model.layers[1].norm.register_forward_hook(lambda norm, args, out: 2 * out)
    assert not torch.allclose(model(x)[0], plain[0])


def test_a_mixer_may_be_replaced_by_any_module():
    """As grad-cam's ablation does."""
    model, x = make().eval(), image()
    plain = model(x)

    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, tokens):  # no direction: such a layer takes one tensor
            return self.inner(tokens)

    for block in model.layers:
        block.mixer = Wrapper(block.mixer)
    torch.testing.assert_close(model(x), plain, rtol=0, atol=0)


def test_norm_of_the_default_scope():
    pytest.importorskip('mmpretrain')
    import mmpretrain.models  # noqa: F401

    with DefaultScope.overwrite_default_scope('mmpretrain'), pytest.raises(TypeError, match='foo'):
        make(norm_cfg=dict(type='GRN', foo=1))


def test_drop_path_rates_are_the_published_ones():
    def rates(**options):
        model = VisionMamba('tiny', drop_path_rate=0.1, **options)
        modules = [*(block.drop_path for block in model.layers), model.drop_path]
        return [getattr(module, 'drop_prob', 0.0) for module in modules]

    expected = [0.0, *torch.linspace(0, 0.1, 24).tolist()]
    assert rates(out_type='cls_token') == pytest.approx(expected)
    assert rates(out_type='featmap') == pytest.approx([*expected[:-1], 0.0])


def test_drop_path_and_dropout_act_in_training_only():
    model = make(drop_path_rate=0.9, drop_rate=0.5, out_type='cls_token')
    x = image(batch=4)
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 3])
def test_frozen_stages(frozen_stages):
    model = make(frozen_stages=frozen_stages, drop_path_rate=0.5, drop_rate=0.5).train()
    loss = model(image())[0].square().sum()
    assert loss.requires_grad is (frozen_stages < 3)
    if loss.requires_grad:
        loss.backward()
    for name, param in model.named_parameters():
        if name.startswith('layers.'):
            frozen = int(name.split('.')[1]) < frozen_stages
        elif name.startswith('norm_f'):
            frozen = frozen_stages == 3
        else:
            frozen = frozen_stages >= 0
        assert param.requires_grad is not frozen, name
        assert (param.grad is None) is frozen, name
    for i, block in enumerate(model.layers):
        assert block.training is (i >= frozen_stages)
    assert model.drop_after_pos.training is (frozen_stages < 0)


@pytest.mark.parametrize('frozen_stages', [-1, 1])
def test_activation_checkpointing_changes_nothing(frozen_stages):
    x = image()
    grads = []
    for with_cp in (False, True):
        model = make(with_cp=with_cp, out_indices=(0, 2), frozen_stages=frozen_stages)
        sum(tap.square().sum() for tap in model(x)).backward()
        grads.append({k: p.grad for k, p in model.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    for key in grads[0]:
        torch.testing.assert_close(grads[1][key], grads[0][key])


def test_gradient_reaches_every_parameter():
    for direction, cls_token in itertools.product(
        ['none', 'ssm', 'ssm_conv'], ['none', 'head', 'middle', 'double']
    ):
        out_type = 'featmap' if cls_token == 'none' else 'featmap_cls'
        model = make(
            direction=direction,
            cls_token=cls_token,
            out_type=out_type,
            out_indices=(0, 1, 2),
            out_norm='all',
            layer_scale_init=0.5,
        )
        taps = model(image(24, 40))
        outputs = taps if cls_token == 'none' else itertools.chain(*taps)
        sum((out * torch.randn_like(out)).sum() for out in outputs).backward()
        for name, param in model.named_parameters():
            assert param.grad is not None and param.grad.abs().max() > 0, name


def test_backward_bias_is_drawn_like_the_forward_one():
    mixer = make(arch='tiny').layers[0].mixer
    for bias in (mixer.dt_proj.bias, mixer.dt_proj_b.bias):
        dt = F.softplus(bias.double())
        assert dt.min() >= 1e-3 * 0.999 and dt.max() <= 1e-1 * 1.001
        assert dt.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.3)
    assert not torch.equal(mixer.dt_proj.bias, mixer.dt_proj_b.bias)


def test_batch_independence():
    model = make(cls_token='none').eval()
    x = image(batch=3)
    together = model(x)[0]
    alone = torch.cat([model(x[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('direction', ['none', 'ssm', 'ssm_conv'])
def test_autocast_keeps_the_stream_in_float32(direction):
    model = make(direction=direction, out_indices=(0, 2))
    streams = []
    for block in model.layers:
        block.register_forward_hook(lambda module, args, out: streams.append(out[1].dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        taps = model(image())
    assert set(streams) == {torch.float32}
    assert all(tap.dtype == torch.float32 and tap.isfinite().all() for tap in taps)
    sum(tap.float().sum() for tap in taps).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    exact = make(direction=direction, out_indices=(0, 2))(image())
    for tap, expected in zip(taps, exact):
        assert (tap - expected).norm() / expected.norm() < 2e-2


def test_half_precision_weights():
    model = make().to(torch.bfloat16).eval()
    assert model(image().bfloat16())[0].isfinite().all()


def test_deepcopy_and_state_dict_round_trip():
    model = make(cls_token='double').eval()
    twin = copy.deepcopy(model)
    torch.testing.assert_close(model(image()), twin(image()), rtol=0, atol=0)
    fresh = make(cls_token='double').eval()
    torch.nn.init.normal_(fresh.pos_embed)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(image()), fresh(image()), rtol=0, atol=0)


def test_layer_depth():
    model = make(cls_token='double')
    for name, depth in {
        'backbone.cls_token': 0,
        'backbone.pos_embed': 0,
        'backbone.cls_pos_embed': 0,
        'backbone.patch_embed.projection.weight': 0,
        'backbone.layers.0.mixer.A_log': 1,
        'backbone.layers.2.norm.weight': 3,
        'backbone.norm_f.weight': 4,
        'decode_head.conv_seg.weight': 4,
    }.items():
        assert model.get_layer_depth(name, 'backbone.') == (depth, 5), name


@pytest.mark.parametrize(
    'options, error, words',
    [
        (dict(arch='huge'), ValueError, ['arch', 'huge', 'tiny']),
        (dict(arch=3), TypeError, ['arch', 'int', 'tiny']),
        (dict(arch=dict(embed_dims=8)), ValueError, ['num_layers']),
        (dict(arch=dict(TINY, d_stat=4)), ValueError, ['d_stat', 'd_state']),
        (dict(arch=dict(TINY, dt_rank=0)), ValueError, ['dt_rank', '0', 'auto']),
        (dict(arch=dict(TINY, conv_bias=1)), ValueError, ['conv_bias', 'bool']),
        (dict(arch=dict(TINY, embed_dims='16')), ValueError, ['embed_dims', "'16'"]),
        (dict(direction='both'), ValueError, ['direction', 'both', 'ssm_conv']),
        (dict(cls_token='tail'), ValueError, ['cls_token', 'tail', 'middle']),
        (dict(tap='hidden'), ValueError, ['tap', 'hidden', 'residual']),
        (dict(out_norm='first'), ValueError, ['out_norm', 'first', 'last']),
        (dict(out_type='map'), ValueError, ['out_type', 'map', 'featmap']),
        (dict(interpolate_mode='area'), ValueError, ['interpolate_mode', 'area', 'bicubic']),
        (dict(norm_cfg=dict(type='Norm')), ValueError, ['norm_cfg', 'Norm', 'RMSNorm']),
        (dict(norm_cfg=dict(eps=1)), ValueError, ['norm_cfg', 'type']),
        (dict(norm_cfg=dict(type='RMSNorm', epsilon=1)), TypeError, ['epsilon']),
        *(
            (dict(norm_cfg=cfg), error, ['norm_cfg', repr(cfg), 'over their channels', 'RMSNorm'])
            for cfg, error in [
                *((dict(type=name), ValueError) for name in ('BN', 'BN1d', 'SyncBN', 'IN')),
                (dict(type=torch.nn.Identity), ValueError),
                (dict(type='GN'), TypeError),
                (dict(type='GN', num_groups=4), TypeError),
            ]
        ),
        (dict(scan_backend='pallas'), ValueError, ['backend', 'pallas', 'chunked']),
        (dict(out_indices=[0, 3]), ValueError, ['out_indices', '3', '-3', '2']),
        (dict(out_indices=-4), ValueError, ['out_indices', '-4']),
        (dict(out_indices=[2, -1]), ValueError, ['out_indices', 'twice']),
        *(
            (dict(out_indices=given), ValueError, ['out_indices', 'one or more ints', repr(given)])
            for given in ([], None, True, [0, True], {0: 1}, {0, 1}, '0', [0.0], [[0]])
        ),
        (dict(cls_token='none', out_type='cls_token'), ValueError, ['out_type', 'cls_token']),
        (dict(cls_token='none', out_type='featmap_cls'), ValueError, ['out_type', 'cls_token']),
        (dict(tap='mixer'), ValueError, ['tap', 'out_norm', 'none']),
        (dict(frozen_stages=4), ValueError, ['frozen_stages', '4', '3']),
        (dict(frozen_stages=True), ValueError, ['frozen_stages', 'True', '3']),
        (dict(drop_path_rate=1.0), ValueError, ['drop_path_rate', '1.0']),
        (dict(drop_rate=-0.1), ValueError, ['drop_rate', '-0.1']),
        (dict(drop_path_rate='0.1'), ValueError, ['drop_path_rate', "'0.1'"]),
        (dict(in_channels=0), ValueError, ['in_channels', 'positive int', '0']),
        (dict(img_size=4), ValueError, ['img_size', 'patch']),
        (dict(img_size=(32, 32, 3)), ValueError, ['img_size']),
        (dict(patch_size=0), ValueError, ['patch_size', '0']),
        (dict(patch_stride=-1), ValueError, ['patch_stride', '-1']),
        (dict(drop_path=0.1), TypeError, ['drop_path', '0.1', 'drop_path_rate']),
        (dict(if_devide_out=True), TypeError, ['if_devide_out', 'average_directions']),
    ],
)
def test_bad_arguments_are_named(options, error, words):
    with pytest.raises(error) as caught:
        make(**options)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_a_subclass_may_pass_arguments_on():
    class Mine(VisionMamba):
        def __init__(self, mine, **kwargs):
            super().__init__(**kwargs)

    assert Mine(mine=1, arch=TINY, img_size=32).num_layers == 3


def test_bad_images_are_refused():
    model = make()
    with pytest.raises(ValueError, match=r'7x32 pixels is smaller than one patch of 8x8'):
        model(image(7, 32))
    with pytest.raises(ValueError, match=r'\(B, 3, H, W\), got \(2, 4, 32, 32\)'):
        model(image(channels=4))
    with pytest.raises(ValueError, match=r'\(B, 3, H, W\)'):
        model(image()[0])


def test_patch_grid_formula():
    for n, p, s in itertools.product(range(1, 40), (1, 3, 8), (1, 4, 9)):
        rows, columns = patch_grid((n, n), (p, p), (s, s))
        # The fewest patches whose last one reaches the end of the image.
        count = 1
        while (count - 1) * s + p < n:
            count += 1
        assert rows == columns == count


def test_resize_pos_embed_refuses_a_wrong_grid():
    with pytest.raises(ValueError, match='4x5'):
        resize_pos_embed(torch.zeros(1, 16, 8), (4, 5), (4, 4))
