"""Pure functions on tensors."""

from mmvim.models.utils.pos_embed import patch_grid, resize_pos_embed

__all__ = ['patch_grid', 'resize_pos_embed']
