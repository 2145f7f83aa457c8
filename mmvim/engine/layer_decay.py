"""Layer-wise learning-rate decay for any model whose backbone tells the depth of a parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmvim.models.arguments import unknown_name
from mmvim.registry import OPTIM_WRAPPER_CONSTRUCTORS

# Parameter name -> (depth, number of depths).
Depth = Callable[[str], tuple[int, int]]

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_PUBLISHED = ('segmentation', 'detection')
_OPTIONS = (
    'layer_decay_rate',
    'bias_decay_mult',
    'norm_decay_mult',
    'flat_decay_mult',
    'custom_keys',
    'as_published',
)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Gives every parameter the rate ``lr * layer_decay_rate ** (depths - 1 - depth)``.

    Works for any model with ``get_layer_depth(param_name)``, or whose ``backbone`` has
    ``get_layer_depth(param_name, prefix)``, as the backbones of mmpretrain and ours do.
    (Stock constructors know only a few backbones by name.) Parameters of the same depth and
    weight decay share one group; the groups are logged as a table.

    Not decayed unless ``paramwise_cfg`` says otherwise: everything of at most one dimension
    (norms, biases, D, the bias of dt) and what the backbone lists in ``no_weight_decay()``
    (``A_log``, position embedding, class tokens).

    Args:
        optim_wrapper_cfg (dict): Config of the optimiser wrapper, with ``optimizer``.
        paramwise_cfg (dict, optional): May contain

            - ``layer_decay_rate`` (float): Factor per layer of depth. Defaults to 1.
            - ``norm_decay_mult``, ``bias_decay_mult``, ``flat_decay_mult`` (float): Factor of the
              weight decay of norm layers, of biases, of parameters with at most one dimension;
              the first that applies counts. ``flat_decay_mult`` defaults to 0, to 1 with
              ``as_published='detection'``.
            - ``custom_keys`` (dict): Part of a parameter's name to ``decay_mult``, ``lr_mult`` (on
              top of the layer's) or both. A key sets what it names and leaves all else to the
              other rules; where several keys set the same, the longest counts.
            - ``as_published`` (str | bool): Whose published optimiser to reproduce.
              'segmentation': a misspelt name leaves all blocks at the full rate, so that only
              patch and position embedding are slowed down; everything of two or more dimensions
              decays, ``A_log`` and the position embedding too. 'detection': the rates are those
              of False; everything decays, biases, D and the RMSNorms of the blocks too, except
              the position embedding and other norms. Multipliers that are given still come
              first. Defaults to False.

    Raises:
        ValueError: If ``paramwise_cfg`` has an unknown key or a rate out of range.
        TypeError: If the model does not tell the depth of its parameters.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ) -> None:
        # mmengine calls add_params for a non-empty paramwise_cfg alone.
        paramwise_cfg = dict(layer_decay_rate=1.0) | (paramwise_cfg or {})
        if unknown := unknown_name(paramwise_cfg, _OPTIONS):
            raise ValueError(f'paramwise_cfg has no key {unknown}')
        rate = paramwise_cfg['layer_decay_rate']
        if not 0 < rate <= 1:
            raise ValueError(f'layer_decay_rate must lie in (0, 1], got {rate!r}.')
        published = paramwise_cfg.get('as_published', False)
        if published is not False and published not in _PUBLISHED:
            raise ValueError(
                f'as_published must be False or one of {_PUBLISHED}, whose optimisers differ; got '
                f'{published!r}.'
            )
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **_: Any) -> None:
        """Add the parameter groups of a model.

        Args:
            params (list[dict]): The list that the groups are added to.
            module (nn.Module): The model.
            **_ (Any): What mmengine's recursion would pass on; nothing recurses here.
        """
        depth_of = _depth_function(module)
        undecayed = _undecayed(module)
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for name, param, owner in _trainable(module):
            depth, num_depths = depth_of(name)
            if self.paramwise_cfg.get('as_published') == 'segmentation' and depth > 0:
                depth = num_depths - 1
            settings = self._settings(name, param, owner, name in undecayed)
            lr_mult, decay_mult = settings.pop('lr_mult'), settings.pop('decay_mult')
            scale = self.paramwise_cfg['layer_decay_rate'] ** (num_depths - 1 - depth) * lr_mult
            key = (depth, scale, decay_mult, tuple(sorted(settings.items())))
            if key not in groups:
                rates = dict(lr=self.base_lr * scale, lr_scale=scale, layer_id=depth)
                groups[key] = dict(params=[], param_names=[], **rates, **settings)
                if self.base_wd is not None:
                    groups[key]['weight_decay'] = self.base_wd * decay_mult
            groups[key]['params'].append(param)
            groups[key]['param_names'].append(name)
        ordered = [groups[key] for key in sorted(groups, key=lambda key: key[:3])]
        params.extend(ordered)
        MMLogger.get_current_instance().info(f'Parameter groups:\n{_as_table(ordered)}')

    def _settings(
        self, name: str, param: nn.Parameter, owner: nn.Module, undecayed: bool
    ) -> dict[str, Any]:
        """``lr_mult``, ``decay_mult`` and further settings of a parameter."""
        settings = dict(lr_mult=1.0, decay_mult=self._decay_mult(name, param, owner, undecayed))
        custom = self.paramwise_cfg.get('custom_keys') or {}
        for key in sorted(custom, key=lambda key: (len(key), key)):  # the longest comes last
            if key in name:
                settings |= custom[key]
        return settings

    def _decay_mult(
        self, name: str, param: nn.Parameter, owner: nn.Module, undecayed: bool
    ) -> float:
        """Factor of the weight decay where no custom key sets one."""
        cfg = self.paramwise_cfg
        for option, applies in (
            ('norm_decay_mult', isinstance(owner, _NORMS)),
            ('bias_decay_mult', name.endswith('bias')),
            ('flat_decay_mult', param.ndim <= 1),
        ):
            if applies and option in cfg:
                return float(cfg[option])
        published = cfg.get('as_published', False)
        if published == 'detection':
            # That code's list of norms lacks RMSNorm, and its only exception by name is pos_embed.
            kept = isinstance(owner, _NORMS) and not isinstance(owner, nn.RMSNorm)
            kept = kept or name.rpartition('.')[2] in ('pos_embed', 'cls_pos_embed')
        else:
            kept = param.ndim <= 1 or (undecayed and published is False)
        return 0.0 if kept else 1.0


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """Name, parameter and the module that owns it; shared parameters once."""
    seen = set()
    for prefix, module in model.named_modules():
        for name, param in module.named_parameters(recurse=False):
            if param.requires_grad and param not in seen:
                seen.add(param)
                yield f'{prefix}.{name}' if prefix else name, param, module


def _depth_function(model: nn.Module) -> Depth:
    """The function that tells a parameter's depth from its name in the model."""
    if hasattr(model, 'get_layer_depth'):
        return model.get_layer_depth  # type: ignore[return-value]
    backbone = getattr(model, 'backbone', None)
    get_layer_depth = getattr(backbone, 'get_layer_depth', None)
    if get_layer_depth is not None:
        return lambda name: get_layer_depth(name, 'backbone.')
    raise TypeError(
        f'layer-wise decay needs get_layer_depth on the model or its backbone; '
        f'{type(model).__name__} with backbone {type(backbone).__name__} has none: use another '
        'backbone, or the default constructor of the optimiser wrapper.'
    )


def _undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters that modules of the model keep from weight decay."""
    return {
        f'{prefix}.{name}' if prefix else name
        for prefix, module in model.named_modules()
        if hasattr(module, 'no_weight_decay')
        for name in module.no_weight_decay()
    }


def _as_table(groups: list[dict[str, Any]]) -> str:
    row = '{:>5} {:>10} {:>10} {:>12} {:>7}  {}'
    lines = [row.format('layer', 'lr', 'lr scale', 'weight decay', 'tensors', 'first of them')]
    for group in groups:
        rates = (f'{group.get(key, 0.0):.3g}' for key in ('lr', 'lr_scale', 'weight_decay'))
        lines.append(
            row.format(group['layer_id'], *rates, len(group['params']), group['param_names'][0])
        )
    return '\n'.join(lines)
