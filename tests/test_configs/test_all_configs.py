"""Every config, of whatever library."""

import pytest
from repository import CONFIGS, bases

FILES = sorted(path for path in CONFIGS.glob('*/*.py') if path.parent.name != '_base_')


@pytest.mark.parametrize('file', FILES, ids=lambda path: path.stem)
def test_repairs_come_before_bases_in_a_library(file):
    """mmengine finds those in every stack only thanks to the repairs, whichever tool runs."""
    assert next(bases(file)) == '_base_/mmvim.py'
