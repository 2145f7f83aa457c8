"""Operations and parameters of a model, by part.

torch's ``FlopCounterMode`` counts what is dispatched: matrix products and convolutions by its own
formulas, our operators by those of :mod:`mmvim_ops.flops`, normalisations by those below. An
operation is one addition, multiplication or exponential; a multiply-accumulate is two.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from mmvim.analysis.image_forward import ImageForward
from mmvim.models import VisionMamba
from mmvim_ops.flops import projection_flops, through_operators

PATCHES, PROJECTIONS, CONVOLUTION, SCAN, NORM, OTHER = (
    'patch embedding',
    'blocks: projections',
    'blocks: convolution',
    'blocks: scan',
    'norms',
    'other',
)
_RMS_NORM = 'rms_norm'
# Several heads, told apart: 'roi_head.bbox_head', 'roi_head.mask_head'.
_REGIONS = 'roi_head'
# Mean, centring, square, sum and factor of each element; scale and shift are two more.
_STATISTICS, _AFFINE = 5, 2
_aten, _mmvim = torch.ops.aten, torch.ops.mmvim
_TWO_WAY_SCANS = (_mmvim.bidirectional_selective_scan, _mmvim.chunked_bidirectional_selective_scan)
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


def _batch_norm(x: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(x)  # with running statistics: one factor and one term a channel


def _layer_norm(x: Any, normalised: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    return math.prod(x) * (_STATISTICS + _AFFINE * (weight is not None))


_FORMULAS = {
    _aten.native_batch_norm: _batch_norm,
    _aten._native_batch_norm_legit_no_training: _batch_norm,
    _aten.cudnn_batch_norm: _batch_norm,
    _aten.native_layer_norm: _layer_norm,
    _aten.native_group_norm: lambda x, weight, *_, **__: _layer_norm(x, None, weight),
    # What a CPU runs; torch has formulas for the kernels of other devices.
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q, k, v
    ),
}


@dataclass
class Count:
    """One forward pass on one image.

    Attributes:
        shape (tuple[int, int]): (H, W) in pixels, as the network gets them.
        device (str): Type of the device of the images.
        flops (dict[str, int]): Operations by part, in the order of the model.
        tokens (int): Sequence length L of the Vim backbone; 0 without one.
        uncounted (dict[str, int]): Floating-point results of the operators without a formula, by
            name.
        invisible (list[str]): Layers of mmcv whose kernels torch's dispatcher does not see.
    """

    shape: tuple[int, int]
    device: str
    flops: dict[str, int]
    tokens: int
    uncounted: dict[str, int]
    invisible: list[str]

    @property
    def total(self) -> int:
        """All operations."""
        return sum(self.flops.values())


class _Seen(TorchDispatchMode):
    """Adds up the results of floating-point operators that ``counter`` has no formula for."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter
        self.results: Counter[str] = Counter()
        self.muted = False  # inside a layer that is counted as a whole

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = getattr(func, '_overloadpacket', None)
        if self.muted or packet in self.counter.flop_registry or not _computes(func):
            return out
        outs = out if isinstance(out, tuple | list) else (out,)
        numbers = sum(x.numel() for x in outs if isinstance(x, Tensor) and x.is_floating_point())
        if numbers:
            space, _, name = func._schema.name.partition('::')
            name = name.rstrip('_')
            self.results[name if space == 'aten' else f'{space}.{name}'] += numbers
        return out


def _computes(func: Any) -> bool:
    """Whether an operator makes new numbers: it is neither a view nor a copy."""
    schema = func._schema
    views = any(x.alias_info is not None and not x.alias_info.is_write for x in schema.returns)
    return not views and schema.name.partition('::')[2] not in _MOVES


class _Counter(FlopCounterMode):
    """torch's counter with normalisations, and with the projections inside our scan apart."""

    def __init__(self) -> None:
        scans = dict.fromkeys(_TWO_WAY_SCANS, self._scan)
        super().__init__(display=False, custom_mapping={**_FORMULAS, **scans})
        self.step_projections = 0

    def _scan(self, *args: Any, **kwargs: Any) -> int:
        (batch, length, channels), rank = args[0], args[4][1]
        self.step_projections += 2 * projection_flops(batch, length, rank, channels)
        return int(flop_registry[_TWO_WAY_SCANS[0]](*args))

    def add(self, name: str, flops: int) -> None:
        """Count for all modules that run at the moment."""
        for module in self.mod_tracker.parents:
            self.flop_counts[module][name] += flops

    def under(self, module: str) -> Counter[Any]:
        """Operations by operator in a module and those below; ``module`` as the tracker names it.

        A module whose ``forward`` was called past its hooks is the sum of those below.
        """
        counts = self.get_flop_counts()
        names = [name for name in counts if f'{name}.'.startswith(f'{module}.')]
        tops = [name for name in names if not any(name.startswith(f'{top}.') for top in names)]
        total: Counter[Any] = Counter()
        for top in tops:
            total.update(counts[top])
        return total


