"""Refuse a ``--cfg-options`` key that exists nowhere, and name the nearest one that does."""

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import (
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    LogProcessor,
    Runner,
    TestLoop,
    ValLoop,
)
from torch.utils.data import DataLoader

from mmvim.cli.registered_types import accepted_arguments, resolve
from mmvim.errors import UserError

# Root keys that are read from the config beside the runner's own parameters.
_READ_BESIDE = {
    'runner_type', 'strategy', 'tta_model', 'tta_pipeline', 'model_wrapper_cfg', 'compile',
    'sync_bn', 'find_unused_parameters', 'activation_checkpointing', 'efficient_conv_bn_eval',
}  # fmt: skip
# Keys that builders take out of a dict before its type sees the rest: mmengine's of any dict, of a
# hook and of a scheduler, mmcv's of a norm layer, mmengine's of an optimizer wrapper.
_READ_BY_BUILDERS = {
    'type', '_scope_', 'priority', 'convert_to_iter_based', 'requires_grad', 'constructor',
    'paramwise_cfg',
}  # fmt: skip
_DEFAULT_HOOKS = {
    'runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint',
}  # fmt: skip
_PARAMWISE = {
    'lr_mult', 'decay_mult', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult',
    'flat_decay_mult', 'dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate',
    'custom_keys',
}  # fmt: skip
_FREE = {'custom_keys', 'metainfo', 'dist_cfg', 'compile', 'env'}
_DELETE = '_delete_'


def root_keys() -> set[str]:
    """Root keys of a config that something reads."""
    parameters = set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}
    return parameters | _READ_BESIDE


def check_option_keys(cfg: Config, options: Mapping[str, Any]) -> None:
    """Check every dotted key of ``options`` against the config and what its types accept.

    A key the config has is fine. One it lacks is fine if it hangs under the root and something
    reads it, or under a dict whose ``type`` accepts it as an argument; deeper parts are then free.

    Args:
        cfg: The config before the options are merged; its default scope must be entered.
        options: Values by dotted key; list entries by number (``param_scheduler.0.end``).

    Raises:
        UserError: Names the key, where it fails and the nearest valid keys.
    """
    for key in options:
        _check(cfg, key, options)


def unread_variables(cfg: Config, options: Iterable[str]) -> dict[str, list[str]]:
    """Options that set a root variable of the file which nothing reads after the file has run.

    Returns:
        By key, the keys of the same name deeper in the config (at most 4).
    """
    read = root_keys()
    unread: dict[str, list[str]] = {}
    for key in options:
        first = key.split('.')[0]
        if first in cfg and first not in read:
            deeper = [path for path in _paths(cfg) if path.split('.')[0] in read]
            unread[key] = [path for path in deeper if path.split('.')[-1] == first][:4]
    return unread


def _check(cfg: Config, key: str, options: Mapping[str, Any]) -> None:
    node: Any = cfg
    parts = key.split('.')
    for depth, part in enumerate(parts):
        parent = '.'.join(parts[:depth])
        if part == _DELETE:
            return
        if isinstance(node, (list, tuple)):
            if not part.isdigit() or int(part) >= len(node):
                valid = f'an index from 0 to {len(node) - 1}' if node else 'nothing, it is empty'
                raise UserError(
                    f'--cfg-options {key}: {parent!r} is a list of {len(node)} and takes {valid}, '
                    f'not {part!r}'
                )
            node = node[int(part)]
        elif not isinstance(node, (dict, Config)):
            raise UserError(
                f'--cfg-options {key}: {parent!r} is {node!r} in the config, which has no keys; '
                f'set it as a whole, or add {parent}.{_DELETE}=True to replace it'
            )
        else:
            replaced = bool(options.get(f'{parent}.{_DELETE}')) and depth > 0
            if part in node and not replaced:
                node = node[part]
                continue
            accepted = _accepted(cfg, parts[:depth], node, options, replaced)
            if accepted is not None and part not in accepted:
                _refuse(cfg, key, parts, depth, set() if replaced else set(node), accepted)
            return


def _accepted(
    cfg: Config, path: list[str], node: Any, options: Mapping[str, Any], replaced: bool
) -> set[str] | None:
    """Keys that may be added to the dict at ``path``; None where any may."""
    if not path:
        return root_keys()
    parent = '.'.join(path)
    type_ = options.get(f'{parent}.type', None if replaced else node.get('type'))
    if type_ is not None:
        found = resolve(type_)
        names = set().union(*(accepted_arguments(target) for target in found))
        return names | _READ_BY_BUILDERS if found else None  # building will name the bad type
    if path[-1] in _FREE:
        return None
    return _untyped(cfg, path, options)


def _untyped(cfg: Config, path: list[str], options: Mapping[str, Any]) -> set[str] | None:
    """What the dicts that mmengine reads without a ``type`` can hold."""
    parent = '.'.join(path)
    if parent.endswith('_dataloader') and len(path) == 1:
        return accepted_arguments(DataLoader) | {'num_batch_per_epoch'}
    if path[0] == 'default_hooks' and len(path) == 1:
        typed = {k.split('.')[1] for k in options if k.startswith(f'{parent}.') and '.type' in k}
        return _DEFAULT_HOOKS | typed
    if path[-1] == 'paramwise_cfg':
        constructor = cfg.get('.'.join(path[:-1]), {}).get('constructor') if len(path) == 2 else 1
        return _PARAMWISE if constructor in (None, 'DefaultOptimWrapperConstructor') else None
    loops = accepted_arguments(EpochBasedTrainLoop) | accepted_arguments(IterBasedTrainLoop)
    known = {
        'train_cfg': loops | {'by_epoch', 'type'},
        'val_cfg': accepted_arguments(ValLoop) | {'type'},
        'test_cfg': accepted_arguments(TestLoop) | {'type'},
        'randomness': accepted_arguments(Runner.set_randomness),
        'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
        'env_cfg.mp_cfg': {'mp_start_method', 'opencv_num_threads'},
        'auto_scale_lr': {'base_batch_size', 'enable'},
        'log_processor': accepted_arguments(LogProcessor) | {'type'},
        'optim_wrapper': accepted_arguments(OptimWrapper) | _READ_BY_BUILDERS,
    }
    return known.get(parent, {'type'})


def _refuse(
    cfg: Config, key: str, parts: list[str], depth: int, present: set[str], accepted: set[str]
) -> NoReturn:
    parent = '.'.join(parts[:depth])
    here = sorted((present | accepted) - {'self', 'params', '_scope_'})
    like = [
        '.'.join([*parts[:depth], name, *parts[depth + 1 :]])
        for name in difflib.get_close_matches(parts[depth], here, n=2)
    ]
    if not like:
        paths = list(_paths(cfg))
        same_name = [path for path in paths if path.split('.')[-1] == parts[-1]]
        like = difflib.get_close_matches(key, same_name or paths, n=3, cutoff=0.3)
    where = f'{parent!r}' if parent else 'the root of the config'
    advice = f'did you mean {" or ".join(like)}?' if like else f'it has {", ".join(here[:12])}'
    raise UserError(
        f'--cfg-options {key}: there is no {parts[depth]!r} under {where}, and nothing there would '
        f'read it; {advice}'
    )


def _paths(node: Any, prefix: str = '') -> Iterator[str]:
    """Dotted keys of everything in a config, dicts and list entries included."""
    entries: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, (dict, Config)):
        entries = node.items()
    elif isinstance(node, (list, tuple)):
        entries = enumerate(node)
    for name, value in entries:
        path = f'{prefix}.{name}' if prefix else str(name)
        if isinstance(name, str):
            yield path
        yield from _paths(value, path)
