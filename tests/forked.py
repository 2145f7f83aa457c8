"""Scripts in processes of their own, which start in a fraction of the time of ``python script.py``.

A server, one for each process of the test suite, imports what the stack stands on and forks the
processes. They have imported neither OpenMMLab's libraries nor mmvim, and what the tests left in
their own process, they do not see. Signals and exit codes are those of any process.
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

METHOD = 'forkserver'
# Four fifths of what an import of mmseg takes; what is not installed is passed over.
# pytest is there because Python imports the main module in each process.
PRELOADED = """
    torch torch._dynamo torch.distributed.fsdp torch.distributed.optim torch.onnx
    torch.utils.tensorboard cv2 matplotlib.pyplot pytest rich.progress scipy.optimize scipy.stats
    shapely.geometry yapf.yapflib.yapf_api
"""
_context = multiprocessing.get_context(METHOD)
_context.set_forkserver_preload(PRELOADED.split())
# At once: a process has one such server, and drawing patterns asks for one that has imported mmvim.
if multiprocessing.current_process().name == 'MainProcess':  # scripts import this file, too
    forkserver.ensure_running()


def _become(
    script: Path | str, arguments: list[str], folder: Path, env: dict[str, str], log: Path
) -> None:
    """What the process does: it runs the script as Python would, in a process group of its own."""
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    for number, name in ((1, 'stdout'), (2, 'stderr')):
        with open(log / name, 'wb') as file:
            os.dup2(file.fileno(), number)
    sys.argv = [str(script) if isinstance(script, Path) else '-c', *arguments]
    try:
        if isinstance(script, Path):
            sys.path.insert(0, str(script.parent))
            runpy.run_path(str(script), run_name='__main__')
        else:
            exec(compile(script, '<string>', 'exec'), {'__name__': '__main__'})
    finally:
        # Python ends a process that was forked without them.
        atexit._run_exitfuncs()


class Script:
    """A script that runs.

    Args:
        script (Path | str): The file, or the code itself, which may be indented.
        *arguments (Any): What it is called with.
        cwd (Path, optional): Its folder; by default the test's own.
        env (Mapping[str, str], optional): Its whole environment; by default the test's own.
    """

    def __init__(
        self,
        script: Path | str,
        *arguments: Any,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._log = tempfile.TemporaryDirectory()
        self._process = _context.Process(
            target=_become,
            args=(
                script.resolve() if isinstance(script, Path) else textwrap.dedent(script),
                [str(argument) for argument in arguments],
                Path(cwd or '.').resolve(),
                dict(os.environ if env is None else env),
                Path(self._log.name),
            ),
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, minus the number of the signal that killed it; None while it runs."""
        return self._process.exitcode

    def printed(self, stream: str) -> str:
        """What went to ``'stdout'`` or ``'stderr'`` so far."""
        file = Path(self._log.name, stream)
        return file.read_text() if file.exists() else ''

    def wait(self, timeout: float = 300) -> CompletedProcess[str]:
        """Its exit code and output once it has ended."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            self._process.kill()
            raise TimeoutError(self.printed('stderr'))
        return CompletedProcess([], code, self.printed('stdout'), self.printed('stderr'))


def run(script: Path | str, *arguments: Any, **options: Any) -> CompletedProcess[str]:
    """Run a script to its end; the arguments are those of :class:`Script`."""
    return Script(script, *arguments, **options).wait()


def start_ranks(count: int, script: Path | str, *arguments: Any, **options: Any) -> list[Script]:
    """Start a script several times, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    group = dict(WORLD_SIZE=str(count), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    ranks = [dict(group, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]
    return [
        Script(script, *arguments, **{**options, 'env': {**os.environ, **rank}}) for rank in ranks
    ]
