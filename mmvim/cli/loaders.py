"""Defaults of data loaders that a library keeps in its own scripts instead of its configs."""

from mmengine.config import Config


def fill_loaders(cfg: Config) -> None:
    """Give the loaders of an mmpretrain config what mmpretrain's scripts give them.

    Batches are stacked in the workers, copied through pinned memory, and workers live on between
    epochs. What the config sets itself stays.
    """
    if cfg.get('default_scope') != 'mmpretrain':
        return
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if loader is not None:
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', True)
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)
