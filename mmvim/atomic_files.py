"""Files that are either the old ones or the new ones, whenever the power goes."""

import errno
import os
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

ATOMIC_BACKEND = 'mmvim_atomic'
_SUFFIX = '.partial'
# File systems that cannot sync a folder say so with one of these.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)


def partial_path(path: str | os.PathLike[str]) -> Path:
    """The hidden file beside ``path`` that receives its content until it is complete."""
    path = Path(path)
    return path.with_name(f'.{path.name}{_SUFFIX}')


def remove_partial_files(folder: str | os.PathLike[str]) -> None:
    """Remove what runs that were killed while they wrote have left in ``folder``."""
    for path in Path(folder).glob(f'.*{_SUFFIX}'):
        path.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that its name always stands for a complete content, the old or the new.

    The content goes to a file beside it and to the disk (fsync), then the file is renamed, then
    the folder's entry goes to the disk too.

    Args:
        path (str | os.PathLike[str]): Folders that it lies in are created.
        content (bytes): All of it.

    Raises:
        OSError: If the disk is full, for one. What was at ``path`` is as it was, and nothing is
            left beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with open(partial, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != 'posix':  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


class AtomicBackend(LocalBackend):
    """mmengine's file backend for local files, writing through :func:`write_atomically`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes."""
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text."""
        write_atomically(filepath, obj.encode(encoding))


register_backend(ATOMIC_BACKEND, AtomicBackend, force=True)
