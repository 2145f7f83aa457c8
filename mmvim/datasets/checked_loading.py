"""Samples that cannot be read, and masks that fit no image or class, are errors naming the file.

The libraries' loaders mostly do not say which file failed, and a label outside the classes indexes
out of bounds without a word on a GPU.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.runner import Runner
from torch.utils.data import DataLoader, IterableDataset

from mmvim.datasets.pipelines import is_loader
from mmvim.errors import UserError, first_line

_IGNORED = 255  # label of pixels without a class, in all libraries


class CheckedLoader:
    """A transform that loads, with errors that name the file.

    Args:
        loader (Callable): The transform.
        num_classes (int, optional): Labels are below it; None checks none. Defaults to None.
        ignored (Collection[int]): Labels of pixels without a class. Defaults to (255,).
    """

    def __init__(
        self,
        loader: Callable[[dict[str, Any]], Any],
        num_classes: int | None = None,
        ignored: Collection[int] = (_IGNORED,),
    ) -> None:
        self.loader = loader
        self.num_classes = num_classes
        self.ignored = ignored

    def __call__(self, results: dict[str, Any]) -> Any:
        """Load what the transform loads.

        Raises:
            UserError: If it fails, if a mask has no single channel or another size than its
                image, or if a label is outside the classes.
        """
        is_image = is_loader(dict(type=type(self.loader)), of='image')
        path = results.get('img_path' if is_image else 'seg_map_path')
        try:
            loaded = self.loader(results)
        except Exception as error:
            if path is None:
                raise
            raise UserError(
                f'{path} cannot be loaded ({first_line(error)}): mend it, or take it out of the '
                'data set'
            ) from error
        labels = (loaded or {}).get('gt_label' if is_image else 'gt_seg_map')
        if labels is None:
            return loaded
        labels, size = np.asarray(labels), loaded.get('ori_shape')
        if not is_image and size is not None and labels.shape != tuple(size[:2]):
            raise UserError(
                f'{path} has shape {labels.shape}, but its image {loaded.get("img_path")} '
                f'{tuple(size[:2])}: a mask holds one class index for each pixel'
            )
        if self.num_classes is None or labels.dtype.kind not in 'iu':
            return loaded
        outside = (labels >= self.num_classes) | (labels < 0)
        for label in () if is_image else self.ignored:
            outside &= labels != label
        if outside.any():
            raise UserError(
                f'{path}: label {labels[outside].flat[0]} is outside the {self.num_classes} '
                'classes of the model: mend it, or set num_classes of the head and the classes '
                'of the data set'
            )
        return loaded


def check_loading(dataset: Any, model: Mapping[str, Any]) -> None:
    """Have a data set check what it loads, in place.

    Args:
        dataset (Any): A data set that was built, or a wrapper of some (repeat, concatenate ...).
        model (Mapping): The ``model`` of the config, whose head has ``num_classes``.
    """
    model = model.get('module', model)  # inside test-time augmentation
    head: Any = model.get('decode_head', model.get('head')) or {}
    head = head[-1] if isinstance(head, list) else head
    classes = head.get('num_classes')
    if classes is not None and 'decode_head' in model:
        classes = max(classes, 2)  # one channel tells two classes
    for one in _opened(dataset):
        own = getattr(one, 'ignore_index', _IGNORED)
        ignored = {_IGNORED, head.get('ignore_index', _IGNORED), own}
        _wrap(getattr(one, 'pipeline', None), classes, ignored)


def check_loading_of_run(runner: Runner) -> None:
    """Have all data sets that a runner builds from here on check what they load."""
    build = runner.build_dataloader

    def build_checked(*args: Any, **kwargs: Any) -> Any:
        loader = build(*args, **kwargs)
        check_loading(loader.dataset, runner.cfg.model)
        check_sizes(loader)
        return loader

    runner.build_dataloader = build_checked


def check_sizes(loader: DataLoader[Any]) -> None:
    """Refuse a loader without a batch, and annotations without some of the classes.

    Raises:
        UserError: With the numbers.
    """
    dataset: Any = loader.dataset
    endless = 'Infinite' in type(loader.sampler).__name__
    if not isinstance(dataset, IterableDataset) and not (endless or len(loader)):
        raise UserError(
            f'the data set has {len(dataset)} samples, of which drop_last leaves no batch: '
            'take a smaller batch_size, or drop_last=False'
        )
    for one in _opened(dataset):
        found, classes = getattr(one, 'cat_ids', None), getattr(one, 'metainfo', {}).get('classes')
        if isinstance(found, list) and classes and len(found) != len(classes):
            raise UserError(
                f'{one.ann_file} has {len(found)} of the {len(classes)} classes of the data set '
                f'({", ".join(classes)}), so that their numbers would not match: set '
                'metainfo.classes to the names of its categories'
            )


def _opened(dataset: Any) -> Iterator[Any]:
    yield dataset
    for inner in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())):
        if inner is not None:
            yield from _opened(inner)


def _wrap(pipeline: Any, num_classes: int | None, ignored: Collection[int]) -> None:
    """Replace the loaders of a composed pipeline, those inside test-time augmentation too."""
    transforms = getattr(pipeline, 'transforms', [])
    for place, step in enumerate(transforms):
        settings = dict(type=type(step))
        if is_loader(settings, of='image') or is_loader(settings, of='annotations'):
            transforms[place] = CheckedLoader(step, num_classes, ignored)
        for inner in getattr(step, 'subroutines', ()):
            _wrap(inner, num_classes, ignored)
