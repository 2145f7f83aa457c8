"""Write a whole patterns dataset, and never over anything that is not one.

A manifest says what a folder holds. It is written first, as unfinished, and again as the last
file, as complete: what an interrupted run left behind is known for what it is, and removing an
old dataset touches the files of that dataset alone.
"""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import cv2
from torch.utils.data import DataLoader, Dataset

from mmvim.atomic_files import write_atomically
from mmvim.datasets.patterns.layouts import (
    SPLITS,
    Item,
    PatternsSpec,
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


def write_manifest(out: Path, spec: PatternsSpec, complete: bool) -> None:
    """Put the manifest into a folder, in one step."""
    document = {'dataset': 'mmvim patterns', 'complete': complete, 'spec': asdict(spec)}
    write_atomically(out / MANIFEST, (json.dumps(document, indent=1) + '\n').encode())


def read_manifest(out: Path) -> tuple[PatternsSpec | None, bool]:
    """The dataset of a folder, and whether it was completed and has all of its files still.

    The first is None where there is no manifest that this module wrote.
    """
    try:
        document = json.loads((out / MANIFEST).read_text())
        spec, complete = PatternsSpec(**document['spec']), document['complete'] is True
    except (FileNotFoundError, ValueError, KeyError, TypeError, UsageError):
        return None, False
    if asdict(spec) != document['spec']:
        return None, False
    return spec, complete and all((out / path).is_file() for path in files(spec))


def _make_room(out: Path, spec: PatternsSpec, if_exists: IfExists) -> bool:
    """Bring a folder into the state in which a dataset can be written to it.

    Returns:
        bool: False if the dataset is there already and was to be kept.

    Raises:
        UserError: If the folder holds what must not be touched; then nothing was.
        OSError: If the folder cannot be made or written to.
    """
    out.mkdir(parents=True, exist_ok=True)
    old, whole = read_manifest(out)
    if if_exists == 'keep' and whole and old == spec:
        return False
    unfinished = old is not None and not whole
    may_replace = if_exists == 'replace' or (if_exists == 'keep' and unfinished)
    advice = 'or give --out another folder'
    if any(out.iterdir()) and not may_replace:
        content = 'is not empty'
        if old is not None:
            kind = 'an unfinished' if unfinished else 'a'
            content = f'holds {kind} patterns dataset ({old}; wanted: {spec})'
        raise UserError(
            f'{out} {content}: add --force to replace what this tool wrote there, {advice}'
        )

    ours = [] if old is None else [Path(MANIFEST), *files(old)]
    for path in {Path(MANIFEST), *files(spec)}.difference(ours):
        if os.path.lexists(out / path):
            raise UserError(
                f'{out / path} exists and was not written by this tool: move it away, {advice}'
            )
    if old is not None:
        write_manifest(out, old, complete=False)
        for path in ours[1:]:
            (out / path).unlink(missing_ok=True)
        for folder in reversed(folders(old)):
            if (out / folder).is_dir() and not any((out / folder).iterdir()):
                (out / folder).rmdir()
    return True


class _Writer(Dataset[list[dict[str, Any]]]):
    """Writes an item when it is asked for it, and gives its COCO annotations."""

    def __init__(self, out: Path, spec: PatternsSpec) -> None:
        self.out, self.spec, self.items = out.absolute(), spec, items(spec)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        return write_item(self.out, self.spec, self.items[index])


def _start_worker(number: int) -> None:
    """Keep a worker from starting threads of its own, and leave Ctrl-C to the main process."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def generate(
    out: Path,
    spec: PatternsSpec,
    *,
    workers: int = 1,
    if_exists: IfExists = 'refuse',
    track: Callable[[Iterable[Item]], Iterable[Item]] = iter,
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
        track (Callable): Shows the progress: items to the same items. Defaults to nothing.

    Returns:
        bool: False if nothing was done because the dataset was there, else True.

    Raises:
        UserError: If ``out`` must not be touched.
        OSError: If ``out`` cannot be written to.
    """
    if not _make_room(out, spec, if_exists):
        return False
    write_manifest(out, spec, complete=False)
    for folder in folders(spec):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_classes(out)
    # The preview comes before the bulk: it can be looked at meanwhile.
    write_preview(out, spec)
    # A plain fork would copy the locks of threads that torch or BLAS may have started.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['__main__', __name__])  # one import for all workers
    writer = _Writer(out, spec)
    written = DataLoader(
        writer,
        batch_size=None,
        collate_fn=list,
        num_workers=workers if workers > 1 else 0,
        worker_init_fn=_start_worker,
        multiprocessing_context=context if workers > 1 else None,
    )
    annotations: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for item, found in zip(track(writer.items), written, strict=True):
        annotations[item.split] += [] if item.single else found
    for split in SPLITS if 'coco' in spec.layouts else ():
        write_coco(out, spec, split, annotations[split])
    write_manifest(out, spec, complete=True)
    return True
