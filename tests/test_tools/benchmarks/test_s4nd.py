"""S4ND-ViT against the recurrence that its kernels stand for, and against the published code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarking.s4nd import S4Layer, S4NDViT, legs
from safetensors.torch import load_file
from torch import Tensor

EXACT = dict(rtol=0, atol=1e-10)
# Published names of a layer's parameters to ours.
NAMES = {
    'kernel.0.inv_dt': 'log_step',
    'kernel.0.A_real': 'log_decay',
    'kernel.0.A_imag': 'frequency',
    'kernel.0.B': 'B',
    'kernel.0.C': 'C',
    'kernel.0.P': 'P',
    'D': 'D',
    'output_linear.0.weight': 'out.weight',
    'output_linear.0.bias': 'out.bias',
}


def discretised(layer: S4Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Ā (H, N, N), b̄ (H, N) and c (rows, H, N), as dense matrices of all states."""
    half = [torch.view_as_complex(x.detach()).squeeze() for x in (layer.P, layer.B)]
    p, b = (torch.cat([x, x.conj()]) for x in half)
    diagonal = torch.complex(-layer.log_decay.exp(), -layer.frequency).detach()
    matrix = torch.diag(torch.cat([diagonal, diagonal.conj()])) - p[:, None] * p.conj()
    identity = torch.eye(len(p), dtype=matrix.dtype)
    step = layer.log_step.detach().exp()[:, None, None] / 2 * matrix
    inverse = torch.linalg.inv(identity - step)
    decay = inverse @ (identity + step)
    inputs = (inverse @ b) * layer.log_step.detach().exp()[:, None]
    stored = torch.view_as_complex(layer.C.detach())
    stored = torch.cat([stored, stored.conj()], dim=-1)
    left = identity - torch.linalg.matrix_power(decay, layer.taps)
    return decay, inputs, torch.linalg.solve(left, stored[..., None, :], left=False).squeeze(-2)


@pytest.mark.parametrize('taps', [1, 2, 12, 15])
def test_kernels_are_a_recurrence(taps: int) -> None:
    torch.manual_seed(0)
    layer = S4Layer(3, taps, states=8).double()
    decay, state, c = discretised(layer)
    tokens = []
    for _ in range(taps):
        tokens.append(torch.einsum('rhn,hn->rh', c, state))
        state = torch.einsum('hmn,hn->hm', decay, state)
    expected = torch.stack(tokens, dim=-1)
    assert float(expected.imag.abs().max()) < 1e-10 < float(expected.real.abs().max())
    torch.testing.assert_close(layer.kernel(), expected.real, **EXACT)


@pytest.mark.parametrize('length', [1, 5, 9, 20])
def test_the_convolution_is_the_sum_over_both_directions(length: int) -> None:
    torch.manual_seed(0)
    layer = S4Layer(3, 9, states=4).double()
    forward, backward = layer.kernel().split(2)
    x = torch.randn(2, length, 3, dtype=torch.float64)
    expected = layer.D[..., None] * x.transpose(1, 2)[:, None]
    for token in range(length):
        for tap in range(min(9, length)):
            if tap <= token:
                expected[..., token] += forward[..., tap] * x[:, None, token - tap]
            if token + 1 + tap < length:
                expected[..., token] += backward[..., tap] * x[:, None, token + 1 + tap]
    torch.testing.assert_close(layer.convolve(x), expected, **EXACT)
    torch.testing.assert_close(layer.eval().convolve(x), expected, **EXACT)


def test_hippos_matrix() -> None:
    diagonal, p, b = legs(64)
    # -1/2 and the skew rest have the eigenvalues and inputs of the matrix by its definition.
    n = torch.arange(64, dtype=torch.float64)
    scale = (2 * n + 1).sqrt()
    matrix = -(scale[:, None] * scale).tril(-1) - torch.diag(n + 1)
    assert float(diagonal.imag.max()) < 0
    whole = [torch.cat([x, x.conj()]) for x in (diagonal, p, b)]
    rebuilt = torch.diag(whole[0]) - whole[1][:, None] * whole[1].conj()
    # What a state gets after k steps does not depend on the basis: b† A^k b.
    ours, theirs = whole[2], scale
    for _ in range(3):
        ours, theirs = rebuilt @ ours / 1e3, matrix @ theirs / 1e3
        torch.testing.assert_close((whole[2].conj() @ ours).real, scale @ theirs)


def test_initial_values_are_the_published_ones(goldens: Path) -> None:
    data = np.load(goldens / 's4nd/init_legs64.npz')
    published = {name: torch.from_numpy(data[name]).double() for name in data}
    order = published['A_imag'][0].argsort(descending=True)
    diagonal, p, b = legs(64)
    torch.testing.assert_close(-diagonal.imag, published['A_imag'][0][order], rtol=1e-5, atol=1e-5)
    decay = published['A_real'][0].exp()
    torch.testing.assert_close(-diagonal.real, decay, rtol=1e-5, atol=0)
    magnitude = torch.view_as_complex(published['P'][0, 0])[order].abs()
    torch.testing.assert_close(p.abs(), magnitude, rtol=1e-4, atol=0)
    clipped = torch.view_as_complex(published['B'][0, 0])[order].abs()  # Im b to ±2 there
    free = clipped < 1.99
    assert free.sum() > 20
    torch.testing.assert_close(b.abs()[free], clipped[free], rtol=1e-4, atol=0)


