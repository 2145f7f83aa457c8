"""Samples that cannot be read, and masks that fit no image or class, are errors naming the file.

The libraries' loaders mostly do not say which file failed, and a label outside the classes indexes
out of bounds without a word on a GPU. A few labels of every data set are read before a run begins.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, IterableDataset

from mmvim.datasets.pipelines import is_loader
from mmvim.errors import UserError, first_line

_IGNORED = 255  # label of pixels without a class, in all libraries
# Samples whose labels are read before a run, and those where all of them have one class.
_FIRST_LOOK, _SECOND_LOOK = 8, 500


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
        self.is_image = is_loader(dict(type=type(loader)), of='image')
        self.num_classes = num_classes
        self.ignored = () if self.is_image else ignored

    def __call__(self, results: dict[str, Any]) -> Any:
        """Load what the transform loads.

        Raises:
            UserError: If it fails, if a mask has no single channel or another size than its
                image, or if a label is outside the classes.
        """
        path = results.get('img_path' if self.is_image else 'seg_map_path')
        try:
            loaded = self.loader(results)
        except Exception as error:
            if path is None:
                raise
            raise UserError(
                f'{path} cannot be loaded ({first_line(error)}): mend it, or take it out of the '
                'data set'
            ) from error
        labels, size = self.labels(loaded or {}), (loaded or {}).get('ori_shape')
        if self.is_image or labels is None or size is None:
            return loaded
        if labels.shape != tuple(size[:2]):
            raise UserError(
                f'{path} has shape {labels.shape}, but its image {loaded.get("img_path")} '
                f'{tuple(size[:2])}: a mask holds one class index for each pixel'
            )
        return loaded

    def labels(self, results: Mapping[str, Any]) -> np.ndarray | None:
        """The mask or the class of a sample, if it has any.

        Raises:
            UserError: If a label is outside the classes.
        """
        given = results.get('gt_label' if self.is_image else 'gt_seg_map')
        if given is None:
            return None
        labels = np.asarray(given)
        if self.num_classes is None or labels.dtype.kind not in 'iu':
            return labels
        outside = (labels >= self.num_classes) | (labels < 0)
        for label in self.ignored:
            outside &= labels != label
        if outside.any():
            path = results.get('img_path' if self.is_image else 'seg_map_path')
            raise UserError(
                f'{path}: label {labels[outside].flat[0]} is outside the {self.num_classes} '
                'classes of the model: mend it, or set num_classes of the head and the classes '
                'of the data set'
            )
        return labels


def check_loading(dataset: Any, model: Mapping[str, Any]) -> list[tuple[Any, CheckedLoader]]:
    """Have a data set check what it loads, in place.

    Args:
        dataset (Any): A data set that was built, or a wrapper of some (repeat, concatenate ...).
        model (Mapping): The ``model`` of the config, whose head has ``num_classes``.

    Returns:
        list: Every inner data set with each of its loaders.
    """
    model = model.get('module', model)  # inside test-time augmentation
    head: Any = model.get('decode_head', model.get('head')) or {}
    head = head[-1] if isinstance(head, list) else head
    classes = head.get('num_classes')
    if classes is not None and 'decode_head' in model:
        classes = max(classes, 2)  # one channel tells two classes
    found = []
    for one in _opened(dataset):
        own = getattr(one, 'ignore_index', _IGNORED)
        ignored = {_IGNORED, head.get('ignore_index', _IGNORED), own}
        loaders = _wrap(getattr(one, 'pipeline', None), classes, ignored)
        found += [(one, loader) for loader in loaders]
    return found


def check_loading_of_run(runner: Runner) -> None:
    """Have all data sets that a runner builds from here on check what they load.

    Labels of some samples are read at once.
    """
    build = runner.build_dataloader

    def build_checked(dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        with explain_no_sample(dataloader):
            loader = build(dataloader, *args, **kwargs)
        check_sizes(loader)
        for one, inner in check_loading(loader.dataset, runner.cfg.model):
            look(one, inner)
        return loader

    runner.build_dataloader = build_checked


def look(dataset: Any, loader: CheckedLoader) -> None:
    """Read the labels of a few samples, and of many where they have one class only.

    Args:
        dataset (Any): Of mmengine's ``BaseDataset``; others are passed over.
        loader (CheckedLoader): One of its pipeline.

    Raises:
        UserError: If a label is outside the classes, or if there are masks of one class and the
            ignored label alone: so does a mask of 0 and 255 look, of which nothing can be learnt
            and a perfect score be measured.
    """
    if loader.num_classes is None or not hasattr(dataset, 'get_data_info'):
        return
    count = min(len(dataset), _SECOND_LOOK)
    order = np.linspace(0, len(dataset) - 1, count).round().astype(int)
    seen: set[int] = set()
    for number, place in enumerate(np.random.default_rng(0).permutation(order), start=1):
        info = dataset.get_data_info(int(place))
        if loader.is_image:
            loader.labels(info)
            continue
        try:
            labels = loader.labels(loader.loader(info))
        except UserError:
            raise
        except Exception:  # the run itself says it, with all that a sample has by then
            return
        if labels is None:
            return
        seen.update(np.unique(labels).tolist())
        classes = seen.difference(loader.ignored)
        if number >= _FIRST_LOOK and len(classes) > 1:
            return
    if seen and len(classes) < 2 and seen != classes:
        raise UserError(
            f'{info["seg_map_path"]} and {count - 1} more masks hold the labels {sorted(seen)} '
            f'only, of which {sorted(seen - classes)} is ignored: nothing could be learnt. Where '
            'it stands for a class, write the number of the class: 0 and 1 for two classes'
        )


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
        _check_classes(one)


@contextmanager
def explain_no_sample(loader: Any) -> Iterator[None]:
    """Say why nothing is left of a data set while it is built, where mmengine's own error does not.

    Args:
        loader (Any): The config of the data loader.

    Raises:
        UserError: If the annotations lack classes, or if no image has an object.
    """
    try:
        yield
    except ValueError:
        one = DATASETS.build(dict(loader['dataset'], lazy_init=True))
        if isinstance(one, BaseDataset):
            one.data_list = one.load_data_list()
            _check_classes(one)
            if not one.filter_data():
                raise UserError(
                    f'{one.ann_file or one.data_prefix} has no sample to use, of '
                    f'{len(one.data_list)}: objects are needed in them, and the filter_cfg of the '
                    'data set may leave others out'
                ) from None
        raise


def _check_classes(dataset: Any) -> None:
    found, known = getattr(dataset, 'cat_ids', None), getattr(dataset, 'metainfo', {})
    classes = known.get('classes')
    if isinstance(found, list) and classes and len(found) != len(classes):
        raise UserError(
            f'{dataset.ann_file} has {len(found)} of the {len(classes)} classes of the data set '
            f'({", ".join(classes)}), so that their numbers would not match: set '
            'metainfo.classes to the names of its categories'
        )


def _opened(dataset: Any) -> Iterator[Any]:
    yield dataset
    for inner in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())):
        if inner is not None:
            yield from _opened(inner)


def _wrap(
    pipeline: Any, num_classes: int | None, ignored: Collection[int]
) -> Iterator[CheckedLoader]:
    """Replace the loaders of a composed pipeline, those inside test-time augmentation too."""
    transforms = getattr(pipeline, 'transforms', [])
    for place, step in enumerate(transforms):
        settings = dict(type=type(step))
        if is_loader(settings, of='image') or is_loader(settings, of='annotations'):
            transforms[place] = CheckedLoader(step, num_classes, ignored)
            yield transforms[place]
        for inner in getattr(step, 'subroutines', ()):
            yield from _wrap(inner, num_classes, ignored)
