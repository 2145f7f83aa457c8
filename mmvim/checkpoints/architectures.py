"""The architecture of a checkpoint, told by its keys."""

from __future__ import annotations

import re
from collections.abc import Collection

from mmvim.errors import UserError

# Name -> patterns that all have to be found among the keys; the first that fits counts. Keys may
# begin with anything (module., backbone., encoder.).
_ARCHITECTURES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ('VMamba', (r'layers\.\d+\.blocks\.\d+\.(op|self_attention)\.(A_logs|Ds|x_proj_weight)$',)),
    (
        'a Mamba language model',
        (r'(^|\.)embeddings?\.weight$', r'layers\.\d+\.mixer\.(A_log|dt_bias)$'),
    ),
    ('Swin Transformer', (r'\.blocks\.\d+\.attn\.(w_msa\.)?relative_position_bias_table$',)),
    ('BEiT', (r'(blocks|layers)\.\d+\.attn\.(q_bias|relative_position_bias_table)$',)),
    ('MAE, encoder and decoder', (r'(^|\.)mask_token$', r'(^|\.)decoder_(blocks|embed|layers)\.')),
    (
        'DeiT with a distillation token',
        (r'(^|\.)dist_token$', r'(blocks|layers)\.\d+\.attn\.qkv\.weight$'),
    ),
    (
        'DeiT, MAE (its encoder) or another plain ViT, which share their keys',
        (r'(blocks|layers)\.\d+\.attn\.qkv\.weight$',),
    ),
    (
        'a ViT of the transformers library',
        (r'encoder\.layers?\.\d+\.(attention\.attention\.query|self_attn\.q_proj)\.weight$',),
    ),
    ('ConvNeXt', (r'stages\.\d+\.(blocks\.)?\d+\.(dwconv|conv_dw|depthwise_conv)\.weight$',)),
    ('ResNet', (r'(^|\.)layer1\.0\.conv1\.weight$',)),
    ('Vim', (r'layers\.\d+\.mixer\.A_log$',)),
)


def foreign_architecture(keys: Collection[str], own: str = 'Vim') -> str | None:
    """Name the architecture of a checkpoint that is not the one expected.

    Args:
        keys (Collection[str]): Of its state dict.
        own (str): The one that is. Defaults to 'Vim'.

    Returns:
        str | None: The name; None for ``own`` and for what is not known.
    """
    for name, patterns in _ARCHITECTURES:
        if all(any(re.search(pattern, key) for key in keys) for pattern in patterns):
            return None if name == own else name
    return None


def refuse_foreign(keys: Collection[str], own: str = 'Vim') -> None:
    """Raise UserError if a state dict is known to be of another architecture, which is named."""
    name = foreign_architecture(keys, own)
    if name is not None:
        raise UserError(f'no {own} checkpoint: its keys are those of {name}')
