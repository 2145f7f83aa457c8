"""The data sets are names of the package, and need their library only when they are asked for."""

import pytest
from forked import run

import mmvim


@pytest.mark.parametrize(
    'name, library, classes', [('CamVidDataset', 'mmseg', 11), ('NucleiDataset', 'mmdet', 1)]
)
def test_a_dataset_is_imported_when_it_is_asked_for(name, library, classes):
    pytest.importorskip(library)
    done = run(
        f'import sys, mmvim; print({library!r} in sys.modules); from mmvim import {name}; '
        f"print(len({name}.METAINFO['classes']))",
    )
    assert done.stdout.split() == ['False', str(classes)], done.stderr


def test_no_other_name_is_made_up():
    with pytest.raises(AttributeError, match=r"module 'mmvim' has no attribute 'CityDataset'"):
        _ = mmvim.CityDataset
