"""The pure-torch implementation: in bulk within a chunk of tokens, sequential from chunk to chunk.

Everything of size tokens x channels x states lives in a few buffers that hold one chunk and are used
again for the next, so that memory does not grow with the sequence and, on a CPU, the buffers stay in
cache. Only the state at the start of each chunk is kept for the backward pass, which walks the chunks
from the last to the first, rebuilds the states of a chunk and runs the adjoint recurrence over them.

No step divides by a product of decays or exponentiates a positive sum: decays are only ever
multiplied with each other, so a decay that underflows to zero is exact instead of a NaN.

Inside, tensors are time-major with the channels last: ``(T, B, G, N, P)`` for T tokens and G groups
of P channels each. Channels are innermost because there are many of them; B and C are then broadcast
scalars, and the sums over states or channels are small matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvim_ops.composed import bi_conv1d_silu, bidirectional_with, conv1d_silu
from mmvim_ops.precision import full_precision, wide_dtype

__all__ = [
    'backward_kernel',
    'bi_conv1d_silu',
    'bidirectional_selective_scan',
    'chunk_length',
    'conv1d_silu',
    'forward_kernel',
    'selective_scan',
]

# Elements of one chunk buffer and bounds of the chunk in tokens. On a CPU the buffers should stay in
# cache (measured); elsewhere a chunk should be long, so that the number of kernels is small.
_CPU_ELEMENTS, _CPU_MAX_CHUNK = 1 << 18, 64
_ELEMENTS, _MAX_CHUNK = 1 << 24, 256
_MIN_CHUNK = 8

# State elements per token from which a CPU runs the recurrence token by token: below it the calls
# cost more than the extra arithmetic of the tree (measured).
_STEPPED_ELEMENTS = 1 << 11


def chunk_length(batch: int, length: int, channels: int, states: int, device: torch.device) -> int:
    """Tokens per chunk; written with ``sym_min``/``sym_max`` so that symbolic sizes trace."""
    on_cpu = device.type == 'cpu'
    elements = _CPU_ELEMENTS if on_cpu else _ELEMENTS
    longest = _CPU_MAX_CHUNK if on_cpu else _MAX_CHUNK
    fitting = elements // torch.sym_max(1, batch * channels * states)
    return torch.sym_min(length, torch.sym_max(_MIN_CHUNK, torch.sym_min(longest, fitting)))


class _Scan:
    """The inputs of one scan, time-major and in the arithmetic dtype.

    Attributes:
        u, raw, dt, dtu: (L, B, G, 1, P); ``raw`` is the step before softplus.
        B, C: (L, B, G, 1, N).
        A: (G, N, P).
        D: (G, 1, P) or None.
    """

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        reverse: bool,
        groups: int,
    ) -> None:
        self.batch, self.length, channels = u.shape
        self.groups, self.states, self.width = groups, A.shape[1], channels // groups
        self.dtype = wide_dtype(u.dtype)
        self.reverse = reverse
        self.u = self.time_major(u)
        self.raw = self.time_major(delta)
        if delta_bias is not None:
            self.raw = self.raw + delta_bias.to(self.dtype).view(groups, 1, self.width)
        self.dt = F.softplus(self.raw) if delta_softplus else self.raw
        self.dtu = self.dt * self.u
        self.B = self.time_major(B)
        self.C = self.time_major(C)
        self.A = A.to(self.dtype).view(groups, self.width, -1).transpose(1, 2).contiguous()
        # exp(x) = exp2(x log2 e): exp2 is 2.6 times as fast as exp with AVX-512 (measured).
        self.A_log2 = self.A * math.log2(math.e)
        self.D = None if D is None else D.to(self.dtype).view(groups, 1, self.width)

    def time_major(self, tensor: Tensor) -> Tensor:
        """(B, L, E) or (B, L, G, N) -> (L, B, G, 1, E / G or N), first scanned token first."""
        tensor = tensor.to(self.dtype).transpose(0, 1)
        tensor = tensor.flip(0) if self.reverse else tensor
        return tensor.contiguous().view(self.length, self.batch, self.groups, 1, -1)

    def batch_major(self, rows: Tensor, like: Tensor) -> Tensor:
        """The way back, to the shape and dtype of ``like``; contiguous."""
        rows = rows.flip(0) if self.reverse else rows
        out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        return out.copy_(rows.view(self.length, *like.shape[:1], *like.shape[2:]).transpose(0, 1))

    def buffer(self, tokens: int) -> Tensor:
        """An uninitialised (tokens, B, G, N, P) buffer."""
        shape = (tokens, self.batch, self.groups, self.states, self.width)
        return torch.empty(shape, dtype=self.dtype, device=self.u.device)

    def chunks(self, chunk: int) -> list[slice]:
        """The token range of each chunk, in scan order."""
        starts = range(0, self.length, chunk)
        return [slice(start, min(start + chunk, self.length)) for start in starts]

    def run(self, tokens: slice, decay: Tensor, state: Tensor) -> None:
        """Fill ``decay`` (T, ...) and ``state[1:]`` (T + 1, ...) of a chunk from ``state[0]``."""
        torch.mul(self.dt[tokens], self.A_log2, out=decay).exp2_()
        torch.mul(self.dtu[tokens], self.B[tokens].transpose(3, 4), out=state[1:])
        _recurrence(decay, state)

    def read_out(self, tokens: slice, state: Tensor, y: Tensor) -> None:
        """``y[tokens] = C h``, from ``state`` (T, ...)."""
        _matmul(self.C[tokens], state, out=y[tokens])


def _matmul(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Matrix product of (T, B, G, 1, .) and (T, B, G, ., .), into ``out`` (T, B, G, 1, .)."""
    # A view of `out`, never a copy: view raises where flatten would copy and lose the result.
    out = out.view(-1, *out.shape[3:])
    torch.bmm(left.flatten(0, 2), right.flatten(0, 2), out=out)


