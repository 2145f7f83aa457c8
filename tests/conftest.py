"""Fixtures of the whole suite, and what keeps it short."""

import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HAS_MMENGINE = importlib.util.find_spec('mmengine') is not None  # the ops need torch alone


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections: mmengine forces one per data set."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def unformatted_configs() -> Iterator[None]:
    """Log and dump configs as they come; formatting one takes longer than a step of training.

    A text that is no Python is refused as before.
    """

    def checked(text: str, **_: Any) -> tuple[str, bool]:
        compile(text, 'config', 'exec')
        return text, True

    with pytest.MonkeyPatch.context() as patch:
        if HAS_MMENGINE:
            # mmengine imports the name when it is imported, its fork when it formats.
            patch.setattr('yapf.yapflib.yapf_api.FormatCode', checked)
            patch.setattr('mmengine.config.config.FormatCode', checked, raising=False)
        yield


def _kinds(kind: type) -> Iterator[type]:
    """A class and all that are derived from it."""
    yield kind
    for derived in kind.__subclasses__():
        yield from _kinds(derived)


@pytest.fixture(autouse=True)
def forgotten_runs() -> Iterator[None]:
    """End scope, logger, messages and visualizer of a run with its test, whichever comes next."""
    yield
    if HAS_MMENGINE:
        from mmengine.utils import ManagerMixin

        for kind in _kinds(ManagerMixin):
            kind._instance_dict.clear()  # type: ignore[attr-defined]


@pytest.fixture(scope='session')
def goldens() -> Path:
    """The folder of numbers that the published code computed; not part of the project."""
    default = Path(__file__).parents[2] / 'shared' / 'goldens'
    folder = Path(os.environ.get('MMVIM_GOLDENS', default))
    if not folder.is_dir():
        pytest.skip(f'no goldens at {folder}; MMVIM_GOLDENS says where they are')
    return folder
