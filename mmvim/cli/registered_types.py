"""What a ``type`` of a config names, and which arguments it accepts."""

import difflib
import inspect
from collections.abc import Iterator

from mmengine.registry import DefaultScope, Registry, root

_CATCH_ALL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def root_registries() -> list[Registry]:
    """The root registries of mmengine, parents of every library's own."""
    return [entry for entry in vars(root).values() if isinstance(entry, Registry)]


def resolve(type_: object) -> list[object]:
    """Everything a config's ``type`` can mean in the current default scope.

    Args:
        type_: A registered name, a dotted path, or a class or function itself.

    Returns:
        The classes or functions of that name, one per registry that has it; empty if none does.
    """
    if callable(type_):
        return [type_]
    if not isinstance(type_, str):
        return []
    found: list[object] = []
    for registry in root_registries():
        try:
            entry = _of_current_scope(registry).get(type_)
        except RuntimeError:  # how mmengine says that the name is no dotted path either
            continue
        if entry is not None and entry not in found:
            found.append(entry)
    return found


def _of_current_scope(registry: Registry) -> Registry:
    """The child of a root registry for the default scope, the root itself where there is none."""
    scope = DefaultScope.get_current_instance()
    child = None if scope is None else registry.children.get(scope.scope_name)
    return registry if child is None else child


def accepted_arguments(target: object) -> set[str]:
    """Names of the arguments that a class or function takes.

    A class whose constructor ends in ``**kwargs`` passes them on, so the constructors of its
    bases count too, up to the first without ``**kwargs``.
    """
    if not inspect.isclass(target):
        return _named(target)[0] if callable(target) else set()
    names: set[str] = set()
    for base in inspect.getmro(target):
        if base is object or '__init__' not in vars(base):
            continue
        more, passes_on = _named(vars(base)['__init__'])
        names |= more
        if not passes_on:
            break
    return names - {'self'}


def _named(function: object) -> tuple[set[str], bool]:
    """Argument names of a function, and whether it has ``**kwargs``."""
    try:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):  # builtins without a signature
        return set(), True
    names = {p.name for p in parameters if p.kind not in _CATCH_ALL}
    return names, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def names_like(name: str, registry_name: str, scope: str) -> list[str]:
    """At most three registered names close to ``name``, with the scope of their registry.

    Args:
        name: What the config asked for, with or without a scope.
        registry_name: mmengine's name of the registry, e.g. ``'model'``.
        scope: Where it was looked for; names there come first.
    """
    known: dict[str, list[str]] = {}
    for registry in root_registries():
        if registry.name == registry_name:
            for owner, entry in _registered(registry):
                known.setdefault(entry, []).append(owner)
    lower = {entry.lower(): entry for entry in known}
    wanted = name.rpartition('.')[2].lower()
    close = [lower[entry] for entry in difflib.get_close_matches(wanted, lower)]
    return [f'{scope if scope in known[entry] else known[entry][0]}.{entry}' for entry in close]


def _registered(registry: Registry) -> Iterator[tuple[str, str]]:
    """Scope and name of everything in a registry and its children."""
    for name in registry.module_dict:
        yield registry.scope, name
    for child in registry.children.values():
        yield from _registered(child)
