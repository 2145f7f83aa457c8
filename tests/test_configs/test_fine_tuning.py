"""Configs that start from a checkpoint of Vim: what is loaded, what is dropped, what trains."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from repository import load_config

from mmvim.checkpoints import to_official
from mmvim.errors import UserError
from mmvim.models import VisionMamba
from mmvim.models.pos_embed import resize_pos_embed

DENSE = 'upernet/vim-tiny_upernet_4xb8-60k_ade20k-512x512_from-in1k{}.py'


def scaled_down(name, folder):
    """A config divided by size alone, with its images, and a published classifier for it."""
    cfg = load_config(name)
    checkpoint = cfg.model.backbone.get('init_cfg')
    if name.startswith('vim/'):
        from scaled_down_classification import shrink, write_images
    else:
        from scaled_down import shrink, write_images
    shrink(cfg, folder)
    write_images(cfg)
    torch.manual_seed(1)
    source = VisionMamba(cfg.model.backbone.arch, img_size=32, out_type='cls_token')
    with torch.no_grad():
        for param in source.parameters():
            param.add_(0.02 * torch.randn_like(param))
    file = folder / 'vim.pth'
    width = source.embed_dims
    head = {'head.weight': torch.zeros(1000, width), 'head.bias': torch.zeros(1000)}
    torch.save(dict(model=to_official(source.state_dict()) | head), file)
    if checkpoint is not None:
        cfg.model.backbone.init_cfg = dict(checkpoint, checkpoint=str(file))
    return cfg, source


def trained(cfg):
    """The model after its one iteration, and what the log said at the start."""
    lines = []

    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    handler = Lines()
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        runner = Runner.from_cfg(cfg)
        logger = MMLogger.get_current_instance()
        logger.addHandler(handler)
        try:
            return runner.train(), '\n'.join(lines)
        finally:
            logger.removeHandler(handler)


def resized(source, backbone):
    return resize_pos_embed(source.pos_embed, source.grid_size, backbone.grid_size)


def test_load_from_of_a_dense_model_is_as_loud(tmp_path):
    """By the hook of the config, as the libraries' own tools run it."""
    pytest.importorskip('mmseg')
    cfg, source = scaled_down(DENSE.format(''), tmp_path)
    cfg.model.backbone.init_cfg = None
    cfg.param_scheduler = []
    cfg.optim_wrapper.optimizer.lr = 0.0
    cfg.load_from = str(tmp_path / 'vim.pth')
    model, log = trained(cfg)
    assert 'converted from the published keys, class token middle' in log
    assert 'not used by its backbone: cls_token, cls_pos_embed, norm_f.weight' in log
    assert 'not used by this model: head.weight, head.bias' in log
    assert 'left at their initial values: neck.* (' in log and 'decode_head.* (' in log
    assert 'do not match exactly' not in log
    name = 'layers.3.mixer.in_proj.weight'
    assert torch.equal(model.backbone.get_parameter(name).cpu(), source.get_parameter(name))
    assert torch.equal(model.backbone.pos_embed.detach().cpu(), resized(source, model.backbone))
    keys = ('cls_token', 'patch_embed.proj.weight', 'blocks.0.attn.qkv.weight')
    torch.save(dict(model=dict.fromkeys(keys, torch.ones(1))), tmp_path / 'vim.pth')
    with pytest.raises(UserError, match=r'vim\.pth: no Vim checkpoint: its keys are those of DeiT'):
        trained(cfg)


@pytest.mark.parametrize('frozen', [False, True])
def test_dense_model_from_a_classifier(frozen, tmp_path):
    pytest.importorskip('mmseg')
    cfg, source = scaled_down(DENSE.format('_frozen-pos-embed' if frozen else ''), tmp_path)
    # The warm-up begins at nothing.
    cfg.param_scheduler = []
    cfg.optim_wrapper.optimizer.lr = 0.1
    model, log = trained(cfg)
    for dropped in ('head.weight, head.bias', 'cls_token, cls_pos_embed, norm_f.weight'):
        assert dropped in log
    assert 'Resize pos_embed' in log and 'Loaded' in log
    backbone = model.backbone
    kept = torch.equal(backbone.pos_embed.detach().cpu(), resized(source, backbone).detach())
    assert kept == frozen
    name = 'layers.3.mixer.in_proj.weight'
    assert not torch.equal(backbone.get_parameter(name), source.get_parameter(name))


def test_linear_probe_trains_the_classifier_alone(tmp_path):
    pytest.importorskip('mmpretrain')
    cfg, source = scaled_down('vim/vim-tiny_linear-probe_8xb128-90e_in1k.py', tmp_path)
    model, _ = trained(cfg)
    training = {name for name, param in model.named_parameters() if param.requires_grad}
    assert training == {'head.fc.weight', 'head.fc.bias'}
    assert model.head.fc.bias.abs().max() > 0
    expected = dict(source.state_dict())
    expected['pos_embed'] = resized(source, model.backbone)
    expected['pos_embed_grid'] = torch.tensor(model.backbone.grid_size)
    state = model.backbone.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize('published', [False, True])
def test_larger_images_start_from_the_whole_classifier(published, tmp_path):
    pytest.importorskip('mmpretrain')
    cfg, source = scaled_down('vim/vim-tiny_8xb64-30e_in1k-384px.py', tmp_path)
    weights = {f'backbone.{key}': value for key, value in source.state_dict().items()}
    head = torch.randn(1000, source.embed_dims), torch.randn(1000)
    weights |= {'head.fc.weight': head[0], 'head.fc.bias': head[1]}
    held = dict(state_dict=weights)
    if published:
        heads = {'head.weight': head[0], 'head.bias': head[1]}
        held = dict(model=to_official(source.state_dict()) | heads)
    torch.save(held, tmp_path / 'whole.pth')
    cfg.load_from = str(tmp_path / 'whole.pth')
    cfg.optim_wrapper.optimizer.lr = 0.0
    model, _ = trained(cfg)
    assert model.backbone.grid_size > source.grid_size
    torch.testing.assert_close(model.head.fc.weight.detach(), head[0], rtol=0, atol=0)
    torch.testing.assert_close(
        model.backbone.pos_embed, resized(source, model.backbone), rtol=0, atol=0
    )
    full_size = load_config('vim/vim-tiny_8xb64-30e_in1k-384px.py')
    assert MODELS.build(full_size.model.backbone).grid_size == (24, 24)
