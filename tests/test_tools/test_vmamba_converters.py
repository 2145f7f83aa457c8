"""tools/model_converters on files of VMamba."""

import re
from pathlib import Path

import pytest
import torch

from mmvim.checkpoints import read_weights, to_vmamba
from mmvim.models import VMamba

TOOLS = 'model_converters/official_to_mmvim', 'model_converters/mmvim_to_official'
ARCH = dict(dims=8, depths=(1, 1))
V0 = VMamba.arch_zoo['v0_tiny'] | ARCH | dict(d_state=2)


@pytest.mark.parametrize('arch', [ARCH, V0])
def test_converters_there_and_back(run, tmp_path, monkeypatch, arch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = VMamba(arch, out_indices=1, out_norm='last')
    weights = to_vmamba(model.state_dict())
    weights |= {
        'classifier.head.weight': torch.randn(3, 16),
        'classifier.head.bias': torch.randn(3),
    }
    # The head as a convolution of 1x1, as the channel-first models store it.
    stored = weights | {
        'classifier.head.weight': weights['classifier.head.weight'][:, :, None, None]
    }
    torch.save(dict(model=stored, epoch=1), 'vssm.pth')
    outcome = run(TOOLS[0], 'vssm.pth', 'ours.safetensors')
    assert outcome.code == 0, outcome.err
    assert 'VMamba of its own size: 1, 1 blocks of 8, 16 channels' in outcome.out
    assert '3 classes' in outcome.out and 'left behind, beside the weights: epoch' in outcome.out
    assert re.search(r'head\.weight +head\.fc\.weight +1 .*→.* changed', outcome.out)
    assert 'dropped' not in outcome.out and 'added' not in outcome.out
    found = read_weights('ours.safetensors')
    assert found.keys() == {f'backbone.{k}' for k in model.state_dict()} | {
        'head.fc.weight',
        'head.fc.bias',
    }
    outcome = run(TOOLS[1], 'ours.safetensors', 'back.pth')
    assert outcome.code == 0, outcome.err
    back = torch.load('back.pth')['model']
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    for tool, file in ((TOOLS[0], 'ours.safetensors'), (TOOLS[1], 'vssm.pth')):
        assert 'nothing to convert' in run(tool, file, 'again.pth').sentence
    outcome = run(TOOLS[0], 'vssm.pth', 'out.pth', '--cls-token', 'head')
    assert (outcome.code, 'it is of VMamba' in outcome.sentence) == (2, True)
    del weights['layers.0.blocks.0.op.Ds']
    torch.save(dict(model=weights), 'cut.pth')
    outcome = run(TOOLS[0], 'cut.pth', 'out.pth')
    assert outcome.sentence == (
        'cut.pth: the backbone is not whole: layers.0.blocks.0.op.Ds missing'
    )
    assert not Path('out.pth').exists()