def count_flops(model: nn.Module, images: Tensor) -> Count:
    """Count one forward pass.

    Args:
        model (nn.Module): Of any OpenMMLab library, in evaluation mode and without gradients:
            with them torch's counter follows more than the forward pass.
        images (Tensor): (B, C, H, W), on the device of the model. On meta tensors nothing is
            computed, and regions stand in for what a first stage would propose.
    """
    forward = ImageForward(model, proposals=images.is_meta)
    counter = _Counter()
    seen = _Seen(counter)
    invisible: set[str] = set()
    tokens: list[int] = []

    def enter_norm(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.muted = True
        counter.add(_RMS_NORM, 4 * args[0].numel())

    def leave_norm(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        seen.muted = False

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        invisible.add(type(module).__name__)

    def note_tokens(module: nn.Module, args: tuple[Any, ...]) -> None:
        tokens.append(args[0].shape[1])

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.RMSNorm):
                stack.callback(module.register_forward_pre_hook(enter_norm).remove)
                stack.callback(module.register_forward_hook(leave_norm).remove)
            elif _is_opaque(module):
                stack.callback(module.register_forward_pre_hook(note).remove)
            elif isinstance(module, VisionMamba):
                stack.callback(module.layers[0].register_forward_pre_hook(note_tokens).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(through_operators())
        stack.enter_context(seen)
        stack.enter_context(counter)
        forward(images)
    return Count(
        shape=(images.shape[2], images.shape[3]),
        device=images.device.type,
        flops=_by_part(counter, model),
        tokens=max(tokens, default=0),
        uncounted=dict(seen.results.most_common()),
        invisible=sorted({*invisible, *(forward.replaced() if forward.proposals else ())}),
    )


def paper_scan_macs(model: nn.Module, tokens: int) -> int | None:
    """The paper's cost of an SSM, 3M(2D)N + M(2D)N, over all blocks and directions.

    Its unit is the MAC: the formula beside it, 4MD² + 2M²D for attention, is one only so.

    Args:
        model (nn.Module): With any number of Vim backbones.
        tokens (int): Sequence length M.

    Returns:
        int | None: None without a Vim backbone.
    """
    mixers: list[Any] = [
        block.mixer
        for backbone in model.modules()
        if isinstance(backbone, VisionMamba)
        for block in backbone.layers[: max(backbone.out_indices) + 1]
    ]
    cost = sum(
        4 * tokens * mixer.inner_dims * mixer.d_state * (1 if mixer.direction == 'none' else 2)
        for mixer in mixers
    )
    return cost if mixers else None


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters by part, a shared one once; in the order of the model."""
    vim = _vim_paths(model)
    found: dict[str, int] = dict.fromkeys(_labels(model, vim), 0)
    for name, parameter in model.named_parameters():
        label = _part_of_parameter(name, vim)
        found[label] = found.get(label, 0) + parameter.numel()
    return {label: number for label, number in found.items() if number}


def _is_opaque(module: nn.Module) -> bool:
    kind = type(module)
    # This one has a pure-torch path, which is what runs here.
    visible = kind.__name__ == 'MultiScaleDeformableAttention'
    return kind.__module__.startswith('mmcv.ops') and not visible


def _vim_paths(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, VisionMamba)]


def _owner(name: str) -> str:
    """The part outside a Vim backbone that a module or parameter belongs to, from its name."""
    parts = name.split('.')
    return '.'.join(parts[: 2 if parts[0] == _REGIONS else 1])


def _labels(model: nn.Module, vim: list[str]) -> list[str]:
    """All parts a model can have."""
    labels = []
    for name, _ in model.named_modules():
        if name in vim:
            labels += [PATCHES, PROJECTIONS, CONVOLUTION, SCAN, NORM]
        elif name and not any(f'{name}.'.startswith(f'{path}.') for path in vim):
            labels.append(_owner(name))
    return [*(label for label in dict.fromkeys(labels) if label != _REGIONS), OTHER]


def _part_of_parameter(name: str, vim: list[str]) -> str:
    path = next((path for path in vim if name.startswith(f'{path}.')), None)
    if path is None:
        return _owner(name)
    inside = name[len(path) + 1 :]
    if not inside.startswith('layers.'):
        return NORM if inside.startswith(('norm_f', 'tap_norms')) else PATCHES
    own = inside.split('.')[2:]  # of a block: ('mixer', 'in_proj', 'weight')
    if own[0] != 'mixer':
        return NORM
    if own[1].startswith('conv1d'):
        return CONVOLUTION
    return SCAN if own[1] in ('A_log', 'A_b_log', 'D', 'D_b') else PROJECTIONS


def _part_of_operator(operator: Any) -> str:
    """The part of a Vim backbone, patch embedding apart, that an operator belongs to."""
    name = str(operator).partition('.')[2] if '.' in str(operator) else str(operator)
    if 'scan' in name:
        return SCAN
    if 'conv1d_silu' in name:
        return CONVOLUTION
    return NORM if 'norm' in name else PROJECTIONS


def _by_part(counter: _Counter, model: nn.Module) -> dict[str, int]:
    root = f'{ImageForward.__name__}.model'  # what the tracker calls it
    vim = _vim_paths(model)
    labels = _labels(model, vim)
    found: Counter[str] = Counter()
    inside: Counter[str] = Counter()  # of Vim backbones, by the part they lie in
    for path in vim:
        operators = counter.under(f'{root}.{path}')
        patches = counter.under(f'{root}.{path}.patch_embed')
        found[PATCHES] += patches.total()
        inside[_owner(path)] += operators.total()
        for operator, flops in (operators - patches).items():
            found[_part_of_operator(operator)] += flops
    if vim:
        found[SCAN] -= counter.step_projections
        found[PROJECTIONS] += counter.step_projections
    for label in labels:
        if label not in found and label != OTHER:
            found[label] = counter.under(f'{root}.{label}').total() - inside[label]
    found[OTHER] = counter.get_total_flops() - found.total()
    return {label: found[label] for label in labels if found[label]}
