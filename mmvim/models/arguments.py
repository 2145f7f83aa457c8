"""Checks of a model's arguments: functions whose errors name what is valid."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.utils import to_2tuple


class Setting(NamedTuple):
    """What an entry of an architecture may be.

    Attributes:
        valid (Callable[[Any], bool]): Whether a value is.
        wanted (str): What the error asks for.
    """

    valid: Callable[[Any], bool]
    wanted: str

    @classmethod
    def choice(cls, *names: str) -> Setting:
        """One of some names."""
        return cls(lambda value: value in names, f'one of {names}')


def _is_positive(value: Any) -> bool:
    return type(value) is int and value > 0


POSITIVE = Setting(_is_positive, 'a positive int')
FLAG = Setting(lambda value: isinstance(value, bool), 'a bool')
DT_RANK = Setting(lambda value: value == 'auto' or _is_positive(value), "'auto' or a positive int")


def unknown_name(given: Mapping[str, Any], valid: Collection[str]) -> str:
    """The rest of a sentence about the first name that is not valid; '' if all are."""
    for name, value in given.items():
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f'did you mean {near[0]!r}? ' if near else ''
            return f'{name!r} (given {value!r}): {hint}Valid are {", ".join(valid)}.'
    return ''


def check_choice(name: str, value: object, valid: Collection[str]) -> None:
    """Raise ValueError unless ``value`` is one of the valid names."""
    if value not in tuple(valid):  # a list or dict given has no hash
        raise ValueError(f'{name} must be one of {tuple(valid)}, got {value!r}.')


def parse_arch(
    arch: str | dict[str, Any],
    arch_zoo: Mapping[str, dict[str, Any]],
    settings: Mapping[str, Setting],
    essential: Collection[str],
) -> dict[str, Any]:
    """The settings of a named architecture, or a checked copy of a dict of them.

    Args:
        arch (str | dict): What is given.
        arch_zoo (Mapping[str, dict]): The named architectures.
        settings (Mapping[str, Setting]): What a dict may hold.
        essential (Collection[str]): What it must hold.

    Raises:
        TypeError: If ``arch`` is neither.
        ValueError: If the name is unknown, or the dict has missing or unknown keys or bad values.
    """
    if isinstance(arch, str):
        check_choice('arch', arch.lower(), arch_zoo)
        return dict(arch_zoo[arch.lower()])
    if not isinstance(arch, dict):
        raise TypeError(
            f'arch must be one of {tuple(arch_zoo)} or a dict, got {type(arch).__name__}.'
        )
    if missing := [key for key in essential if key not in arch]:
        raise ValueError(f'arch dict: {", ".join(missing)} missing in {arch!r}.')
    if unknown := unknown_name(arch, tuple(settings)):
        raise ValueError(f'arch dict has no key {unknown}')
    for key, value in arch.items():
        if not settings[key].valid(value):
            raise ValueError(f'arch[{key!r}] must be {settings[key].wanted}, got {value!r}.')
    return dict(arch)


def check_rate(name: str, rate: float) -> None:
    """Raise ValueError unless ``rate`` is a probability below 1."""
    if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise ValueError(f'{name} must lie in [0, 1), got {rate!r}.')


def check_positive(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a positive int."""
    if not POSITIVE.valid(value):
        raise ValueError(f'{name} must be {POSITIVE.wanted}, got {value!r}.')


def parse_pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """A height and a width from one positive int or two.

    Raises:
        ValueError: If ``value`` is anything else.
    """
    pair = to_2tuple(value)
    if len(pair) != 2 or not all(type(v) is int and v > 0 for v in pair):
        raise ValueError(f'{name} must be a positive int or two of them (H, W), got {value!r}.')
    return pair[0], pair[1]


def parse_out_indices(
    out_indices: int | Sequence[int], depth: int, units: str = 'blocks'
) -> tuple[int, ...]:
    """Indices of tapped blocks or stages, counted from the first, in the order given.

    Raises:
        ValueError: If these are no ints, one is out of range or named twice, or there is none.
    """
    given = tuple(out_indices) if isinstance(out_indices, Sequence) else (out_indices,)
    n = depth
    if not given or not all(type(i) is int and -n <= i < n for i in given):
        raise ValueError(
            f'out_indices must be one or more ints in {-n} … {n - 1} (the model has {n} {units}), '
            f'got {out_indices!r}.'
        )
    indices = tuple(i % n for i in given)
    if len(set(indices)) != len(indices):
        what = f'{units.removesuffix("s")} twice: {list(indices)}'
        raise ValueError(f'out_indices {out_indices!r} name a {what}.')
    return indices
