"""The checkpoint that a run resumes from."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.runner import find_latest_checkpoint

from mmvim.errors import UserError


def latest_checkpoint(work_dir: str) -> str | None:
    """The newest checkpoint of a work dir, None where no run has saved any.

    Raises:
        UserError: If the note in the work dir names a file that is not there.
    """
    path = find_latest_checkpoint(work_dir)
    if path is None or os.path.isfile(path):
        return path
    moved = Path(work_dir, Path(path).name)
    if moved.is_file():  # the work dir was moved after the run; the note in it has the old place
        return str(moved)
    raise UserError(
        f'{Path(work_dir, "last_checkpoint")} names {path}, which does not exist: give the '
        'checkpoint with --resume PATH'
    )


def check_resumable(path: str, checkpoint: Mapping[str, Any]) -> None:
    """Fail unless the file holds the state of a training run beside the weights.

    Raises:
        UserError: Names what is missing.
    """
    meta = checkpoint.get('meta')
    absent = [key for key in ('epoch', 'iter') if not isinstance(meta, Mapping) or key not in meta]
    absent += [key for key in ('optimizer', 'message_hub') if key not in checkpoint]
    if absent:
        raise UserError(
            f'{path} cannot be resumed, it holds weights but no {", ".join(absent)}: to start from '
            f'its weights, leave --resume out and add --cfg-options load_from={path}'
        )
