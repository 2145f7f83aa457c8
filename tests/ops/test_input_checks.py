"""What bad input gets, and what each backend name does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import bidirectional, directions
from torch import Tensor

import mmvim_ops
from mmvim_ops import backends, loading, reference
from mmvim_ops.backends.mamba_ssm import MAMBA_SSM
from mmvim_ops.scan_inputs import ScanInputs, SelectiveInputs

Inputs = Callable[..., dict[str, Tensor]]


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        (dict(u=torch.zeros(2, 17)), ValueError, r'u has 2 dimensions.*\(B, L, E\)'),
        (dict(u=torch.zeros(2, 0, 6)), ValueError, r'u has shape \(2, 0, 6\).*L >= 1'),
        (dict(u=[1.0]), TypeError, 'u must be a Tensor, got list'),
        (dict(u=torch.zeros(2, 17, 6, dtype=torch.int64)), TypeError, 'u has dtype torch.int64'),
        (dict(delta=torch.zeros(2, 16, 6)), ValueError, r'delta has shape \(2, 16, 6\).*17, 6\)'),
        (
            dict(A=torch.zeros(5, 4)),
            ValueError,
            r'A has shape \(5, 4\); expected \(E, N\) = \(6, 4',
        ),
        (dict(A=torch.zeros(6, 0)), ValueError, 'A has shape.*N >= 1'),
        (dict(A=torch.zeros(6, 4, dtype=torch.complex64)), TypeError, 'A has dtype'),
        (dict(B=torch.zeros(2, 17, 5)), ValueError, r'B has shape .*\(B, L, N\) = \(2, 17, 4\)'),
        (dict(C=torch.zeros(2, 17, 2, 4)), ValueError, r'C has shape .*\(B, L, groups, N\)'),
        (dict(D=torch.zeros(6, 1)), ValueError, r'D has shape \(6, 1\); expected \(E,\) = \(6,\)'),
        (dict(z=torch.zeros(1, 17, 6)), ValueError, 'z has shape'),
        (dict(delta_bias=torch.zeros(5)), ValueError, 'delta_bias has shape'),
        (dict(delta_bias=torch.zeros(6, dtype=torch.float64)), TypeError, 'does not mix'),
        (dict(z=torch.zeros(2, 17, 6, device='meta')), ValueError, 'z is on meta and u on cpu'),
        (dict(groups=4), ValueError, 'groups=4 does not divide E=6'),
        (dict(groups=0), ValueError, 'groups=0'),
        (dict(groups=2), ValueError, r'B has shape .*\(B, L, groups, N\) = \(2, 17, 2, 4\)'),
        (dict(groups=1.0), TypeError, 'groups must be an int'),
        (dict(groups=True), TypeError, 'groups must be an int'),
        (dict(delta_softplus='yes'), TypeError, 'delta_softplus must be True or False'),
        (dict(reverse=1), TypeError, 'reverse must be True or False'),
        (dict(return_last_state=None), TypeError, 'return_last_state must be'),
        (
            dict(backend='numpy'),
            ValueError,
            "backend='numpy' is unknown; valid: auto, cuda, triton, cpu",
        ),
        (dict(delta_sofplus=True), TypeError, 'delta_sofplus'),
    ],
)
def test_selective_scan(
    changes: dict[str, Any], error: type[Exception], message: str, scan_inputs: Inputs
) -> None:
    inputs: dict[str, Any] = scan_inputs(dtype=torch.float32)
    inputs['B'], inputs['C'] = inputs['B'].squeeze(2), inputs['C'].squeeze(2)
    mmvim_ops.selective_scan(**inputs)
    with pytest.raises(error, match=message):
        mmvim_ops.selective_scan(**(inputs | changes))


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        (dict(x_f=torch.zeros(2, 17, 6, 1)), ValueError, 'forward.x has 4 dimensions'),
        (dict(x_b=torch.zeros(2, 18, 6)), ValueError, 'reverse.x has shape'),
        (
            dict(dbl_f=torch.zeros(2, 17, 10)),
            ValueError,
            r'forward.dbl .*R \+ 2 N\) = \(2, 17, 11\)',
        ),
        (dict(dbl_b=torch.zeros(2, 17, 12)), ValueError, 'reverse.dbl has shape'),
        (dict(dt_w_f=torch.zeros(6, 0)), ValueError, 'forward.dt_weight has shape.*R >= 1'),
        (
            dict(dt_w_b=torch.zeros(6, 2)),
            ValueError,
            r'reverse.dt_weight has shape \(6, 2\).*\(6, 3\)',
        ),
        (dict(dt_b_f=None), TypeError, 'forward.dt_bias must be a Tensor, got NoneType'),
        (dict(A_b=torch.zeros(6, 5)), ValueError, 'reverse.A has shape'),
        (dict(D_b=torch.zeros(7)), ValueError, 'reverse.D has shape'),
        (dict(z=torch.zeros(2, 17, 6).double()), TypeError, 'z is torch.float64 and forward.x'),
        (dict(scale=float('nan')), ValueError, 'scale=nan is not finite'),
        (dict(scale=float('inf')), ValueError, 'scale=inf is not finite'),
        (dict(scale=torch.ones(())), TypeError, 'scale must be a float, got Tensor'),
        (
            dict(out_dtype=torch.bfloat16),
            ValueError,
            r'out_dtype=torch.bfloat16 is not valid for inputs of torch.float32; choose None .* or '
            'torch.float32',
        ),
        (dict(out_dtype=torch.float64), ValueError, 'out_dtype=torch.float64 is not valid'),
        (
            dict(backend='chunk'),
            ValueError,
            'valid: auto, cuda, triton, cpu, chunked, reference, mamba_ssm',
        ),
    ],
)
def test_bidirectional(
    changes: dict[str, Any], error: type[Exception], message: str, bidirectional_inputs: Inputs
) -> None:
    inputs: dict[str, Any] = bidirectional_inputs(dtype=torch.float32)
    with pytest.raises(error, match=message):
        bidirectional(**(inputs | changes))


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        (dict(x=torch.zeros(2, 5)), ValueError, 'x has 2 dimensions'),
        (dict(weight=torch.zeros(3, 1, 4)), ValueError, r'weight has 3 dimensions.*\(E, W\)'),
        (dict(weight=torch.zeros(3, 0)), ValueError, 'weight has shape.*W >= 1'),
        (dict(weight=torch.zeros(4, 4)), ValueError, r'weight has shape \(4, 4\).*\(3, 4\)'),
        (dict(bias=torch.zeros(4)), ValueError, 'bias has shape'),
        (dict(bias=0.0), TypeError, 'bias must be a Tensor, got float'),
        (dict(reverse='no'), TypeError, 'reverse must be'),
    ],
)
def test_conv1d_silu(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    inputs: dict[str, Any] = dict(x=torch.zeros(2, 5, 3), weight=torch.zeros(3, 4))
    with pytest.raises(error, match=message):
        mmvim_ops.conv1d_silu(**(inputs | changes))


def test_bi_conv1d_silu_names_the_argument() -> None:
    x, weight = torch.zeros(2, 5, 3), torch.zeros(3, 4)
    with pytest.raises(ValueError, match='w_b has shape'):
        mmvim_ops.bi_conv1d_silu(x, weight, None, torch.zeros(2, 4), None)
    with pytest.raises(ValueError, match='b_f has shape'):
        mmvim_ops.bi_conv1d_silu(x, weight, torch.zeros(2), weight, None)


def test_cuda_backend_needs_cuda_tensors(scan_inputs: Inputs) -> None:
    with pytest.raises(RuntimeError, match=r"backend='cuda' cannot serve.*needs CUDA tensors"):
        mmvim_ops.selective_scan(**scan_inputs(), backend='cuda')


def test_available_backends_and_build_info() -> None:
    found = mmvim_ops.available_backends()
    assert ('auto', *found) == mmvim_ops.BACKENDS
    assert found['chunked'].available and found['reference'].available
    info = mmvim_ops.build_info()
    assert info['torch'] == torch.__version__
    for name, problem in (('cpu', loading.problem()), ('cuda', loading.cuda_problem())):
        assert found[name].available == (problem is None)
        assert problem is None or found[name].note == problem
    if loading.problem() is None:
        assert f'now {loading.isa()}' in found['cpu'].note
        assert info['native_library'] == str(loading.path())
        assert info['isa'] == loading.isa()


def test_main_prints_every_backend() -> None:
    command = [sys.executable, '-m', 'mmvim_ops']
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in mmvim_ops.available_backends():
        assert any(line.split()[:1] == [name] for line in printed.splitlines())


def test_imports_torch_alone() -> None:
    """No numpy, no OpenMMLab library, whatever is installed."""
    code = (
        'import sys, torch, torch.utils.flop_counter; before = set(sys.modules); '
        'import mmvim_ops; '
        'tops = {name.partition(".")[0] for name in set(sys.modules) - before}; '
        'third = tops - set(sys.stdlib_module_names) - {"mmvim_ops", "torch"}; '
        'sys.exit(f"also imports {third}" if third else 0)'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


class FakeMambaInterface(ModuleType):
    """The scan of mamba-ssm, channels first, computed by the reference."""

    def selective_scan_fn(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
    ) -> Any:
        batch, _, length = u.shape
        groups = B.shape[1]
        assert B.shape == C.shape == (batch, groups, A.shape[1], length)
        assert {t.dtype for t in (delta, B, C)} == {u.dtype}
        assert A.dtype == torch.float32
        result = reference.selective_scan(
            u.transpose(1, 2),
            delta.transpose(1, 2),
            A,
            B.permute(0, 3, 1, 2),
            C.permute(0, 3, 1, 2),
            D,
            None if z is None else z.transpose(1, 2),
            delta_bias,
            delta_softplus,
            groups=groups,
            return_last_state=True,
        )
        out, last_state = result[0].transpose(1, 2), result[1]
        return (out, last_state) if return_last_state else out


@pytest.fixture
def fake_mamba(monkeypatch: pytest.MonkeyPatch) -> None:
    name = 'mamba_ssm.ops.selective_scan_interface'
    monkeypatch.setitem(sys.modules, 'mamba_ssm', ModuleType('mamba_ssm'))
    monkeypatch.setitem(sys.modules, 'mamba_ssm.ops', ModuleType('mamba_ssm.ops'))
    monkeypatch.setitem(sys.modules, name, FakeMambaInterface(name))


@pytest.mark.usefixtures('fake_mamba')
@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('groups', [1, 3])
def test_mamba_adapter_selective_scan(reverse: bool, groups: int, scan_inputs: Inputs) -> None:
    inputs = scan_inputs(groups=groups, dtype=torch.float32)
    options = dict(delta_softplus=True, reverse=reverse, groups=groups)
    out, last_state = MAMBA_SSM.selective_scan(SelectiveInputs(**inputs), **options)
    options['return_last_state'] = True
    expected, expected_state = reference.selective_scan(**inputs, **options)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(last_state, expected_state)


@pytest.mark.usefixtures('fake_mamba')
@pytest.mark.parametrize('out_dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('gated', [True, False])
@pytest.mark.parametrize('N', [1, 4])
def test_mamba_adapter_bidirectional(
    N: int,
    gated: bool,
    out_dtype: torch.dtype,
    bidirectional_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
) -> None:
    inputs = bidirectional_inputs(N=N, dtype=torch.bfloat16)
    if not gated:
        del inputs['z']

    def scan(forward: ScanInputs, reverse: ScanInputs, z: Tensor | None = None) -> Tensor:
        return MAMBA_SSM.bidirectional_selective_scan(forward, reverse, z, 0.5, out_dtype)

    actual = value_and_grads(partial(bidirectional, op=scan), inputs)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    expected = value_and_grads(partial(bidirectional, backend='reference'), exact)
    assert actual['out'].dtype == out_dtype
    assert_close(actual, expected)


def test_a_direction_is_one_value(bidirectional_inputs: Inputs) -> None:
    inputs = bidirectional_inputs(dtype=torch.float32)
    forward, reverse = directions(inputs)
    with pytest.raises(TypeError, match='reverse must be a ScanInputs, got tuple'):
        mmvim_ops.bidirectional_selective_scan(forward, tuple(reverse))
    with pytest.raises(TypeError, match='forward must be a MixerWeights, got ScanInputs'):
        mmvim_ops.vim_inner(forward.x, forward.x, forward, reverse)


@pytest.mark.usefixtures('fake_mamba')
def test_mamba_backend_needs_cuda_tensors(scan_inputs: Inputs) -> None:
    with pytest.raises(RuntimeError, match='needs CUDA tensors, and the inputs are on cpu'):
        mmvim_ops.selective_scan(**scan_inputs(), backend='mamba_ssm')
    with pytest.raises(RuntimeError, match='no float64'):
        backends.select('mamba_ssm', torch.device('cuda'), torch.float64)
    assert backends.select('mamba_ssm', torch.device('cuda'), torch.float32) is MAMBA_SSM


def test_mamba_backend_says_why_it_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'mamba_ssm', None)
    with pytest.raises(RuntimeError, match='mamba-ssm cannot be imported'):
        backends.select('mamba_ssm', torch.device('cuda'), torch.float32)
    assert not mmvim_ops.available_backends()['mamba_ssm'].available
