"""Backbones with every kind of tap, to be trained for a few steps in two processes."""

import gc
import itertools

import torch
import torch.distributed as torch_dist
from torch.nn.parallel import DistributedDataParallel

from mmvim.models import VisionMamba, VMamba

ARCH = dict(embed_dims=8, num_layers=4, d_state=2)
# Out of the order of blocks, and none of them the last.
TAPS = [(-1,), (1,), (2, 0), (0,)]
OUTPUTS = [('residual', 'none'), ('residual', 'last'), ('residual', 'all'), ('mixer', 'none')]
CASES = [
    dict(out_indices=taps, tap=tap, out_norm=norm)
    for taps, (tap, norm) in itertools.product(TAPS, OUTPUTS)
]
CASES += [
    dict(out_indices=1, cls_token=cls_token, out_type=out_type, direction='none')
    for cls_token, out_type in itertools.product(
        ['none', 'head', 'middle', 'double'],
        ['featmap', 'cls_token', 'avg_featmap', 'featmap_cls', 'raw'],
    )
    if cls_token != 'none' or 'cls' not in out_type
]
CASES += [
    dict(out_indices=1, **options)
    for options in (
        *(dict(frozen_stages=k) for k in range(5)),
        *(dict(rope=rope) for rope in ('hidden', 'both')),
        dict(drop_path_rate=0.9, layer_scale_init=0.1, with_cp=True),
        *(dict(direction=name) for name in ('sequence', 'block', 'block_published')),
        dict(direction='ssm', pos_embed=False),
    )
]
VMAMBA = dict(dims=8, depths=(1, 2, 1))
CASES += [
    dict(arch=VMAMBA) | options
    for options in (
        *(
            dict(out_indices=taps, out_norm=norm)
            for taps in [(0, 1, 2), (1,), (2, 0)]
            for norm in ('none', 'last', 'all')
        ),
        *(dict(out_indices=1, frozen_stages=k) for k in range(4)),
        *(dict(out_indices=1, out_type=out_type) for out_type in VMamba.OUT_TYPES),
        dict(out_indices=(0, 1, 2), drop_path_rate=0.9, with_cp=True),
        dict(arch=VMamba.arch_zoo['v0_tiny'] | VMAMBA | dict(d_state=2), out_indices=2),
    )
]


def build(options):
    torch.manual_seed(0)
    if 'arch' in options:
        return VMamba(img_size=16, **options)
    return VisionMamba(ARCH, img_size=16, patch_size=8, **options)


def loss_of(outs):
    """Of every number that the backbone gives."""
    tensors = (part for out in outs for part in (out if isinstance(out, tuple) else (out,)))
    return sum(part.square().mean() for part in tensors)


def train_in_process(rank, folder):
    """Three steps of each model in one of two processes."""
    store = torch_dist.FileStore(f'{folder}/store', 2)
    torch_dist.init_process_group('gloo', store=store, rank=rank, world_size=2)
    for options in CASES:
        _train(options)
    # A wrapper that outlives its group ends gloo's threads while it holds the lock of Python,
    # which they wait for.
    gc.collect()
    torch_dist.destroy_process_group()


def _train(options):
    model = build(options)
    if not any(p.requires_grad for p in model.parameters()):
        return
    wrapped = DistributedDataParallel(model)
    for _ in range(3):
        loss_of(wrapped(torch.randn(1, 3, 16, 16))).backward()