def _recurrence(decay: Tensor, rows: Tensor, backwards: bool = False) -> None:
    """Run ``rows[t+1] += decay[t] * rows[t]`` in place for t = 0 ... T-1.

    With ``backwards``: ``rows[t] += decay[t] * rows[t+1]`` for t = T-1 ... 0.

    Args:
        decay: (T, ...), left as it is.
        rows: (T + 1, ...).
    """
    if decay.device.type == 'cpu' and decay[0].numel() >= _STEPPED_ELEMENTS:
        _stepped_recurrence(decay, rows, backwards)
    else:
        _tree_recurrence(decay, rows, backwards)


def _stepped_recurrence(decay: Tensor, rows: Tensor, backwards: bool) -> None:
    """:func:`_recurrence` token by token: the least arithmetic, one call a token."""
    decays, states = list(decay.unbind(0)), list(rows.unbind(0))
    if backwards:
        decays.reverse()
        states.reverse()
    for decay_t, source, target in zip(decays, states, states[1:]):
        target.addcmul_(decay_t, source)


def _tree_recurrence(decay: Tensor, rows: Tensor, backwards: bool) -> None:
    """:func:`_recurrence` as a work-efficient parallel scan: about 3 log2(T) calls.

    Pairs (decay, row) compose associatively: (a, x) then (b, y) is (a b, b x + y). The two sweeps are
    those of Brent and Kung (1982), in place over every second, fourth, ... token.
    """
    length = decay.shape[0]
    start, targets = (rows[-1], rows[:-1]) if backwards else (rows[0], rows[1:])
    first = length - 1 if backwards else 0
    targets[first].addcmul_(decay[first], start)
    products = decay.clone()

    def combine(first: int, span: int, keep_products: bool) -> None:
        # Scan positions first, first + 2 span, ... take in the one `span` before each of them.
        if backwards:
            stop = length - first
            later = slice((stop - 1) % (2 * span), stop, 2 * span)
            earlier = slice(later.start + span, stop + span, 2 * span)
        else:
            later = slice(first, length, 2 * span)
            earlier = slice(first - span, length - span, 2 * span)
        targets[later].addcmul_(products[later], targets[earlier])
        if keep_products:
            products[later].mul_(products[earlier])

    span = 1
    while 2 * span <= length:
        combine(2 * span - 1, span, keep_products=True)
        span *= 2
    while span >= 1:
        if 3 * span <= length:
            combine(3 * span - 1, span, keep_products=False)
        span //= 2


