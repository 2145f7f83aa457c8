"""Graphs that ``torch.compile`` cached on disk are used again by the same version of us only.

Torch keys a cached graph by the forward operators in it. What their autograd and shape rules put
into it (the call of the backward operator, the shapes of what it saves) is not part of that key, so
a graph that another version of this package left on disk would be taken, and call an operator
by a schema it no longer has. A tag of torch's own, which goes into every key, sets them apart.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch


def digest(folder: Path) -> str:
    """Return a digest of the Python sources of a package."""
    sources = sorted(folder.rglob('*.py'))
    return hashlib.sha256(b'\0'.join(path.read_bytes() for path in sources)).hexdigest()[:16]


def tag_cached_graphs() -> None:
    """Add this version of the package to torch's ``cache_key_tag``, after what the user put there.

    Does nothing under a torch without that setting, which caches each pass under its own operators
    unless told otherwise.
    """
    settings = getattr(torch.compiler, 'config', None)
    if settings is None or not hasattr(settings, 'cache_key_tag'):
        return
    tag = f'mmvim_ops={digest(Path(__file__).parent)}'
    if tag not in settings.cache_key_tag:
        settings.cache_key_tag = ' '.join(filter(None, (settings.cache_key_tag, tag)))
