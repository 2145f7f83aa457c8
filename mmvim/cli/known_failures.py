"""Failures that surface deep inside mmengine or a data worker, told in one sentence."""

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator
from traceback import walk_tb
from typing import Any

from mmengine.dataset import BaseDataset
from PIL import Image, UnidentifiedImageError

from mmvim.cli.registered_types import names_like
from mmvim.cli.scope import is_installed, missing_library
from mmvim.errors import UserError

# mmcv asserts with the path; Pillow and OpenCV say nothing about which file it was.
_UNDECODED = re.compile(r'failed to load image: ([^\n]+)')
_ABSENT = re.compile(r"No such file or directory: '(?P<path>[^']+)'")
_NAMELESS = re.compile(
    r'cannot identify image file|image file is truncated|broken PNG file|'
    r'unrecognized data stream|!buf\.empty\(\)'
)
_UNREGISTERED = re.compile(
    r'(?P<name>[\w.]+) is not in the (?P<scope>\w+)::(?P<registry>[\w ]+) registry'
)
# mmcv's dispatcher, where its build has no kernel for the device of the tensors.
_NO_KERNEL = re.compile(r'(?P<operator>\w+)_impl: implementation for device (?P<device>\S+) not')


def explain(error: BaseException) -> str | None:
    """The sentence for a known failure, None for an unknown one."""
    if isinstance(error, UserError):
        return str(error)
    for explanation in (
        _unknown_type,
        _missing_operator,
        _masks_under_tta,
        _empty_dataset,
        _bad_sample,
    ):
        sentence = explanation(error)
        if sentence is not None:
            return sentence
    return None


def _unknown_type(error: BaseException) -> str | None:
    if not isinstance(error, KeyError):
        return None
    found = _UNREGISTERED.search(str(error))
    if found is None:
        return None
    name = found['name']
    owner = name.partition('.')[0] if '.' in name else found['scope']
    if importlib.util.find_spec(owner) is None:
        return f'the config asks for type={name!r}, but {missing_library(owner)}'
    like = names_like(name, found['registry'], owner)
    advice = f'did you mean {" or ".join(like)}?' if like else 'nothing registered is called alike'
    return (
        f'the config asks for type={name!r}, which is not in the registry '
        f'{found["scope"]}::{found["registry"]}: {advice} (a type of your own must be imported '
        f'by the config, with custom_imports)'
    )


def _missing_operator(error: BaseException) -> str | None:
    """An operator that mmcv was built without: all of them, or those for the GPU."""
    if isinstance(error, ModuleNotFoundError) and error.name == 'mmcv._ext':
        return (
            f'mmcv was built without its operators, which this model needs: {_rebuild_mmcv(False)}'
        )
    found = _NO_KERNEL.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    return (
        f'mmcv was built without operators for {found["device"].partition(":")[0]} devices, and '
        f'this model needs {found["operator"]} there: {_rebuild_mmcv(True)}'
    )


def _rebuild_mmcv(for_gpu: bool) -> str:
    name = next(filter(is_installed, ('onedl-mmcv', 'mmcv-lite')), 'mmcv')
    source = name.replace('mmcv-lite', 'mmcv')
    where, cuda = (' and nvcc', ' FORCE_CUDA=1') if for_gpu else ('', '')
    return (
        f'rebuild it beside this torch{where}: pip uninstall -y {name} && MMCV_WITH_OPS=1{cuda} '
        f'pip install --no-build-isolation --no-cache-dir --no-binary :all: --no-deps '
        f'{source}=={importlib.metadata.version(name)}'
    )


def _masks_under_tta(error: BaseException) -> str | None:
    """What mmdet 3.3 asserts after the first image."""
    if not (isinstance(error, AssertionError) and 'TTA of instance segm' in str(error)):
        return None
    return (
        'mmdet merges boxes only under test-time augmentation, and this model predicts masks: '
        'test it without --tta, or give a tta_model that merges masks'
    )


def _empty_dataset(error: BaseException) -> str | None:
    """A data set without samples, which mmengine cannot pack."""
    if not isinstance(error, ValueError) or 'need at least one array' not in str(error):
        return None
    dataset = _dataset_being_read(error)
    if dataset is None:
        return None
    return (
        f'the data set {type(dataset).__name__} found no sample: check its '
        f'data_root={dataset.data_root!r}, data_prefix={dict(dataset.data_prefix)}, '
        f'ann_file={dataset.ann_file!r} and what it filters out'
    )


def _bad_sample(error: BaseException) -> str | None:
    """A file of the data set that is missing or does not decode, named."""
    dataset = _dataset_being_read(error)
    if dataset is None:
        return None
    text = str(error)
    # The last one: a worker's error holds its frames, with mmcv's line of source in them.
    undecoded = _UNDECODED.findall(text)
    if undecoded:
        return _unreadable(undecoded[-1].strip())
    absent = _ABSENT.search(text)
    if isinstance(error, FileNotFoundError) and absent is not None:
        return f'the data set lists {absent["path"]}, but there is no such file'
    if isinstance(error, UnidentifiedImageError) or _NAMELESS.search(text):
        path = next(_undecodable_files(dataset), None)
        return None if path is None else _unreadable(path)
    return None


def _unreadable(path: str) -> str:
    size = f' ({os.path.getsize(path)} bytes)' if os.path.isfile(path) else ''
    return (
        f'{path}{size} cannot be decoded: the file is truncated or not an image; '
        f'fetch it again or take it out of the data set'
    )


def _dataset_being_read(error: BaseException) -> Any:
    """The data set whose sample was asked for in the frames of the error, if one was.

    The frames of a data worker do not come with its error, but torch's iterator over the loader
    is in the frames that ask the worker.
    """
    for frame, _ in walk_tb(error.__traceback__):
        owner = frame.f_locals.get('self')
        dataset = owner if isinstance(owner, BaseDataset) else getattr(owner, '_dataset', None)
        if dataset is not None:
            return dataset
    return None


def _undecodable_files(dataset: Any) -> Iterator[str]:
    """Files of the samples that Pillow cannot decode, in the data set's order."""
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        for path in (info.get('img_path'), info.get('seg_map_path')):
            if isinstance(path, str) and os.path.isfile(path) and not _decodes(path):
                yield path


def _decodes(path: str) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError):  # Pillow raises SyntaxError for a broken PNG chunk
        return False
    return True
