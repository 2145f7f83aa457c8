"""Constants shared by the build of the native library and its loader."""

from __future__ import annotations

import hashlib
from pathlib import Path

# What the Python side expects of the library: raise it with every change of an operator's schema
# or of an exported function, so that a library built before is told apart from one built after.
INTERFACE = 5
LIBRARY = 'libmmvim_ops.so'
SIDECAR = 'libmmvim_ops.json'
OLDEST_TORCH = (2, 10)
# Of GPUs: what copies to shared memory asynchronously.
OLDEST_CAPABILITY = (8, 0)
# The reason in the sidecar where nobody wants a library.
PURE_PYTHON = 'MMVIM_NO_EXT=1 asked for pure Python'
# Beside the package in a checkout; absent beside an installed one.
SOURCES = Path(__file__).resolve().parents[1] / 'csrc'


def source_files(sources: Path = SOURCES) -> list[Path]:
    """All sources and headers, in order."""
    return [path for path in sorted(sources.rglob('[!.]*')) if path.is_file()]


def sources_digest(sources: Path = SOURCES) -> str:
    """SHA-256 over the names and contents of all sources and headers."""
    digest = hashlib.sha256()
    for path in source_files(sources):
        content = path.read_bytes()
        digest.update(f'{path.relative_to(sources).as_posix()} {len(content)}\n'.encode())
        digest.update(content)
    return digest.hexdigest()
