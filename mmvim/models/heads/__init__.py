"""Heads of the paper's ablations that the libraries lack."""

from mmvim.models.heads.max_pool_cls_head import MaxPoolClsHead

__all__ = ['MaxPoolClsHead']
