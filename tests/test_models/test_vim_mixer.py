"""The token mixer beside what torch and its users hang on its layers, or put in their place."""

import contextlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from attachments import HUNG, LAYERS, ON_ANY, SHARED, replaced
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
)
from torch.testing._internal.two_tensor import TwoTensor

from mmvim.models import VimBlock, VimMixer, VisionMamba
from mmvim.models.layers.plain import is_plain


def build(direction='ssm_conv', dtype=torch.float64, **options):
    torch.manual_seed(0)
    mixer = VimMixer(8, d_state=3, direction=direction, **options).to(dtype).eval()
    return mixer, torch.randn(2, 5, 8, dtype=dtype)


def unfused(mixer, tokens):
    """The mixer from its layers alone, each of them called; the scan token by token."""
    x, z = mixer.in_proj(tokens).chunk(2, dim=-1)
    sizes = [mixer.dt_rank, mixer.d_state, mixer.d_state]

    def direction(suffix, A_log, D, conv_reverse, scan_reverse):
        u = x.flip(1) if conv_reverse else x
        conv = getattr(mixer, f'conv1d{suffix}')
        width = getattr(conv, 'kernel_size', (mixer.d_conv,))[0]
        rows = F.pad(u.transpose(1, 2), (getattr(conv, 'dilation', (1,))[0] * (width - 1), 0))
        u = F.silu(conv(rows)).transpose(1, 2)
        u = u.flip(1) if conv_reverse != scan_reverse else u
        dt, B, C = getattr(mixer, f'x_proj{suffix}')(u).split(sizes, dim=-1)
        dt = F.softplus(getattr(mixer, f'dt_proj{suffix}')(dt))[..., None]  # (B, L, E, 1)
        decay = torch.exp(-dt * torch.exp(A_log))
        entering = dt * u[..., None] * B[:, :, None]
        state, out = 0, []
        for t in range(tokens.shape[1]):
            state = decay[:, t] * state + entering[:, t]
            out.append((state * C[:, t, None]).sum(-1) + D * u[:, t])
        out = torch.stack(out, dim=1)
        return out.flip(1) if scan_reverse else out

    y = direction('', mixer.A_log, mixer.D, False, False)
    if mixer.direction == 'ssm':
        y = y + direction('', mixer.A_b_log, mixer.D, False, True)
    elif mixer.direction == 'ssm_conv':
        y = y + direction('_b', mixer.A_b_log, mixer.D_b, True, True)
    return mixer.out_proj(y * F.silu(z) * mixer.scale)


def results(function, mixer, tokens):
    """Output and gradients of all parameters and of the tokens."""
    tokens = tokens.clone().requires_grad_()
    mixer.zero_grad()
    out = function(tokens)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    named = [*mixer.named_parameters(), ('tokens', tokens)]
    assert all(param.grad is not None for _, param in named), [
        n for n, p in named if p.grad is None
    ]
    return [out.detach(), *(param.grad for _, param in named)]


def gradients(function, block, tokens):
    """Output and gradients of the tokens and of all that is used."""
    tokens = tokens.clone().requires_grad_()
    out = function(tokens)
    leaves = [tokens, *block.parameters()]
    grads = torch.autograd.grad((out * out.detach().cos()).sum(), leaves, allow_unused=True)
    return [out.detach(), *(grad for grad in grads if grad is not None)]


