"""Versions of what the ops run on, and what was compiled."""

from __future__ import annotations

import platform

import torch

from mmvim_ops import loading

__all__ = ['build_info']


def build_info() -> dict[str, str | None]:
    """Versions of what the ops run on, and what was compiled; None is what there is not."""
    found: dict[str, str | None] = {
        'torch': str(torch.__version__),
        'torch_cuda': torch.version.cuda,
        'python': platform.python_version(),
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'native_library': None,
    }
    path = loading.path()
    if path is None:
        return found
    facts = loading.info()
    cuda = facts['cuda']
    return found | {
        'native_library': str(path),
        'compiler': facts['compiler'],
        'torch_headers': facts['torch'],
        'sources': loading.sources_state(),
        'isas_built': ', '.join(facts['isas']),
        'isas_usable': ', '.join(loading.isas()),
        'isa': loading.isa(),
        'nvcc': cuda and cuda['nvcc'],
        'cuda_archs': cuda and ', '.join(cuda['archs']),
    }
