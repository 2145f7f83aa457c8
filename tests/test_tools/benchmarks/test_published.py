"""The published composition, with stand-ins for its kernels: what it computes and what it saves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarking import published
from benchmarking.measuring import saved_bytes
from benchmarking.scan_cases import PASSES, Case, make_work
from torch import Tensor

pytestmark = pytest.mark.usefixtures('published_kernels')
CPU = torch.device('cpu')


def test_it_computes_what_ours_does() -> None:
    case = Case('inner', 'nano', 3, 'float32', 19)
    theirs, ours = make_work('published', case, CPU), make_work('reference', case, CPU)
    torch.testing.assert_close(theirs.forward(), ours.forward())
    (first, *their_grads), (mine, *my_grads) = theirs.call(PASSES[1]), ours.call(PASSES[1])
    torch.testing.assert_close(first.transpose(1, 2), mine)
    for a, b in zip(their_grads, my_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * float(b.abs().max()))


def test_it_computes_what_the_published_mixer_did(goldens: Path) -> None:
    data = {k: torch.from_numpy(v).double() for k, v in np.load(goldens / 'ops/mixer.npz').items()}
    prefix = 'v2_div.param.'
    p = {k[len(prefix) :]: v.requires_grad_() for k, v in data.items() if k.startswith(prefix)}
    x = data['x'].requires_grad_()
    xz = published.as_in_proj_leaves_it(x @ p['in_proj.weight'].t())

    def pair(name: str) -> list[Tensor]:
        parts = name.split('.')
        return [p[name], p['.'.join([parts[0] + '_b', *parts[1:]])]]

    weights = [w.squeeze(1) for w in pair('conv1d.weight')]
    parameters = [*weights, *pair('conv1d.bias'), *pair('x_proj.weight')]
    parameters += [*pair('dt_proj.weight'), *pair('dt_proj.bias')]
    parameters += [-p['A_log'].exp(), -p['A_b_log'].exp(), p['D'], p['D_b']]
    out = published.inner([xz], parameters) @ p['out_proj.weight'].t()
    torch.testing.assert_close(out, data['v2_div.out'], rtol=0, atol=1e-10)
    leaves = {'x': x, **p}
    grads = torch.autograd.grad(out, list(leaves.values()), data['w'])
    for name, grad in zip(leaves, grads, strict=True):
        expected = data[f'v2_div.grad.{name}']
        # The kernels sum the gradients of a convolution's weight and bias up in float32.
        digits = 1e-6 if name.startswith('conv1d') else 1e-10
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(grad, expected, rtol=0, atol=digits * scale)


def test_channels_are_outermost_and_nothing_is_copied_for_products() -> None:
    xz = torch.arange(2 * 5 * 8.0).view(2, 5, 8)
    laid_out = published.as_in_proj_leaves_it(xz)
    torch.testing.assert_close(laid_out.transpose(1, 2), xz)
    assert laid_out.stride() == (5, 10, 1)
    x, _ = laid_out.chunk(2, dim=1)
    out = torch.empty_like(x)  # as the kernels allocate theirs
    assert out.stride() == (5, 10, 1) == laid_out.flip(-1).stride()
    assert published._outer_channels(out).data_ptr() == out.data_ptr()


def test_the_input_of_out_proj_is_copied_in_training_alone() -> None:
    work = make_work('published', Case('inner', 'nano', 2, 'bfloat16', 19), CPU)
    assert not work.call(PASSES[0]).is_contiguous()
    assert work.forward().is_contiguous()
    assert work.forward().dtype == torch.bfloat16


def test_it_saves_neither_convolution_nor_steps() -> None:
    case = Case('inner', 'nano', 2, 'bfloat16', 40)
    work = make_work('published', case, CPU)
    tokens, channels, rank = 2 * 40, case.channels, 4
    columns = rank + 32
    direction = tokens * (2 * channels + channels + columns + 32) * 2  # xz, y, dbl, B and C
    direction += 2 * channels * 32 * 4  # the states between chunks of 2048 tokens
    direction += (columns + rank) * channels * 2  # the rounded weights of x_proj and dt_proj
    assert saved_bytes(work.forward, work.parameters) == 2 * direction
