"""Files that are written atomically, under injected faults."""

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.fileio import get_file_backend

from mmvim import atomic_files
from mmvim.atomic_files import (
    ATOMIC_BACKEND,
    partial_path,
    remove_partial_files,
    write_atomically,
)

OLD, NEW = b'old', b'new' * 1000


def in_a_fork(act: Callable[[], object]) -> int:
    """The status of a child process that acts and would then leave with 0."""
    child = os.fork()
    if not child:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def test_writes_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / 'sub' / 'a.pth'
    for content in (OLD, NEW):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ['a.pth']


def test_backend_writes_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_file_backend(backend_args=dict(backend=ATOMIC_BACKEND))
    renamed = []
    replace = os.replace
    monkeypatch.setattr(os, 'replace', lambda a, b: (renamed.append(Path(b).name), replace(a, b)))
    backend.put(NEW, str(tmp_path / 'a'))
    backend.put_text('text', str(tmp_path / 'b'))
    assert renamed == ['a', 'b']
    assert (tmp_path / 'a').read_bytes() == NEW and (tmp_path / 'b').read_text() == 'text'


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / 'a.pth'
    path.write_bytes(OLD)
    monkeypatch.setattr(atomic_files.os, call, fail)
    with pytest.raises(OSError) as caught:
        write_atomically(path, NEW)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ['a.pth']


def test_a_write_that_stops_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / 'a.pth'
    path.write_bytes(OLD)

    def write() -> None:
        # The kernel itself refuses the second half.
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(NEW) // 2, len(NEW) // 2))
        with pytest.raises(OSError):
            write_atomically(path, NEW)

    assert in_a_fork(write) == 0
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ['a.pth']


def test_killed_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / 'a.pth'
    path.write_bytes(OLD)

    def write() -> None:
        def kill(descriptor: int) -> None:
            os.ftruncate(descriptor, len(NEW) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

        atomic_files.os.fsync = kill  # type: ignore[assignment]
        write_atomically(path, NEW)

    assert os.WTERMSIG(in_a_fork(write)) == signal.SIGKILL
    assert path.read_bytes() == OLD
    assert partial_path(path).stat().st_size == len(NEW) // 2
    (tmp_path / 'b.partial').touch()  # not ours
    remove_partial_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'b.partial']


def test_folders_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, code = os.fsync, errno.EINVAL

    def of_files_only(descriptor: int) -> None:
        if os.path.isdir(f'/proc/self/fd/{descriptor}'):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(atomic_files.os, 'fsync', of_files_only)
    write_atomically(tmp_path / 'a', NEW)
    assert (tmp_path / 'a').read_bytes() == NEW
    code = errno.EIO
    with pytest.raises(OSError):
        write_atomically(tmp_path / 'a', OLD)
