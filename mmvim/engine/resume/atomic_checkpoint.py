"""Checkpoints that no interruption and no full disk destroys."""

import copy
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub
from mmengine.runner import Runner

from mmvim.atomic_files import ATOMIC_BACKEND, remove_partial_files, write_atomically
from mmvim.errors import UserError
from mmvim.registry import HOOKS

INTERRUPTED_FILE = 'interrupted.pth'


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` that survives being killed at any moment.

    * A checkpoint is written beside its place, flushed to the disk, then renamed; the note
      ``last_checkpoint`` likewise. A file with a checkpoint's name is complete.
    * An old checkpoint (``max_keep_ckpts``, the previous best) is removed only when the new one is
      safe, which takes the room of one checkpoint more than mmengine's hook.
    * When a checkpoint cannot be written (disk full, quota, no permission), the run warns and
      trains on, if this run has saved one before: hours of training in memory are worth more than
      an early end, and the next interval tries again. Without an older one, and at the end of
      training, it is an error.

    All arguments are those of ``CheckpointHook``. Files on other storage (``backend_args``) are
    written as that storage does it.
    """

    file_backend: Any  # set before training
    keep_ckpt_ids: deque[int]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Iterations of the newest checkpoint that was saved.
        self.saved_iter: int | None = None

    def before_train(self, runner: Runner) -> None:
        """Write local files atomically, and clear away what a killed run left half written."""
        super().before_train(runner)
        if self.file_client_args is not None or type(self.file_backend) is not LocalBackend:
            return
        self.backend_args = dict(backend=ATOMIC_BACKEND)
        self.file_backend = get_file_backend(self.out_dir, backend_args=self.backend_args)
        if is_main_process():
            remove_partial_files(self.out_dir)
            remove_partial_files(runner.work_dir)

    def save_interrupted(self, runner: Runner, iteration: int) -> str:
        """Save at once, outside the interval, as ``interrupted.pth``.

        The next regular checkpoint replaces that file.

        Args:
            runner (Runner): The runner, in the middle of a run.
            iteration (int): Iterations that the weights have seen.

        Returns:
            str: The path of the checkpoint.

        Raises:
            UserError: If it cannot be written.
        """
        path = self.file_backend.join_path(self.out_dir, INTERRUPTED_FILE)
        meta = dict(epoch=runner.epoch, iter=iteration)
        try:
            self._save(runner, path, meta, save_optimizer=True, save_param_scheduler=True)
        except OSError as error:
            raise UserError(_unsaved(path, error, self._older(runner))) from error
        return str(path)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        kept: list[int] = []
        if self.max_keep_ckpts > 0:
            kept = [*(id_ for id_ in self.keep_ckpt_ids if id_ != step), step]
        try:
            self._save(
                runner,
                path,
                meta,
                # With the outdated ones, so that a run killed before their removal makes up for
                # it when it is resumed.
                dict(keep_ckpt_ids=kept) if kept else {},
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                **self.args,
            )
        except OSError as error:
            older = self._older(runner)
            if older is None or meta['iter'] >= runner.max_iters:
                raise UserError(_unsaved(path, error, older)) from error
            sentence = f'{_unsaved(path, error, older)}; training goes on meanwhile'
            runner.logger.log(logging.WARNING, sentence)
            return
        outdated = kept[: -self.max_keep_ckpts]
        if kept:
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        if is_main_process():
            for name in [*map(self.filename_tmpl.format, outdated), INTERRUPTED_FILE]:
                _remove(self.file_backend, self.file_backend.join_path(self.out_dir, name))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """Let mmengine's method do it, but hold back the removals until all is saved."""
        own = {key: value for key, value in vars(self).items() if key.startswith('best_ckpt_path')}
        own = copy.deepcopy(own)
        try:
            with _removals_held(self.file_backend), _restored_on_failure(runner.message_hub):
                super()._save_best_checkpoint(runner, metrics)
        except OSError as error:
            self.__dict__.update(own)
            runner.logger.log(
                logging.WARNING,
                f'the best checkpoint could not be written to {self.out_dir} '
                f'({error.strerror or error}): an older best one stays, training goes on',
            )

    def _save(
        self,
        runner: Runner,
        path: str,
        meta: dict[str, Any],
        info: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Save a checkpoint and note it as the last one; after an OSError all is as before."""
        with _restored_on_failure(runner.message_hub):
            for key, value in dict(info or {}, last_ckpt=path).items():
                runner.message_hub.update_info(key, value)
            # Hooks may need something of all processes, where only the first one saves.
            runner.call_hook('before_collective_checkpoint')
            runner.save_checkpoint(
                self.out_dir,
                Path(path).name,
                self.file_client_args,
                meta=dict(meta),
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **options,
            )
            if is_main_process():
                write_atomically(Path(runner.work_dir, 'last_checkpoint'), str(path).encode())
        self.last_ckpt = path
        self.saved_iter = meta['iter']

    def _older(self, runner: Runner) -> str | None:
        """The newest checkpoint of this run, resumed ones included, if it is still there."""
        path = runner.message_hub.runtime_info.get('last_ckpt')
        return path if path and self.file_backend.exists(path) else None


def _unsaved(path: str, error: OSError, older: str | None) -> str:
    rest = 'this run has no older checkpoint'
    if older is not None:
        rest = f'{older} is as it was, --resume goes on from it'
    return (
        f'checkpoint {path} could not be written ({error.strerror or error}): make room there, '
        f'or name another folder in default_hooks.checkpoint.out_dir; {rest}'
    )


@contextmanager
def _restored_on_failure(hub: MessageHub) -> Iterator[None]:
    """Put back what was noted in the hub after an OSError, and pass that on."""
    before = dict(hub.runtime_info)
    try:
        yield
    except OSError:
        hub.runtime_info.clear()
        hub.runtime_info.update(before)
        raise


@contextmanager
def _removals_held(backend: Any) -> Iterator[None]:
    """Let a file backend remove at the end, and after an OSError nothing."""
    held: list[str] = []
    backend.remove = backend.rmtree = held.append
    try:
        yield
    finally:
        del backend.remove, backend.rmtree
    for path in held:
        _remove(backend, path)


def _remove(backend: Any, path: str) -> None:
    if backend.isfile(path):
        backend.remove(path)
    elif backend.isdir(path):  # sharded checkpoints are folders
        backend.rmtree(path)
