"""Architectures told by their keys."""

import pytest

from mmvim.checkpoints import to_official
from mmvim.checkpoints.architectures import foreign_architecture
from mmvim.models import VisionMamba

VIT = ['cls_token', 'pos_embed', 'patch_embed.proj.weight', 'blocks.0.norm1.weight']
VIT += ['blocks.0.attn.qkv.weight', 'blocks.0.mlp.fc1.weight', 'norm.weight', 'head.weight']
# Some keys of released files, as their papers' repositories name the parameters.
RELEASED = {
    'DeiT, MAE (its encoder) or another plain ViT': VIT,
    'DeiT with a distillation token': [*VIT, 'dist_token', 'head_dist.weight'],
    'MAE, encoder and decoder': [*VIT[:-1], 'mask_token', 'decoder_blocks.0.attn.qkv.weight'],
    'BEiT': [*VIT, 'mask_token', 'blocks.0.attn.q_bias', 'blocks.0.gamma_1'],
    'VMamba': [
        'patch_embed.0.weight',
        'layers.0.blocks.0.norm.weight',
        'layers.0.blocks.0.op.A_logs',
        'layers.0.blocks.0.op.x_proj_weight',
        'classifier.head.weight',
    ],
    'a Mamba language model': [
        'backbone.embedding.weight',
        'backbone.layers.0.mixer.A_log',
        'backbone.layers.0.mixer.in_proj.weight',
        'backbone.norm_f.weight',
        'lm_head.weight',
    ],
    'Swin Transformer': [
        'patch_embed.proj.weight',
        'layers.0.blocks.0.attn.relative_position_bias_table',
        'layers.0.blocks.0.attn.qkv.weight',
    ],
    'a ViT of the transformers library': [
        'vit.embeddings.cls_token',
        'vit.encoder.layer.0.attention.attention.query.weight',
    ],
    'ResNet': ['conv1.weight', 'layer1.0.conv1.weight', 'fc.weight'],
    'ConvNeXt': ['downsample_layers.0.0.weight', 'stages.0.0.dwconv.weight'],
}


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.'])
@pytest.mark.parametrize('name', RELEASED)
def test_others_are_named(name, prefix):
    found = foreign_architecture([prefix + key for key in RELEASED[name]])
    assert found is not None and found.startswith(name)


@pytest.mark.parametrize('direction', VisionMamba.DIRECTIONS)
def test_vim_is_not_foreign(direction):
    model = VisionMamba('nano', direction=direction, layer_scale_init=1.0)
    assert foreign_architecture(model.state_dict()) is None
    assert foreign_architecture(to_official(model.state_dict())) is None


def test_unknown_keys_have_no_name():
    assert foreign_architecture(['hidden.weight', 'hidden.bias']) is None
    assert foreign_architecture([]) is None
