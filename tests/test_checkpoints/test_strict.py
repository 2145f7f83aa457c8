"""Weights against a model: every misfit in one sentence, whatever the file holds."""

import pytest
import torch
from torch import nn

from mmvim.checkpoints import load_strictly
from mmvim.errors import UserError
from mmvim.models import VisionMamba

ARCH = dict(embed_dims=16, num_layers=2, d_state=4)


@pytest.mark.parametrize(
    'key, value, says',
    [
        (7, torch.ones(1), 'the key 7 of its weights is no name'),
        ('norm_f.weight', torch.ones(16).to_sparse(), 'norm_f.weight is no dense tensor'),
        ('norm_f.weight', torch.ones(16, device='meta'), 'norm_f.weight is a tensor without'),
        ('pos_embed', 'rows', 'pos_embed is of type str, and no tensor'),
        ('pos_embed', torch.tensor(3.0), 'pos_embed'),
        ('pos_embed', torch.ones(16, 16), 'pos_embed'),
        ('pos_embed_grid', torch.tensor([3, 5]), 'pos_embed_grid'),
        ('pos_embed_grid', torch.tensor(4), 'pos_embed_grid'),
        ('pos_embed_grid', torch.ones(3), 'pos_embed_grid'),
    ],
)
def test_spoilt_weights_are_one_sentence(key, value, says):
    model = VisionMamba(ARCH, img_size=64)
    with pytest.raises(UserError) as caught:
        load_strictly(model, dict(state_dict={**model.state_dict(), key: value}), 'a.pth')
    assert str(caught.value).startswith('a.pth ') and says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_kinds_of_misfit_are_said_at_once():
    """Those that torch raises for, and those that it does not."""
    model = VisionMamba(ARCH, img_size=64)
    state = model.state_dict()
    del state['layers.0.mixer.D'], state['norm_f.weight']
    state |= {'extra': torch.ones(1), 'layers.1.mixer.D': torch.ones(3)}
    with pytest.raises(UserError) as caught:
        load_strictly(model, dict(state_dict=state), 'a.pth')
    assert str(caught.value) == (
        'a.pth does not fit the VisionMamba of this config: 2 keys missing (layers.0.mixer.D, '
        'norm_f.weight); 1 key unexpected (extra); 1 key of another shape (layers.1.mixer.D: (3) '
        'in the file, (32) in the model); use the config it was trained with'
    )


def test_a_position_embedding_of_another_grid_is_no_misfit():
    model, other = VisionMamba(ARCH, img_size=64), VisionMamba(ARCH, img_size=96)
    load_strictly(model, other.state_dict(), 'a.pth')
    state = other.state_dict() | {'layers.1.mixer.D': torch.ones(3)}
    with pytest.raises(UserError, match=r': 1 key of another shape \(layers\.1\.mixer\.D: '):
        load_strictly(model, dict(state_dict=state), 'a.pth')


def test_what_a_module_keeps_beside_tensors_is_loaded():
    class Counting(nn.Linear):
        count = 0

        def get_extra_state(self):
            return dict(count=self.count)

        def set_extra_state(self, state):
            self.count = state['count']

    source, target = Counting(1, 1), Counting(1, 1)
    source.count = 3
    load_strictly(target, source.state_dict(), 'a.pth')
    assert target.count == 3


def test_errors_of_other_libraries_are_passed_on():
    class Refusing(nn.Linear):
        def _load_from_state_dict(self, *args):
            args[-1].append('not on a Sunday')

    with pytest.raises(UserError, match=r'a\.pth does not fit the Refusing.*not on a Sunday'):
        load_strictly(Refusing(1, 1), nn.Linear(1, 1).state_dict(), 'a.pth')
