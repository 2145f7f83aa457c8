"""Selective scans for Vision Mamba: one API over several implementations. Needs torch alone.

The ops are in :mod:`mmvim_ops.functional`; :mod:`mmvim_ops.reference` is their specification.
``python -m mmvim_ops`` says which implementations can run here.
"""

from __future__ import annotations

import torch

if torch.__version__ < '2.4':  # a TorchVersion, compared as one
    raise ImportError(f'mmvim_ops needs torch >= 2.4, found {torch.__version__}; upgrade torch')

from mmvim_ops import flops  # noqa: F401  (registers the formulas)
from mmvim_ops.backends import BACKENDS, BackendStatus, available_backends
from mmvim_ops.compile_cache import tag_cached_graphs
from mmvim_ops.functional import (
    add_rms_norm,
    bi_conv1d_silu,
    bidirectional_selective_scan,
    conv1d_silu,
    selective_scan,
    vim_block,
    vim_inner,
)
from mmvim_ops.loading import build_info
from mmvim_ops.scan_inputs import BlockWeights, MixerWeights, ScanInputs

tag_cached_graphs()

__all__ = [
    'BACKENDS',
    'BackendStatus',
    'BlockWeights',
    'MixerWeights',
    'ScanInputs',
    'add_rms_norm',
    'available_backends',
    'bi_conv1d_silu',
    'bidirectional_selective_scan',
    'build_info',
    'conv1d_silu',
    'selective_scan',
    'vim_block',
    'vim_inner',
]
