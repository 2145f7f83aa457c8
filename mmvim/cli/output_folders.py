"""Where a tool writes."""

import tempfile
from pathlib import Path

from mmengine.config import Config

from mmvim.errors import UserError


def set_work_dir(cfg: Config, work_dir: str | None, config_path: str) -> None:
    """The argument comes first, then the config's ``work_dir``, then ``work_dirs/<its name>``."""
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(config_path).stem)
    make_writable(cfg.work_dir, 'the work dir')


def make_writable(folder: str | Path, what: str) -> Path:
    """Create a folder and prove that a file can be written in it.

    Args:
        folder: Created with its parents where missing.
        what: What the user knows it as, for the message.

    Raises:
        UserError: If it cannot be created or written.
    """
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b'\0')
    except OSError as error:
        raise UserError(
            f'{what} {folder} cannot be written ({error.strerror}): give another folder'
        ) from error
    return path
