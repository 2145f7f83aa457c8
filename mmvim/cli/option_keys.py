"""Refuse a ``--cfg-options`` key that exists nowhere, and name the nearest one that does."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope, Registry, root
from mmengine.runner import (
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    LogProcessor,
    Runner,
    TestLoop,
    ValLoop,
)
from torch.utils.data import DataLoader

from mmvim.errors import UserError

ROOT_REGISTRIES = [entry for entry in vars(root).values() if isinstance(entry, Registry)]
# Root keys that are read beside the runner's own parameters.
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
# What reads a dict that needs no type: names, and callables whose arguments count.
_UNTYPED: dict[str, tuple[str | Callable[..., Any], ...]] = {
    **{f'{split}_dataloader': (DataLoader, 'num_batch_per_epoch')
       for split in ('train', 'val', 'test')},
    'train_cfg': (EpochBasedTrainLoop, IterBasedTrainLoop, 'by_epoch', 'type'),
    'val_cfg': (ValLoop, 'type'),
    'test_cfg': (TestLoop, 'type'),
    'randomness': (Runner.set_randomness,),
    'env_cfg': ('cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'),
    'env_cfg.mp_cfg': ('mp_start_method', 'opencv_num_threads'),
    'auto_scale_lr': ('base_batch_size', 'enable'),
    'log_processor': (LogProcessor, 'type'),
    'optim_wrapper': (OptimWrapper, *_READ_BY_BUILDERS),
    'default_hooks': (
        'runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint',
    ),
    'optim_wrapper.paramwise_cfg': (
        'lr_mult', 'decay_mult', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult',
        'flat_decay_mult', 'dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate',
        'custom_keys',
    ),
}  # fmt: skip
_FREE = {'custom_keys', 'metainfo', 'dist_cfg', 'compile', 'env'}
_DELETE = '_delete_'


def check_option_keys(cfg: Config, options: Mapping[str, Any]) -> None:
    """Check every dotted key of ``options`` against the config and what its types accept.

    A key the config has is fine. One it lacks is fine if it hangs under the root and something
    reads it, or under a dict whose ``type`` accepts it as an argument; deeper parts are then free.

    Args:
        cfg (Config): Before the options are merged; its default scope must be entered.
        options (Mapping): Values by dotted key; list entries by number (``param_scheduler.0.end``).

    Raises:
        UserError: Names the key, where it fails and the nearest valid keys.
    """
    for key in options:
        node: Any = cfg
        parts = key.split('.')
        for depth, part in enumerate(parts):
            parent = '.'.join(parts[:depth])
            replaced = depth > 0 and bool(options.get(f'{parent}.{_DELETE}'))
            if part == _DELETE:
                break
            if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            elif isinstance(node, (list, tuple)):
                raise UserError(
                    f'--cfg-options {key}: {parent!r} is a list of {len(node)} and takes an '
                    f'index below that, not {part!r}'
                )
            elif not isinstance(node, (dict, Config)):
                raise UserError(
                    f'--cfg-options {key}: {parent!r} is {node!r} in the config, which has no '
                    f'keys; set it as a whole, or add {parent}.{_DELETE}=True to replace it'
                )
            elif part in node and not replaced:
                node = node[part]
            else:
                accepted = _accepted(cfg, parts[:depth], node, options, replaced)
                if accepted is not None and part not in accepted:
                    present = set() if replaced else set(node)
                    raise UserError(_refusal(cfg, key, depth, sorted(present | accepted)))
                break


def unread_variables(cfg: Config, options: Iterable[str]) -> dict[str, list[str]]:
    """Options that set a variable of the file which nothing reads once it has run.

    With each, at most 4 keys of the same name deeper in the config.
    """
    read = _root_keys()
    unread: dict[str, list[str]] = {}
    for key in options:
        first = key.split('.')[0]
        if first in cfg and first not in read:
            deeper = [path for path in _paths(cfg) if path.split('.')[0] in read]
            unread[key] = [path for path in deeper if path.split('.')[-1] == first][:4]
    return unread


def resolve(type_: object) -> list[object]:
    """All classes and functions that a config's ``type`` can mean in the current default scope."""
    if callable(type_):
        return [type_]
    if not isinstance(type_, str):
        return []
    scope = DefaultScope.get_current_instance()
    name = '' if scope is None else scope.scope_name
    found: list[object] = []
    for registry in ROOT_REGISTRIES:
        try:
            entry = registry.children.get(name, registry).get(type_)
        except RuntimeError:  # how mmengine says that the name is no dotted path either
            continue
        if entry is not None and entry not in found:
            found.append(entry)
    return found


def accepted_arguments(*targets: Any) -> set[str]:
    """Names of the arguments that classes or functions take.

    A class whose constructor ends in ``**kwargs`` passes them on, so the constructors of its
    bases count too, up to the first without ``**kwargs``.
    """
    names: set[str] = set()
    for target in targets:
        bases = inspect.getmro(target) if inspect.isclass(target) else ()
        inits = [vars(base)['__init__'] for base in bases[:-1] if '__init__' in vars(base)]
        for function in inits if bases else [target]:
            try:
                parameters = inspect.signature(function).parameters.values()
            except (TypeError, ValueError):  # builtins without a signature
                continue
            names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return names - {'self'}


def _root_keys() -> set[str]:
    return (accepted_arguments(Runner) - {'cfg'}) | _READ_BESIDE


def _accepted(
    cfg: Config, path: list[str], node: Any, options: Mapping[str, Any], replaced: bool
) -> set[str] | None:
    """Keys that may be added to the dict at ``path``; None where any may."""
    if not path:
        return _root_keys()
    parent = '.'.join(path)
    type_ = options.get(f'{parent}.type', None if replaced else node.get('type'))
    if type_ is not None:
        found = resolve(type_)  # an unknown type is left to the check of types
        return accepted_arguments(*found) | _READ_BY_BUILDERS if found else None
    own_constructor = (cfg.get('optim_wrapper') or {}).get('constructor') is not None
    if path[-1] in _FREE or (path[-1] == 'paramwise_cfg' and own_constructor):
        return None
    readers = _UNTYPED.get(parent, ('type',))
    names = {reader for reader in readers if isinstance(reader, str)}
    names |= accepted_arguments(*(reader for reader in readers if not isinstance(reader, str)))
    if parent == 'default_hooks':  # a hook of one's own, given with its type
        names |= {k.split('.')[1] for k in options if k.startswith(f'{parent}.') and '.type' in k}
    return names


def _refusal(cfg: Config, key: str, depth: int, here: list[str]) -> str:
    parts = key.split('.')
    like = [
        '.'.join([*parts[:depth], name, *parts[depth + 1 :]])
        for name in difflib.get_close_matches(parts[depth], here, n=2)
    ]
    if not like:
        paths = list(_paths(cfg))
        same_name = [path for path in paths if path.split('.')[-1] == parts[-1]]
        like = difflib.get_close_matches(key, same_name or paths, n=3, cutoff=0.3)
    where = repr('.'.join(parts[:depth])) if depth else 'the root of the config'
    advice = f'did you mean {" or ".join(like)}?' if like else f'it has {", ".join(here[:12])}'
    return (
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
