"""How an operator is called and differentiated: once, by whatever way costs least.

Plain calls, compilers, dispatch modes and transforms of ``torch.func`` each need another one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    'Operator',
    'Rule',
    'Setup',
    'differentiates',
    'is_plain_call',
    'is_seen_through',
    'once_differentiable',
    'refuse',
]

Setup = Callable[[Any, tuple[Any, ...], Any], None]
Rule = Callable[..., Any]

_ONCE = (
    'the ops of mmvim_ops cannot be differentiated twice, nor in forward mode, except with '
    "backend='reference' (scan_backend='reference' of a backbone)"
)


def refuse(ctx: Any, *tangents_or_grads: Tensor | None) -> None:
    """The derivative, in either mode, of what has none."""
    raise RuntimeError(_ONCE)


class _Refusing(torch.autograd.Function):
    """The first ``count`` of some values, none of which can be differentiated any more."""

    @staticmethod
    def forward(ctx: Any, count: int, *values: Tensor | None) -> tuple[Tensor | None, ...]:
        return values[:count]

    backward = staticmethod(refuse)


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass whose own derivative raises.

    torch's decorator of this name cuts what it decorates off its inputs: a second derivative
    that reaches them otherwise as well would lack a part, and nobody would be told.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Any) -> Any:
        with torch.no_grad():
            outputs = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return outputs
        return _Refusing.apply(len(outputs), *outputs, *grads, *ctx.saved_tensors)

    return wrapper


def differentiates(*inputs: object) -> bool:
    """Whether a gradient of one of the inputs may be asked for."""
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in inputs
    )


def is_seen_through() -> bool:
    """Whether a compiler, ``torch.jit.trace`` or a transform of ``torch.func`` follows every op."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
    )


def is_plain_call(*inputs: object) -> bool:
    """Whether nobody derives or follows what is computed: any kernel may compute it.

    Those who follow are compilers, transforms, and dispatch modes such as torch's FLOP counter.
    """
    followed = is_seen_through() or forward_ad._current_level >= 0
    return not (followed or torch._C._len_torch_dispatch_stack() or differentiates(*inputs))


class Operator:
    """An operator of ``torch.library`` with its derivative, under transforms too.

    Args:
        overload (Any): The operator.
        setup (Setup): Saves what its backward pass needs.
        rule (Rule): The backward pass.
    """

    def __init__(self, overload: Any, setup: Setup, rule: Rule) -> None:
        self.overload = overload
        derivatives = {'backward': staticmethod(rule), 'jvp': staticmethod(refuse)}

        def compute_and_save(ctx: Any, *args: Any) -> Any:
            output = self._below_autograd(*args)
            setup(ctx, args, output)
            return output

        self.plain: Any = type(
            f'{overload._opname}_plain',
            (torch.autograd.Function,),
            {'forward': staticmethod(compute_and_save), **derivatives},
        )
        self.transformable: Any = type(
            f'{overload._opname}_transformable',
            (torch.autograd.Function,),
            {
                'forward': staticmethod(overload),
                'setup_context': staticmethod(setup),
                'vmap': staticmethod(self._one_by_one),
                **derivatives,
            },
        )
        torch.library.register_autograd(overload, rule, setup_context=setup)

    def __call__(self, *args: Any) -> Any:
        """Call it by the way that costs least: what torch has for all cases takes 0.1 ms."""
        if torch.compiler.is_compiling():
            return self.overload(*args)
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            # They do not see into what register_autograd makes of the same two functions.
            return self.transformable.apply(*args)
        if not differentiates(*args):
            return self._below_autograd(*args)
        if torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
            return self.overload(*args)  # for whoever follows, the operator is one
        return self.plain.apply(*args)

    def _below_autograd(self, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*args)

    def _one_by_one(self, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """The rule for ``torch.vmap``: no kernel has an axis over which parameters differ too."""
        results = [
            self(
                *(
                    arg.select(dim, index) if isinstance(arg, Tensor) and dim is not None else arg
                    for arg, dim in zip(args, in_dims)
                )
            )
            for index in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        outs = tuple(torch.stack(parts) for parts in zip(*results))
        return outs, (0,) * len(outs)
