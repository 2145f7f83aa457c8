"""Fixtures of the whole suite."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def goldens() -> Path:
    """The folder of numbers that the published code computed; not part of the project."""
    default = Path(__file__).parents[2] / 'shared' / 'goldens'
    folder = Path(os.environ.get('MMVIM_GOLDENS', default))
    if not folder.is_dir():
        pytest.skip(f'no goldens at {folder}; MMVIM_GOLDENS says where they are')
    return folder
