"""Refuse a ``--cfg-options`` key that exists nowhere, and name the nearest one that does."""

import difflib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
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
# Keys that builders take out of a dict before its type sees the rest: mmengine's of any dict, of a
# hook and of a scheduler, mmcv's of a norm layer, mmengine's of an optimizer wrapper.
_READ_BY_BUILDERS = {
    'type', '_scope_', 'priority', 'convert_to_iter_based', 'requires_grad', 'constructor',
    'paramwise_cfg',
}  # fmt: skip
# What reads a dict that needs no type: names, and callables whose arguments count.
_READERS: dict[str, tuple[Any, ...]] = {
    '': (
        Runner, 'runner_type', 'strategy', 'tta_model', 'tta_pipeline', 'model_wrapper_cfg',
        'compile', 'sync_bn', 'find_unused_parameters', 'activation_checkpointing',
        'efficient_conv_bn_eval',
    ),
    'train_dataloader': (DataLoader, 'num_batch_per_epoch'),
    'val_dataloader': (DataLoader, 'num_batch_per_epoch'),
    'test_dataloader': (DataLoader, 'num_batch_per_epoch'),
    'train_cfg': (EpochBasedTrainLoop, IterBasedTrainLoop, 'by_epoch'),
    'val_cfg': (ValLoop,),
    'test_cfg': (TestLoop,),
    'randomness': (Runner.set_randomness,),
    'env_cfg': ('cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'),
    'env_cfg.mp_cfg': ('mp_start_method', 'opencv_num_threads'),
    'auto_scale_lr': ('base_batch_size', 'enable'),
    'log_processor': (LogProcessor,),
    'optim_wrapper': (OptimWrapper,),
    'optim_wrapper.paramwise_cfg': (
        'lr_mult', 'decay_mult', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult',
        'flat_decay_mult', 'dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate',
        'custom_keys',
    ),
    'default_hooks': (
        'runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint',
    ),
}  # fmt: skip
_FREE = ('custom_keys', 'metainfo', 'dist_cfg', 'compile', 'env')


def check_option_keys(cfg: Config, merged: Config, options: Mapping[str, Any]) -> None:
    """Check every key that ``options`` set, those inside of their values too.

    A key that the config has already is fine, and so is one that something reads: the ``type`` of
    the dict around it or, where there is none, mmengine. A new dict without a type is free. A new
    type has to take what stays beside it.

    Args:
        cfg (Config): Before the options were merged; its default scope must be entered.
        merged (Config): The same with them.
        options (Mapping): Values by dotted key; list entries by number (``param_scheduler.0.end``).

    Raises:
        UserError: Names the key, where it fails and the nearest valid keys.
    """
    for key in _paths(options):
        old: Any = cfg
        new: Any = merged
        parts = [part for part in key.split('.') if part != '_delete_']
        for depth, part in enumerate(parts):
            if isinstance(new, (list, tuple)):
                number = int(part)
                old = old[number] if isinstance(old, (list, tuple)) and number < len(old) else None
                new = new[number]
                continue
            if not isinstance(new, (dict, Config)):  # another option set the whole
                break
            known = isinstance(old, (dict, Config)) and old.get('type') == new.get('type')
            if not (known and part in old):
                accepted = _accepted(merged, '.'.join(parts[:depth]), new, known)
                if accepted is not None and part not in accepted:
                    present = set(old) if known else set()
                    raise UserError(_refusal(cfg, parts, depth, sorted(present | accepted)))
            old, new = old.get(part) if known else None, new.get(part)
    for key in _paths(options):
        if key.endswith('.type'):
            _check_left_over(cfg, merged, key.removesuffix('.type'))


def _check_left_over(cfg: Config, merged: Config, where: str) -> None:
    """Refuse arguments of the old type beside a new one that does not have them."""
    old, new = _at(cfg, where), _at(merged, where)
    if not isinstance(old, dict) or not isinstance(new, dict) or old.get('type') == new['type']:
        return
    accepted = _accepted(merged, where, new, True)
    if accepted is None:
        return
    left = [name for name in new if name in old and name not in accepted]
    if left:
        raise UserError(
            f'--cfg-options {where}.type={new["type"]}: {where} keeps {", ".join(left)}, which '
            f'{new["type"]} does not have; {where}._delete_=True beside it drops what the config '
            'has there'
        )


def _at(node: Any, where: str) -> Any:
    """What a dotted key stands for; None where there is nothing."""
    for part in where.split('.'):
        try:
            node = node[int(part) if isinstance(node, (list, tuple)) else part]
        except (KeyError, IndexError, TypeError):
            return None
    return node


def warn_of_variables(cfg: Config, options: Iterable[str]) -> None:
    """Say of options that set a variable of the file that nothing reads it once the file has run.

    At most 4 keys of the same name deeper in the config are named with each.
    """
    read = _read_by(_READERS[''])
    for key in options:
        name = key.split('.')[0]
        if name in cfg and name not in read:
            deeper = [path for path in _paths(cfg) if path.endswith(f'.{name}')]
            instead = ' and '.join([path for path in deeper if path.split('.')[0] in read][:4])
            print(
                f'warning: {key!r} is a variable of the config file that nothing reads once the '
                'file has run, so setting it by --cfg-options has no effect'
                + (f'; to change what is read, set {instead}' if instead else ''),
                file=sys.stderr,
            )


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


def _read_by(readers: Iterable[Any]) -> set[str]:
    names = {reader for reader in readers if isinstance(reader, str)}
    return names | accepted_arguments(*(r for r in readers if not isinstance(r, str))) - {'cfg'}


def _accepted(cfg: Config, parent: str, node: Any, known: bool) -> set[str] | None:
    """Keys that may be added to the dict at ``parent``; None where any may."""
    if parent and node.get('type') is not None:
        found = resolve(node['type'])  # an unknown type is left to the check of types
        return accepted_arguments(*found) | _READ_BY_BUILDERS if found else None
    if parent.endswith('paramwise_cfg') and cfg.optim_wrapper.get('constructor') is not None:
        return None
    if parent.rpartition('.')[2] in _FREE or not (known or parent in _READERS):
        return None
    names = _read_by(_READERS.get(parent, ()))
    if parent == 'default_hooks':  # a hook of one's own, given with its type
        names |= {name for name, hook in node.items() if hook and hook.get('type')}
    return names | (_READ_BY_BUILDERS if parent else set())


def _refusal(cfg: Config, parts: list[str], depth: int, here: list[str]) -> str:
    key = '.'.join(parts)
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