@pytest.mark.parametrize('case', ['L24', 'L15_odd', 'longer_input', 'shorter_input'])
def test_a_layer_is_the_published_one(goldens: Path, case: str) -> None:
    folder = goldens / 's4nd'
    about = json.loads((folder / 'index.json').read_text())['layer'][case]
    data = np.load(folder / 'layer.npz')
    of = {k[len(case) + 1 :]: torch.from_numpy(data[k]) for k in data if k.startswith(f'{case}.')}
    layer = S4Layer(about['d_model'], about['l_max'], about['d_state'], about['channels']).double()
    own = dict(layer.named_parameters())
    layer.load_state_dict({o: of[f'param.{t}'].view_as(own[o]) for t, o in NAMES.items()})
    x = of['x'].double().requires_grad_()
    torch.testing.assert_close(layer.kernel(), of['kernel'], **EXACT)
    torch.testing.assert_close(layer.convolve(x), of['y_linear'], **EXACT)
    out = layer(x)
    torch.testing.assert_close(out, of['out'], **EXACT)
    (out * of['loss_weight']).sum().backward()
    grads = {'x': x.grad, **{theirs: own[ours].grad for theirs, ours in NAMES.items()}}
    for name, grad in grads.items():
        assert grad is not None
        expected = of[f'grad.{name}'].double()
        tolerance = dict(rtol=0, atol=1e-6 * float(expected.abs().max()))
        torch.testing.assert_close(grad.view_as(expected), expected, **tolerance)
    torch.testing.assert_close(layer.eval()(x), of['out'], **EXACT)


def test_a_model_is_the_published_one(goldens: Path) -> None:
    folder = goldens / 's4nd'
    about = json.loads((folder / 'index.json').read_text())['vit']
    weights = load_file(folder / 'vit_small.weights.safetensors')
    options = dict(patch_size=about['patch_size'], depth=about['depth'])
    grid = about['img_size'] // about['patch_size']
    model = S4NDViT(about['d_model'], grid, **options, states=about['d_state']).double()
    names = {}
    for name in model.state_dict():
        kind, number, part, *rest = *name.split('.'), '', ''
        tail = '.'.join(rest).strip('.')
        if kind == 'patch_embed':
            names[name] = f'patch_embed.proj.{number}'
        elif kind == 'norm':
            names[name] = f'norm.norm.{number}'
        elif part == '0':
            names[name] = f'blocks.{number}.norm.norm.{tail}'
        elif int(number) % 2:
            names[name] = f'blocks.{number}.layer.ff.{tail.replace("0.", "0.0.")}'
        else:
            theirs = next(theirs for theirs, ours in NAMES.items() if ours == tail)
            names[name] = f'blocks.{number}.layer.{theirs}'
    left = {key for key in weights if 'kernel.1' not in key and 'l_kernel' not in key}
    assert left - set(names.values()) == {'head.weight', 'head.bias'}
    own = model.state_dict()
    model.load_state_dict({ours: weights[t].view_as(own[ours]) for ours, t in names.items()})
    data = {
        name: torch.from_numpy(array) for name, array in np.load(folder / 'vit_small.npz').items()
    }
    found: list[Tensor] = []
    for part in model.blocks:
        part.register_forward_hook(lambda module, args, out: found.append(args[0] + out))
    for mode in (True, False):
        features = model.train(mode)(data['x'].double())
        logits = features @ weights['head.weight'].T + weights['head.bias']
        torch.testing.assert_close(logits, data['logits'], **EXACT)
    for number, stream in enumerate(found[:4]):
        torch.testing.assert_close(stream, data[f'block{number}'], **EXACT)


def test_parameters_of_the_published_size() -> None:
    with torch.device('meta'):
        model = S4NDViT(768, 14)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count + 1000 * (768 + 1) == 88_786_408  # VMamba (arXiv 2401.10166), table 1: 88.8 M


@pytest.mark.parametrize('shape', [(32, 32), (48, 16), (70, 50)])
def test_any_size(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = S4NDViT(12, 2, depth=2, taps=(0, 1), states=4)
    grid = (shape[0] // 16, shape[1] // 16)
    maps = model(torch.randn(2, 3, *shape))
    assert [tuple(m.shape) for m in maps] == 2 * [(2, 12, *grid)]


def test_autocast_keeps_the_convolution_in_float32() -> None:
    torch.manual_seed(0)
    layer = S4Layer(6, 9, states=4)
    x = torch.randn(1, 9, 6)
    with torch.autocast('cpu', torch.bfloat16):
        out = layer.convolve(x.bfloat16())
    torch.testing.assert_close(out, layer.convolve(x.bfloat16().float()))
