"""One scan, forwards and backwards: in bulk within a chunk of tokens, sequential over the chunks.

Everything of size tokens x channels x states lives in a few buffers that hold one chunk and are
used again for the next, so that memory does not grow with the sequence and, on a CPU, the buffers
stay in cache. Only the state at the start of each chunk is kept for the backward pass, which walks
the chunks from the last to the first, rebuilds the states of a chunk and runs the adjoint
recurrence over them. What has no states dimension is done for several chunks at once: fewer calls.

Inside, tensors are time-major with the channels last: ``(T, B, G, N, P)`` for T tokens in scan
order and G groups of P channels each; what has no states or no channels has a 1 there. Channels are
innermost because there are many of them: B and C are then broadcast scalars, and the sums over
states or channels are small matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvim_ops.precision import wide
from mmvim_ops.pure_torch.recurrence import Recurrence, steps_pay

__all__ = ['Needs', 'Scan', 'TokenOrder', 'Tokens', 'chunk_length']

# Elements of one chunk buffer and bounds of the chunk in tokens. On a CPU the buffers should stay
# in cache (measured with 6 k and 49 k elements a token, 1 MiB of L2 a core: 2^19 is best or within
# 5% of it); elsewhere a chunk should be long, so that there are few kernels (not measured).
_CPU_ELEMENTS, _CPU_MAX_CHUNK = 1 << 19, 64
_ELEMENTS, _MAX_CHUNK = 1 << 24, 256
_MIN_CHUNK = 4
# Tokens for which the work without a states dimension is done at once.
_SEGMENT = 64


def chunk_length(batch: int, length: int, channels: int, states: int, device: torch.device) -> int:
    """Tokens per chunk; written with ``sym_min``/``sym_max`` so that symbolic sizes trace."""
    if torch.jit.is_tracing():  # gives sizes as tensors
        batch, length, channels, states = map(int, (batch, length, channels, states))
    on_cpu = device.type == 'cpu'
    elements = _CPU_ELEMENTS if on_cpu else _ELEMENTS
    longest = _CPU_MAX_CHUNK if on_cpu else _MAX_CHUNK
    fitting = elements // torch.sym_max(1, batch * channels * states)
    return torch.sym_min(length, torch.sym_max(_MIN_CHUNK, torch.sym_min(longest, fitting)))


class TokenOrder:
    """Access to (B, L, ...) tensors by chunks of scan positions, whichever way the scan runs."""

    def __init__(self, length: int, reverse: bool, dtype: torch.dtype) -> None:
        self.length, self.reverse, self.dtype = length, reverse, dtype

    def place(self, tokens: slice) -> slice:
        """Places of these scan positions in memory."""
        if self.reverse:
            return slice(self.length - tokens.stop, self.length - tokens.start)
        return tokens

    def read(self, tensor: Tensor, tokens: slice) -> Tensor:
        """(B, L, ...) -> (T, B, ...) in scan order and in the arithmetic dtype."""
        part = tensor[:, self.place(tokens)].transpose(0, 1).to(self.dtype)
        return part.flip(0) if self.reverse else part

    def write(self, tensor: Tensor, tokens: slice, value: Tensor, add: bool = False) -> None:
        """The way back, into ``tensor`` or added to it."""
        value = (value.flip(0) if self.reverse else value).transpose(0, 1)
        part = tensor[:, self.place(tokens)]
        if add:
            part.add_(value)
        else:
            part.copy_(value)


class Tokens(NamedTuple):
    """Inputs of a range of the scan: u, delta (T, B, G, 1, P) and B, C (T, B, G, 1, N).

    All are contiguous.
    """

    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor


class Needs(NamedTuple):
    """Which gradients a backward pass computes; ``y``: the output before the gate, once more."""

    u: bool
    delta: bool
    A: bool
    B: bool
    C: bool
    D: bool
    bias: bool
    y: bool


class Scan:
    """Parameters, sizes and the two passes of a scan over G groups.

    Args:
        batch, length: B and L.
        A (Tensor): (G, P, N). D, bias: (G, P) or None.
        softplus (bool): Pass the steps through softplus.
        chunk (int): Tokens per chunk.
    """

    def __init__(
        self,
        batch: int,
        length: int,
        A: Tensor,
        D: Tensor | None,
        bias: Tensor | None,
        softplus: bool,
        chunk: int,
    ) -> None:
        self.groups, self.width, self.states = A.shape
        self.batch, self.softplus, self.chunk = batch, softplus, chunk
        self.A = wide(A).transpose(1, 2).contiguous()  # (G, N, P)
        # exp(x) = exp2(x log2 e): exp2 is 2.6 times as fast as exp with AVX-512 (measured).
        self.A_log2 = self.A * math.log2(math.e)
        self.D = None if D is None else wide(D).unsqueeze(1)  # (G, 1, P)
        self.bias = None if bias is None else wide(bias).unsqueeze(1)
        segment = max(chunk, _SEGMENT // chunk * chunk)
        starts = range(0, length, segment)
        self.segments = [slice(start, min(start + segment, length)) for start in starts]
        self.chunks = -(-length // chunk)

    def buffer(self, tokens: int, states: int | None = None) -> Tensor:
        """An uninitialised (tokens, B, G, N, P) buffer, or with another number of states."""
        states = self.states if states is None else states
        return self.A.new_empty(tokens, self.batch, self.groups, states, self.width)

    def _steps(self, inputs: Tokens) -> tuple[Tensor, Tensor]:
        """The step before and after softplus."""
        raw = inputs.delta if self.bias is None else inputs.delta + self.bias
        return raw, F.softplus(raw) if self.softplus else raw

    def _exponents(self, state: Tensor) -> Tensor | None:
        """Room for the exponents of a chunk where the recurrence wants them."""
        return None if steps_pay(state[0]) else torch.empty_like(state)

    def _fill(
        self,
        dt: Tensor,
        dtu: Tensor,
        B: Tensor,
        decay: Tensor,
        exponent: Tensor | None,
        state: Tensor,
    ) -> None:
        """Decays of a chunk, and what each of its tokens adds to the state."""
        torch.mul(dt, self.A_log2, out=decay)
        if exponent is not None:
            exponent[: len(dt)].copy_(decay)
        decay.exp2_()
        torch.mul(dtu, B.transpose(3, 4), out=state)

    def forward(
        self, load: Callable[[slice], Tokens], store: Callable[[slice, Tensor], None]
    ) -> tuple[Tensor, Tensor]:
        """Run the scan.

        Args:
            load (Callable): Gives the inputs of a range of scan positions.
            store (Callable): Takes ``C h + D u`` of a range, (T, B, G, 1, P), which is overwritten
                afterwards.

        Returns:
            The last state (B, E, N) and the state before every chunk (chunks, B, G, N, P).
        """
        checkpoints = self.buffer(self.chunks)
        checkpoint = iter(checkpoints.unbind(0))
        decay, state = self.buffer(self.chunk), self.buffer(self.chunk + 1)
        exponent = self._exponents(state)
        recurrence = Recurrence(decay, state, exponent)
        state[0].zero_()
        for tokens in self.segments:
            inputs = load(tokens)
            _, dt = self._steps(inputs)
            y = torch.empty_like(dt)
            feed = (dt, dt * inputs.u, inputs.B, inputs.C, y)
            for dt_c, dtu_c, B_c, C_c, y_c in zip(*(part.split(self.chunk) for part in feed)):
                size = len(dt_c)
                after = state[1 : size + 1]
                next(checkpoint).copy_(state[0])
                self._fill(dt_c, dtu_c, B_c, decay[:size], exponent, after)
                recurrence.run(size)
                _matmul(C_c, after, out=y_c)
                state[0].copy_(state[size])
            if self.D is not None:
                y.addcmul_(self.D, inputs.u)
            store(tokens, y)
        return state[0].transpose(2, 3).flatten(1, 2).contiguous(), checkpoints

    def backward(
        self,
        load: Callable[[slice], Tokens],
        load_grad: Callable[[slice], Tensor],
        store: Callable[[slice, Tokens, Tensor | None], None],
        checkpoints: Tensor,
        grad_last_state: Tensor | None,
        needs: Needs,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the adjoint scan.

        Args:
            load (Callable): Gives the inputs of a range of scan positions.
            load_grad (Callable): Gives the gradient of ``C h + D u`` of a range, (T, B, G, 1, P).
            store (Callable): Takes the gradients of a range's inputs, undefined where not needed,
                and with ``needs.y`` its ``C h + D u``.
            checkpoints (Tensor): What :meth:`forward` returned.
            grad_last_state (Tensor | None): (B, E, N) or None.
            needs (Needs): What to compute.

        Returns:
            Gradients of A (G, P, N), D (G, P) and bias (G, P), zero where not needed.
        """
        # Slot T of `decay` and `adjoint` is the first token of the chunk that follows in the scan.
        state, decay = self.buffer(self.chunk + 1), self.buffer(self.chunk + 1)
        adjoint, product = self.buffer(self.chunk + 1), self.buffer(self.chunk)
        exponent = self._exponents(state)
        rebuild = Recurrence(decay[:-1], state, exponent)
        shifted = None if exponent is None else exponent[1:]
        adjoin = Recurrence(decay[1:], adjoint, shifted, backwards=True)
        last = self.segments[-1]
        size = (last.stop - last.start - 1) % self.chunk + 1
        decay[size].fill_(1)
        if exponent is not None:
            exponent[size].fill_(0)
        adjoint[size].zero_()
        if grad_last_state is not None:
            by_group = (self.batch, self.groups, self.width, self.states)
            adjoint[size].copy_(grad_last_state.reshape(by_group).transpose(2, 3))

        grad_A = torch.zeros_like(self.A)
        grad_D, grad_bias = self.A.new_zeros(2, self.groups, 1, self.width).unbind(0)
        checkpoint = reversed(checkpoints.unbind(0))
        for tokens in reversed(self.segments):
            inputs, grad_y = load(tokens), load_grad(tokens)
            raw, dt = self._steps(inputs)
            dtu = dt * inputs.u
            y, grad_u, grad_delta = (torch.empty_like(dt) for _ in range(3))
            grad_B, grad_C = (inputs.C.new_empty(inputs.C.shape) for _ in range(2))
            feed = (dt, dtu, inputs.B, inputs.C, grad_y)
            results = (y, grad_u, grad_delta, grad_B, grad_C)
            parts = zip(*(part.split(self.chunk) for part in (*feed, *results)))
            for dt_c, dtu_c, B_c, C_c, gy_c, y_c, gu_c, gd_c, gB_c, gC_c in reversed(list(parts)):
                size = len(dt_c)
                a, g, before, after = (
                    decay[:size],
                    adjoint[:size],
                    state[:size],
                    state[1 : size + 1],
                )
                before[0].copy_(next(checkpoint))
                self._fill(dt_c, dtu_c, B_c, a, exponent, after)
                rebuild.run(size)
                if needs.y:
                    _matmul(C_c, after, out=y_c)
                if needs.C:
                    _matmul(gy_c, after.transpose(3, 4), out=gC_c)
                # Adjoint of h_t: g_t = C_t dy_t + a_{t+1} g_{t+1}.
                torch.mul(gy_c, C_c.transpose(3, 4), out=g)
                adjoin.run(size)
                decay[self.chunk].copy_(a[0])
                if exponent is not None:
                    exponent[self.chunk].copy_(exponent[0])
                adjoint[self.chunk].copy_(g[0])
                if needs.B:
                    _matmul(dtu_c, g.transpose(3, 4), out=gB_c)
                if needs.u or needs.delta:
                    _matmul(B_c, g, out=gu_c)  # of dt u, so far
                if needs.A or needs.delta:
                    # Adjoint of the exponent dt_t A: g_t a_t h_{t-1}.
                    g.mul_(a).mul_(before)
                if needs.delta:
                    torch.mul(g, self.A, out=product[:size])
                    torch.sum(product[:size], dim=3, keepdim=True, out=gd_c)
                if needs.A:
                    grad_A += g.mul_(dt_c).sum((0, 1))

            if needs.y and self.D is not None:
                y.addcmul_(self.D, inputs.u)
            if needs.delta:
                grad_delta.addcmul_(grad_u, inputs.u)
                if self.softplus:
                    # As F.softplus: the identity above its threshold of 20.
                    grad_delta = torch.ops.aten.softplus_backward(grad_delta, raw, 1, 20)
            if needs.u:
                grad_u.mul_(dt)
                if self.D is not None:
                    grad_u.addcmul_(self.D, grad_y)
            if needs.bias:
                grad_bias += grad_delta.sum((0, 1))
            if needs.D:
                grad_D += (grad_y * inputs.u).sum((0, 1))
            grads = Tokens(grad_u, grad_delta, grad_B, grad_C)
            store(tokens, grads, y if needs.y else None)
        return grad_A.transpose(1, 2), grad_D.squeeze(1), grad_bias.squeeze(1)


def _matmul(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Matrix product of (T, B, G, 1, .) and (T, B, G, ., .), into ``out`` (T, B, G, 1, .)."""
    # A view of `out`, never a copy: view raises where flatten would copy and lose the result.
    out = out.view(-1, *out.shape[3:])
    torch.bmm(left.flatten(0, 2), right.flatten(0, 2), out=out)
