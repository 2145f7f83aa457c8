"""Operations and parameters of a model, by part.

Every operator that torch dispatches is counted for the module that runs: matrix products and
convolutions by the formulas of ``torch.utils.flop_counter``, our operators by those of
:mod:`mmvim_ops.flops`, normalisations and Fourier transforms by those below. An operation is one
addition, multiplication or exponential; a multiply-accumulate is two.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from mmvim.analysis.image_forward import image_forward, region_heads, run_on_regions
from mmvim.models import VimMixer
from mmvim.models.backbones.base_backbone import BaseBackbone
from mmvim_ops.flops import projection_flops, through_operators

# What the parts of our backbones are called, and the words by which a module, a parameter or an
# operator of its layers belongs to one.
_PATCHES, _PROJECTIONS, _SCAN = 'patch embedding', 'blocks: projections', 'blocks: scan'
_WORDS = {
    'downsample': 'downsampling',
    'conv1d': 'blocks: convolution',
    'conv2d': 'blocks: convolution',
    'scan': _SCAN,
    'mixer.A_': _SCAN,
    'mixer.D': _SCAN,
    'op.A_': _SCAN,
    'op.D': _SCAN,
    'norm': 'norms',
}
# Operators that create, move or choose numbers and compute none; views are told by their schema.
_MOVES = frozenset(
    (
        *('_local_scalar_dense', '_to_copy', '_unsafe_index', '_unsafe_view', 'arange', 'cat'),
        *('clone', 'constant_pad_nd', 'copy', 'copy_', 'empty', 'empty_like', 'empty_strided'),
        *('fill', 'fill_', 'flip', 'full', 'full_like', 'gather', 'im2col', 'index', 'index_put'),
        *('index_put_', 'index_select', 'lift_fresh', 'masked_fill', 'masked_fill_', 'meshgrid'),
        *('new_empty', 'new_empty_strided', 'new_full', 'new_ones', 'new_zeros', 'ones'),
        *('ones_like', 'rand', 'randn', 'repeat', 'resize_', 'roll', 'scalar_tensor', 'scatter'),
        *('scatter_', 'set_', 'sort', 'stack', 'topk', 'unfold', 'where', 'zero_', 'zeros'),
        'zeros_like',
    )
)
_aten = torch.ops.aten


def _batch_norm(x: Tensor, *args: Any, **kwargs: Any) -> int:
    return 2 * x.numel()  # with running statistics: one factor and one term a channel


def _real_transforms(points: int, size: int) -> int:
    return round(2.5 * points * math.log2(size))  # half of a complex one's 5 n log₂ n


def _to_frequencies(x: Tensor, dims: Sequence[int], *_: Any) -> int:
    return _real_transforms(x.numel(), math.prod(x.shape[dim] for dim in dims))


def _from_frequencies(x: Tensor, dims: Sequence[int], _: int, last: int) -> int:
    others = math.prod(x.shape[dim] for dim in dims[:-1])
    return _real_transforms(x.numel() // x.shape[dims[-1]] * last, others * last)


def _own_statistics(x: Tensor, weight: Tensor | None) -> int:
    # Mean, centring, square, sum and factor of each element; scale and shift are two more.
    return x.numel() * (5 if weight is None else 7)


_FORMULAS: dict[Any, Callable[..., int]] = {
    _aten.native_batch_norm: _batch_norm,
    _aten._native_batch_norm_legit_no_training: _batch_norm,
    _aten.cudnn_batch_norm: _batch_norm,
    _aten._fft_r2c: _to_frequencies,
    _aten._fft_c2r: _from_frequencies,
    _aten.native_layer_norm: lambda x, _, weight, *__: _own_statistics(x, weight),
    _aten.native_group_norm: lambda x, weight, *_: _own_statistics(x, weight),
    # What a CPU runs; torch has formulas for the kernels of other devices.
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
}


@dataclass
class Count:
    """One forward pass on one image.

    Attributes:
        shape (tuple[int, int]): (H, W) in pixels, as the network gets them.
        device (str): Type of the device of the images.
        parts (dict[str, int]): Operations by part, in the order in which they begin.
        tokens (int): Sequence length L of the Vim backbone; 0 without one.
        paper_scan_macs (int): The paper's cost of its scans, 3M(2D)N + M(2D)N for each direction.
            Its unit is the MAC: the formula beside it, 4MD² + 2M²D for attention, is one only so.
        uncounted (dict[str, int]): Floating-point results of the operators without a formula, by
            name.
        invisible (list[str]): Layers of mmcv whose kernels torch's dispatcher does not see.
        regions (dict[str, int]): Boxes and masks that stood in for what a first stage would
            propose; empty where none did.
    """

    shape: tuple[int, int]
    device: str
    parts: dict[str, int]
    tokens: int
    paper_scan_macs: int
    uncounted: dict[str, int]
    invisible: list[str]
    regions: dict[str, int]

    @property
    def total(self) -> int:
        """All operations."""
        return sum(self.parts.values())


class _Counter(TorchDispatchMode):
    """Counts operators for the modules that run them.

    Args:
        model (nn.Module): The model, whose modules are followed until ``stack`` is left.
        stack (ExitStack): Takes the hooks away again.
    """

    def __init__(self, model: nn.Module, stack: ExitStack) -> None:
        super().__init__()
        self.backbones = _backbone_paths(model)
        self.running = ['']  # names of modules, the innermost last
        self.muted = False  # inside a layer that is counted as a whole
        self.parts: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self.invisible: set[str] = set()
        self.tokens = self.paper_scan_macs = 0
        for name, module in model.named_modules():
            enter = module.register_forward_pre_hook(partial(self._enter, name))
            stack.callback(enter.remove)
            stack.callback(module.register_forward_hook(self._leave).remove)

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.running.append(name)
        kind = type(module)
        if isinstance(module, nn.RMSNorm):  # several operators, not the same everywhere
            self.parts[_part(name, self.backbones, 'norm')] += 4 * args[0].numel()
            self.muted = True
        elif isinstance(module, VimMixer):
            self.tokens = max(self.tokens, args[0].shape[1])
            ways = 1 if module.direction == 'none' else 2
            self.paper_scan_macs += ways * 4 * args[0].shape[1] * module.inner_dims * module.d_state
        elif kind.__module__.startswith('mmcv.ops'):
            # The one named here has a pure-torch path, which runs where there is no GPU.
            self.invisible |= {kind.__name__} - {'MultiScaleDeformableAttention'}

    def _leave(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        self.running.pop()
        self.muted = self.muted and not isinstance(module, nn.RMSNorm)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = getattr(func, '_overloadpacket', None)
        if self.muted or packet is None:
            return out
        part = _part(self.running[-1], self.backbones, str(packet))
        if packet in _FORMULAS:
            self.parts[part] += _FORMULAS[packet](*args, **kwargs)
        elif packet in flop_registry:
            self.parts[part] += flop_registry[packet](*args, **kwargs, out_val=out)
            if part == _SCAN and str(packet).endswith('bidirectional_selective_scan'):
                (batch, length, channels), rank = args[0].shape, args[4].shape[1]
                steps = 2 * projection_flops(batch, length, rank, channels)
                self.parts[_SCAN] -= steps
                self.parts[_PROJECTIONS] += steps
        elif _computes(func):
            outs = out if isinstance(out, tuple | list) else (out,)
            tensors = [x for x in outs if isinstance(x, Tensor)]
            floats = [x for x in tensors if x.is_floating_point() or x.is_complex()]
            self.uncounted[str(packet).removeprefix('aten.').rstrip('_')] += sum(
                x.numel() for x in floats
            )
        return out


def _computes(func: Any) -> bool:
    """Whether an operator makes new numbers: it is neither a view nor a copy."""
    schema = func._schema
    views = any(x.alias_info is not None and not x.alias_info.is_write for x in schema.returns)
    return not views and schema.name.partition('::')[2] not in _MOVES


def count_flops(model: nn.Module, images: Tensor) -> Count:
    """Count one forward pass.

    Args:
        model (nn.Module): Of any OpenMMLab library, or one that takes bare images; in evaluation
            mode.
        images (Tensor): (B, C, H, W), on the device of the model. On meta tensors nothing is
            computed, and regions stand in for what a first stage would propose.
    """
    regions = region_heads(model) if images.is_meta else []
    with ExitStack() as stack:
        counter = _Counter(model, stack)
        stack.enter_context(torch.no_grad())
        stack.enter_context(through_operators())
        stack.enter_context(counter)
        run_on_regions(model, images, regions) if regions else image_forward(model, images)
    replaced = {type(layer).__name__ for region in regions for layer in region.extractor.roi_layers}
    return Count(
        shape=(images.shape[2], images.shape[3]),
        device=images.device.type,
        parts={part: number for part, number in counter.parts.items() if number},
        tokens=counter.tokens,
        paper_scan_macs=counter.paper_scan_macs,
        uncounted={name: number for name, number in counter.uncounted.most_common() if number},
        invisible=sorted(counter.invisible | replaced),
        regions={region.kind: region.number for region in regions},
    )


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters by part, a shared one once; in the order of the model."""
    found: Counter[str] = Counter()
    backbones = _backbone_paths(model)
    for name, parameter in model.named_parameters():
        found[_part(name, backbones)] += parameter.numel()
    return dict(found)


def _backbone_paths(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, BaseBackbone)]


def _part(name: str, backbones: Sequence[str], operator: str = '') -> str:
    """The part of a parameter, or of an operator in a module, by names."""
    path = next((path for path in backbones if f'{name}.'.startswith(f'{path}.')), None)
    if path is None:
        parts = name.split('.')
        # Several heads, told apart: 'roi_head.bbox_head', 'roi_head.mask_head'.
        return '.'.join(parts[: 2 if parts[0] == 'roi_head' else 1]) or 'other'
    inside = name.removeprefix(path).lstrip('.')
    tokens = not operator and not inside.startswith(('layers.', 'norm', 'tap_norms'))
    if tokens or inside.startswith('patch_embed'):
        return _PATCHES
    return next((_WORDS[w] for w in _WORDS if w in f'{inside} {operator}'), _PROJECTIONS)
