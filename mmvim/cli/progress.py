"""The progress bar of the tools."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar('T')


def track(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, with a bar on a terminal that vanishes after the last one.

    Args:
        items (Sequence): To go through.
        what (str): What happens to them, in front of the bar.

    Yields:
        Each item.
    """
    console = Console(stderr=True)
    yield from rich_track(
        items, what, console=console, transient=True, disable=not console.is_terminal
    )