def forward_kernel(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    groups: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of ``mmvim::selective_scan``; see :mod:`mmvim_ops.library` for the arguments."""
    with full_precision(u.device):
        scan = _Scan(u, delta, A, B, C, D, delta_bias, delta_softplus, reverse, groups)
        chunks = scan.chunks(chunk)
        checkpoints = scan.buffer(len(chunks))
        decay, state = scan.buffer(chunk), scan.buffer(chunk + 1)
        state[0].zero_()
        y = torch.empty_like(scan.u)
        for tokens, checkpoint in zip(chunks, checkpoints.unbind(0)):
            size = tokens.stop - tokens.start
            checkpoint.copy_(state[0])
            scan.run(tokens, decay[:size], state[: size + 1])
            scan.read_out(tokens, state[1 : size + 1], y)
            state[0].copy_(state[size])

        if scan.D is not None:
            y.addcmul_(scan.D, scan.u)
        if z is not None:
            y.mul_(F.silu(scan.time_major(z)))
        last_state = state[0].transpose(2, 3).flatten(1, 2).contiguous()
        return scan.batch_major(y, like=u), last_state, checkpoints


def backward_kernel(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    checkpoints: Tensor,
    delta_softplus: bool,
    reverse: bool,
    groups: int,
    chunk: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The kernel of ``mmvim::selective_scan_backward``; see :mod:`mmvim_ops.library`."""
    need_u, need_delta, need_A, need_B, need_C, need_D, need_z, need_bias = needs
    with full_precision(u.device):
        scan = _Scan(u, delta, A, B, C, D, delta_bias, delta_softplus, reverse, groups)
        grad_y = grad_gated = scan.time_major(grad_out)
        if z is not None:
            gate = scan.time_major(z)
            grad_y = grad_gated * F.silu(gate)

        chunks = scan.chunks(chunk)
        # Slot T of `decay` and `adjoint` is the first token of the chunk that follows in the scan.
        state, decay, adjoint = (
            scan.buffer(chunk + 1),
            scan.buffer(chunk + 1),
            scan.buffer(chunk + 1),
        )
        product = scan.buffer(chunk)
        size = chunks[-1].stop - chunks[-1].start
        decay[size].fill_(1)
        if grad_last_state is None:
            adjoint[size].zero_()
        else:
            by_group = (scan.batch, groups, scan.width, scan.states)
            adjoint[size].copy_(grad_last_state.reshape(by_group).transpose(2, 3))

        need_dt = need_delta or need_bias
        y = torch.empty_like(scan.u)
        grad_A = torch.zeros_like(scan.A)
        grad_B, grad_C = torch.empty_like(scan.B), torch.empty_like(scan.C)
        grad_dtu, grad_dt = torch.empty_like(scan.u), torch.empty_like(scan.u)
        for tokens, checkpoint in zip(reversed(chunks), reversed(checkpoints.unbind(0))):
            size = tokens.stop - tokens.start
            a, g, before, after = decay[:size], adjoint[:size], state[:size], state[1 : size + 1]
            before[0].copy_(checkpoint)
            scan.run(tokens, a, state[: size + 1])
            if need_z:
                scan.read_out(tokens, after, y)
            if need_C:
                _matmul(grad_y[tokens], after.transpose(3, 4), out=grad_C[tokens])

            # Adjoint of h_t: g_t = C_t dy_t + a_{t+1} g_{t+1}.
            torch.mul(grad_y[tokens], scan.C[tokens].transpose(3, 4), out=g)
            _recurrence(decay[1 : size + 1], adjoint[: size + 1], backwards=True)
            decay[chunk].copy_(a[0])
            adjoint[chunk].copy_(g[0])
            if need_B:
                _matmul(scan.dtu[tokens], g.transpose(3, 4), out=grad_B[tokens])
            if need_u or need_dt:
                _matmul(scan.B[tokens], g, out=grad_dtu[tokens])
            if need_A or need_dt:
                # Adjoint of the exponent dt_t A: g_t a_t h_{t-1}.
                g.mul_(a).mul_(before)
            if need_dt:
                torch.mul(g, scan.A, out=product[:size])
                torch.sum(product[:size], dim=3, keepdim=True, out=grad_dt[tokens])
            if need_A:
                grad_A += g.mul_(scan.dt[tokens]).sum((0, 1))

        none = u.new_empty(0)
        grads = [none] * 8
        if need_u:
            grad_u = grad_dtu * scan.dt
            if scan.D is not None:
                grad_u.addcmul_(scan.D, grad_y)
            grads[0] = scan.batch_major(grad_u, like=u)
        if need_dt:
            grad_dt.addcmul_(grad_dtu, scan.u)
            if delta_softplus:
                grad_dt = torch.ops.aten.softplus_backward(grad_dt, scan.raw, 1, 20)
        if need_delta:
            grads[1] = scan.batch_major(grad_dt, like=delta)
        if need_A:
            grads[2] = grad_A.transpose(1, 2).reshape(A.shape).to(A.dtype)
        if need_B:
            grads[3] = scan.batch_major(grad_B, like=B)
        if need_C:
            grads[4] = scan.batch_major(grad_C, like=C)
        if need_D and D is not None:
            grads[5] = (grad_y * scan.u).sum((0, 1)).view(D.shape).to(D.dtype)
        if need_z and z is not None:
            if scan.D is not None:
                y.addcmul_(scan.D, scan.u)
            grad_z = torch.ops.aten.silu_backward(grad_gated * y, gate)
            grads[6] = scan.batch_major(grad_z, like=z)
        if need_bias and delta_bias is not None:
            grads[7] = grad_dt.sum((0, 1)).view(delta_bias.shape).to(delta_bias.dtype)
        return tuple(grads)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    groups: int = 1,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """See :func:`mmvim_ops.functional.selective_scan`."""
    if B.dim() == 3:
        B, C = B.unsqueeze(2), C.unsqueeze(2)
    chunk = chunk_length(*u.shape, A.shape[1], u.device)
    out, last_state, _ = torch.ops.mmvim.selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, groups, chunk
    )
    return (out, last_state) if return_last_state else out


def bidirectional_selective_scan(
    x_f: Tensor,
    x_b: Tensor,
    dbl_f: Tensor,
    dbl_b: Tensor,
    dt_w_f: Tensor,
    dt_w_b: Tensor,
    dt_b_f: Tensor,
    dt_b_b: Tensor,
    A_f: Tensor,
    A_b: Tensor,
    D_f: Tensor,
    D_b: Tensor,
    z: Tensor,
    scale: float = 0.5,
) -> Tensor:
    """See :func:`mmvim_ops.functional.bidirectional_selective_scan`."""
    return bidirectional_with(
        selective_scan,
        *(x_f, x_b, dbl_f, dbl_b, dt_w_f, dt_w_b, dt_b_f, dt_b_b, A_f, A_b, D_f, D_b, z, scale),
    )
