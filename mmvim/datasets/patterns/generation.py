"""Write a whole patterns dataset, and never over anything that is not one.

A manifest says what a folder holds. It is written first, as unfinished, and again as the last
file, as complete: what an interrupted run left behind is known for what it is, and removing an
old dataset touches the files of that dataset alone.
"""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2

from mmvim.atomic_files import write_atomically
from mmvim.datasets.patterns.layouts import (
    SPLITS,
    Item,
    PatternsSpec,
    Split,
    files,
    folders,
    items,
    write_classes,
    write_coco,
    write_item,
)
from mmvim.datasets.patterns.preview import write_preview
from mmvim.errors import UsageError, UserError

MANIFEST = 'patterns.json'

IfExists = Literal['refuse', 'replace', 'keep']
# Shows how far the work is: items -> the same items.
Track = Callable[[Sequence[Item]], Iterable[Item]]


@dataclass(frozen=True)
class Manifest:
    """Content of a folder.

    Attributes:
        spec (PatternsSpec): The dataset, and the version of the code that wrote it.
        complete (bool): Whether all of its files were written.
    """

    spec: PatternsSpec
    complete: bool

    def write(self, out: Path) -> None:
        """Put the manifest into a folder, in one step."""
        document = {
            'dataset': 'mmvim patterns',
            'complete': self.complete,
            'spec': self.spec.to_json(),
        }
        write_atomically(out / MANIFEST, (json.dumps(document, indent=1) + '\n').encode())

    def is_whole(self, out: Path) -> bool:
        """Whether the dataset was completed and has all of its files still."""
        return self.complete and all((out / path).is_file() for path in files(self.spec))


def read_manifest(out: Path) -> Manifest | None:
    """The manifest of a folder, or None where there is none that this module wrote."""
    try:
        document = json.loads((out / MANIFEST).read_text())
        return Manifest(PatternsSpec.from_json(document['spec']), document['complete'] is True)
    except (FileNotFoundError, ValueError, KeyError, TypeError, UsageError):
        return None


def _remove(out: Path, spec: PatternsSpec) -> None:
    """Remove the files of a dataset and the folders that this leaves empty, but not ``out``."""
    Manifest(spec, complete=False).write(out)
    for path in files(spec):
        (out / path).unlink(missing_ok=True)
    nested = {parent for folder in folders(spec) for parent in (folder, *folder.parents)}
    for folder in sorted(nested - {Path('.')}, key=lambda path: -len(path.parts)):
        if (out / folder).is_dir() and not any((out / folder).iterdir()):
            (out / folder).rmdir()


def _make_room(out: Path, spec: PatternsSpec, if_exists: IfExists) -> bool:
    """Bring a folder into the state in which a dataset can be written to it.

    Returns:
        bool: False if the dataset is there already and was to be kept.

    Raises:
        UserError: If the folder holds what must not be touched; then nothing was.
        OSError: If the folder cannot be made or written to.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not any(out.iterdir()):
        return True

    old = read_manifest(out)
    whole = old is not None and old.is_whole(out)
    if if_exists == 'keep' and whole and old == Manifest(spec, complete=True):
        return False
    unfinished = old is not None and not whole
    if if_exists == 'refuse' or (if_exists == 'keep' and not unfinished):
        content = 'is not empty'
        if old is not None:
            content = f'holds a patterns dataset ({old.spec}; wanted: {spec})'
        if unfinished:
            content = 'holds an unfinished patterns dataset'
        raise UserError(
            f'{out} {content}: add --force to replace what this tool wrote there, '
            'or give --out another folder'
        )

    ours = set() if old is None else {Path(MANIFEST), *files(old.spec)}
    for path in (Path(MANIFEST), *files(spec)):
        if path not in ours and os.path.lexists(out / path):
            raise UserError(
                f'{out / path} exists and was not written by this tool: move it away, '
                'or give --out another folder'
            )
    if old is not None:
        _remove(out, old.spec)
    return True


def _start_worker() -> None:
    """Keep a worker from starting threads of its own, and leave Ctrl-C to the main process."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _mapper(workers: int) -> Iterator[Any]:
    """A ``map`` that keeps order: the built-in one, or one over several processes."""
    if workers == 1:
        yield map
        return
    # A plain fork would copy the locks of threads that torch or BLAS may have started.
    method = 'forkserver' if 'forkserver' in multiprocessing.get_all_start_methods() else 'spawn'
    context = multiprocessing.get_context(method)
    if method == 'forkserver':  # one import for all workers
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            yield partial(pool.map, chunksize=16)
        except BrokenProcessPool:
            raise UserError(
                'a worker process was killed, perhaps for want of memory: try fewer --workers'
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_items(out: Path, spec: PatternsSpec, workers: int, track: Track) -> None:
    """Write all pictures and the COCO annotation files."""
    work = items(spec)
    # Workers need not share the current folder of the main process.
    write = partial(write_item, out.absolute(), spec)
    annotations: dict[Split, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    with _mapper(workers) as ordered_map:
        for item, found in zip(track(work), ordered_map(write, work), strict=True):
            annotations[item.split] += found
    if 'coco' in spec.layouts:
        for split in SPLITS:
            write_coco(out, spec, split, annotations[split])


def generate(
    out: Path,
    spec: PatternsSpec,
    *,
    workers: int = 1,
    if_exists: IfExists = 'refuse',
    track: Track = iter,
) -> bool:
    """Write a patterns dataset into a folder.

    Args:
        out (Path): Folder of the dataset; made if it is missing.
        spec (PatternsSpec): The dataset. The files depend on nothing else.
        workers (int): Number of processes. With more than one, the caller's main module must be
            safe to import (``if __name__ == '__main__':``).
        if_exists (IfExists): What to do if ``out`` is not empty. 'refuse': raise. 'replace': remove
            the patterns dataset that is there, and no other file. 'keep': do nothing if it is the
            very dataset asked for; begin anew if it is an unfinished one; else raise.
        track (Track): Shows the progress. Defaults to nothing.

    Returns:
        bool: False if nothing was done because the dataset was there, else True.

    Raises:
        UserError: If ``out`` must not be touched.
        OSError: If ``out`` cannot be written to.
    """
    if not _make_room(out, spec, if_exists):
        return False
    Manifest(spec, complete=False).write(out)
    for folder in folders(spec):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_classes(out)
    # The preview comes before the bulk: it can be looked at meanwhile.
    write_preview(out, spec)
    _write_items(out, spec, workers, track)
    Manifest(spec, complete=True).write(out)
    return True
