"""Models that are built on the meta device and get their memory later."""

import copy

import pytest
import torch
import torch.distributed as dist
from mmengine.model import BaseModule
from torch import nn
from torch.distributed import fsdp
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from mmvim.models import MaxPoolClsHead, SimpleFPN, VisionMamba

ARCH = dict(embed_dims=64, num_layers=4, d_state=8)
BUILDERS = {
    'backbone': lambda: VisionMamba(ARCH, img_size=(64, 96), rope='both', layer_scale_init=0.3),
    'bare backbone': lambda: VisionMamba(
        dict(ARCH, proj_bias=True), cls_token='none', pos_embed=False, direction='ssm'
    ),
    'other norms': lambda: VisionMamba(
        ARCH, norm_cfg=dict(type='LN'), out_norm='all', cls_token='double'
    ),
    'neck': lambda: SimpleFPN(in_channels=64, out_channels=32),
    'neck with BN': lambda: SimpleFPN(in_channels=64, out_channels=32, norm_cfg=dict(type='BN')),
}


def head():
    pytest.importorskip('mmpretrain')
    return MaxPoolClsHead(num_classes=500, in_channels=200)


class Model(BaseModule):
    """As the models of OpenMMLab hold their parts."""

    def __init__(self, part):
        super().__init__()
        self.part = part


def emptied(build):
    """In a model that gets its memory late."""
    with torch.device('meta'):
        model = Model(build())
    torch.manual_seed(1)
    return model.to_empty(device='cpu')


def statistics(module):
    """What an initialisation promises: mean and spread of every tensor."""
    state = {name: value.double() for name, value in module.state_dict().items()}
    return {
        name: (value.mean().item(), value.std(correction=0).item(), value.abs().max().item())
        for name, value in state.items()
    }


@pytest.mark.parametrize('name', [*BUILDERS, 'head'])
def test_deferred_initialisation_is_the_constructors(name):
    build = BUILDERS.get(name, head)
    torch.manual_seed(0)
    usual = Model(build())
    usual.init_weights()
    model = emptied(build)
    model.init_weights()
    wanted, found = statistics(usual), statistics(model)
    assert wanted.keys() == found.keys()
    for key, (mean, std, largest) in wanted.items():
        spread = 0.35 * largest + 1e-12  # of some thirty numbers at least
        assert found[key] == pytest.approx((mean, std, largest), abs=spread), key
    # It also replaces what was there.
    torch.nn.init.constant_(next(model.parameters()), 1e9)
    model.to_empty(device='cpu')
    assert max(param.abs().max() for param in model.parameters()) < 10


@pytest.mark.parametrize('name', ['backbone', 'neck with BN'])
def test_weights_that_are_loaded_stay(name):
    usual = Model(BUILDERS[name]())
    model = emptied(BUILDERS[name])
    model.load_state_dict(usual.state_dict())
    model.init_weights()
    copied = copy.deepcopy(model)
    for key, value in usual.state_dict().items():
        assert torch.equal(copied.state_dict()[key], value), key


def test_saved_files_load_again():
    """Whatever came first: initialised, trained, saved."""
    model = emptied(BUILDERS['backbone'])
    model.init_weights()
    state = model.part.state_dict()
    assert state['pos_embed_grid'].tolist() == [4, 6]
    again = BUILDERS['backbone']()
    again.load_state_dict(state)
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(again.eval()(x), model.part.eval()(x), rtol=0, atol=0)


def test_the_default_device_may_be_meta():
    state = BUILDERS['backbone']().state_dict()
    torch.set_default_device('meta')
    try:
        model = BUILDERS['backbone']()
        model.load_state_dict(state, assign=True)
    finally:
        torch.set_default_device(None)
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert model.state_dict()['pos_embed_grid'].tolist() == [4, 6]
    model(torch.randn(1, 3, 64, 96))


@pytest.mark.skipif(torch.cuda.is_available(), reason='shards over gloo')
@pytest.mark.skipif(not hasattr(fsdp, 'fully_shard'), reason='came with torch 2.6')
def test_sharded_models_are_loaded():
    """FSDP2, which shards before there is memory."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        state = BUILDERS['backbone']().state_dict()
        with torch.device('meta'):
            model = BUILDERS['backbone']()
        for block in model.layers:
            fsdp.fully_shard(block)
        fsdp.fully_shard(model)
        model.to_empty(device='cpu')
        set_model_state_dict(model, dict(state), options=StateDictOptions(full_state_dict=True))
        for name, param in model.named_parameters():
            assert torch.equal(param.full_tensor(), state[name]), name
        reference = BUILDERS['backbone']()
        reference.load_state_dict(state)
        x = torch.randn(1, 3, 64, 96)
        torch.testing.assert_close(model.eval()(x), reference.eval()(x))
    finally:
        dist.destroy_process_group()


def test_what_cannot_be_drawn_is_said(capfd):
    with torch.device('meta'):
        model = BUILDERS['backbone']()
    with pytest.raises(NotImplementedError, match='meta tensor'):
        model.init_weights()
    # As FSDP draws module by module, parents first: the children's own draw would come last.
    for module in (model, model.layers[0].mixer):
        module.to_empty(device='cpu', recurse=False)
        with pytest.raises(RuntimeError, match=r'a part of .* is on the meta device'):
            module.reset_parameters()
    with pytest.raises(RuntimeError, match="'device' arg"):
        nn.utils.skip_init(VisionMamba, arch=ARCH)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    model = BUILDERS['backbone']()
    model.layers[0].adapter = Own()
    model.to_empty(device='cpu')
    assert 'Own: without reset_parameters(), or sharded' in capfd.readouterr().out