def check(mixer, tokens):
    for found, wanted in zip(
        results(mixer, mixer, tokens), results(lambda x: unfused(mixer, x), mixer, tokens)
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('kind', [*HUNG, 'adapter'])
def test_what_hangs_on_a_layer_acts(kind, name):
    """Also where it came after the first step."""
    mixer, tokens = build()
    before = results(mixer, mixer, tokens)
    check(mixer, tokens)
    if kind == 'adapter':
        replaced(mixer, name)
    else:
        HUNG[kind](getattr(mixer, name))
    check(mixer, tokens)
    if 'weight norm' not in kind:  # which changes what is learnt, and no value
        after = results(mixer, mixer, tokens)
        assert not (torch.equal(before[0], after[0]) and torch.equal(before[-1], after[-1]))


@pytest.mark.parametrize('name', SHARED)
@pytest.mark.parametrize('direction', ['none', 'ssm'])
@pytest.mark.parametrize('kind', ['forward hook', 'backward hook', 'adapter'])
def test_in_every_direction(kind, direction, name):
    mixer, tokens = build(direction)
    if kind == 'adapter':
        replaced(mixer, name)
    else:
        HUNG[kind](getattr(mixer, name))
    check(mixer, tokens)
    if direction == 'none':
        found, wanted = mixer(tokens, True), unfused(mixer, tokens.flip(1)).flip(1)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('direction', ['none', 'ssm', 'ssm_conv'])
@pytest.mark.parametrize(
    'name, layer',
    [
        ('x_proj', lambda: nn.Linear(16, 7)),  # with a bias
        ('dt_proj', lambda: nn.Linear(1, 16, bias=False)),
        ('conv1d', lambda: nn.Conv1d(16, 16, 4, groups=4)),
        ('conv1d', lambda: nn.Conv1d(16, 16, 3, dilation=2, groups=16)),
        ('conv1d', lambda: nn.Conv1d(16, 16, 2, groups=16, bias=False)),
    ],
)
def test_layers_of_another_make(name, layer, direction):
    """In a layer's place, of the same class: none of its settings is passed over."""
    mixer, tokens = build(direction)
    for suffix in ('', '_b') if direction == 'ssm_conv' else ('',):
        setattr(mixer, name + suffix, layer().double())
    check(mixer, tokens)


def test_a_convolution_that_pads_by_itself_is_refused():
    mixer, tokens = build()
    mixer.conv1d = nn.Conv1d(16, 16, 4, groups=16, padding=3).double()
    with pytest.raises(ValueError, match=r'3 zeros before its 5 tokens .*, got 11'):
        mixer(tokens)


@pytest.mark.parametrize('kind', [nn.Linear, nn.Conv1d])
def test_forward_of_the_class_may_be_replaced(kind, monkeypatch):
    mixer, tokens = build()
    plain, forward = mixer(tokens), kind.forward
    monkeypatch.setattr(kind, 'forward', lambda layer, x: 1.5 * forward(layer, x))
    check(mixer, tokens)
    assert not torch.allclose(mixer(tokens), plain)


@pytest.mark.parametrize(
    'name, kind',
    [
        *itertools.product(['norm', 'mixer', 'drop_path'], ON_ANY),
        *(('norm', kind) for kind in ('parametrisation', 'pruning')),
    ],
)
def test_what_hangs_on_a_part_of_a_block_acts(name, kind):
    """Beside a block whose parts are called one by one."""
    torch.manual_seed(0)
    block = VimBlock(8, dict(type='RMSNorm', eps=1e-5), d_state=3).double()
    hidden, residual = torch.randn(2, 2, 5, 8, dtype=torch.float64)
    HUNG[kind](getattr(block, name))

    def parts(tokens):
        total = residual + block.drop_path(tokens)
        return block.mixer(block.norm(total)) + total

    def whole(tokens):
        return sum(block(tokens, residual))

    for found, wanted in zip(*(gradients(function, block, hidden) for function in (whole, parts))):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    'register, hook',
    [
        (register_module_forward_hook, lambda m, args, out: 1.5 * out),
        (register_module_forward_pre_hook, lambda m, args: 0.5 * args[0]),
        (register_module_full_backward_hook, lambda m, grads, outs: tuple(2 * g for g in grads)),
    ],
)
def test_hooks_of_all_modules_act(register, hook):
    mixer, tokens = build()

    def on_layers(module, *args):
        return hook(module, *args) if isinstance(module, nn.Linear | nn.Conv1d) else None

    plain = results(mixer, mixer, tokens)
    with contextlib.ExitStack() as stack:
        stack.callback(register(on_layers).remove)
        check(mixer, tokens)
        assert not torch.equal(results(mixer, mixer, tokens)[-1], plain[-1])
    assert torch.equal(results(mixer, mixer, tokens)[-1], plain[-1])


@pytest.mark.parametrize('name', [name for name in LAYERS if 'conv' not in name])
def test_dynamic_quantisation(name):
    mixer, tokens = build(dtype=torch.float32)
    plain = mixer(tokens)
    quantised = torch.ao.quantization.quantize_dynamic(mixer, {name}, dtype=torch.qint8)
    assert type(getattr(quantised, name)) is not nn.Linear
    found = quantised(tokens)
    torch.testing.assert_close(found, unfused(quantised, tokens), rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, plain)
    assert (found - plain).norm() < 0.05 * plain.norm()


@torch.no_grad()
@pytest.mark.parametrize('backend', ['auto', 'chunked', 'reference'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, 'autocast'])
def test_called_layers_in_half_precision(dtype, backend):
    mixer, tokens = build(dtype=torch.float32, scan_backend=backend)
    exact = mixer(tokens)
    for name in LAYERS:
        getattr(mixer, name).register_forward_hook(lambda *args: None)
    context = contextlib.nullcontext()
    if dtype == 'autocast':
        context = torch.autocast('cpu', dtype=torch.bfloat16)
    else:
        mixer, tokens = mixer.to(dtype), tokens.to(dtype)
    with context:
        found = mixer(tokens)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert (found.float() - exact).norm() <= tolerance * exact.norm()


def test_weights_with_a_product_of_their_own_are_not_read():
    layer = nn.Linear(3, 2)
    assert is_plain(layer, nn.Linear) and not is_plain(layer, nn.Conv1d)
    layer.weight = nn.Parameter(TwoTensor(torch.ones(2, 3), torch.ones(2, 3)))
    assert not is_plain(layer, nn.Linear)


def test_every_adapter_of_a_backbone_learns():
    """HF PEFT's ``target_modules='all-linear'``."""
    torch.manual_seed(0)
    arch = dict(embed_dims=8, num_layers=2, d_state=3)
    model = VisionMamba(arch, img_size=16, patch_size=8).requires_grad_(False)
    for mixer in (block.mixer for block in model.layers):
        for name in LAYERS:
            replaced(mixer, name)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(LAYERS)
    (out,) = model(torch.randn(2, 3, 16, 16))
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())


def test_lora_of_mmpretrain():
    models = pytest.importorskip('mmpretrain.models')
    arch = dict(embed_dims=8, num_layers=2, d_state=3)
    model = models.LoRAModel(
        module=dict(type='mmvim.VisionMamba', arch=arch, img_size=16, patch_size=8),
        alpha=1,
        rank=2,
        targets=[dict(type='in_proj'), dict(type='dt_proj')],
    )
    (out,) = model(torch.randn(2, 3, 16, 16))
    (out * torch.randn_like(out)).sum().backward()
    trained = [p for name, p in model.named_parameters() if 'lora_up' in name]
    assert len(trained) == 4 and all(p.grad.abs().max() > 0 for p in trained)
