"""Every parameter that trains is used in every step, as distributed training needs it."""

import forked
import pytest
import torch
from tapped_backbones import CASES, build, loss_of, train_in_process
from torch import multiprocessing


@pytest.mark.parametrize('options', CASES, ids=str)
def test_gradients_reach_all_that_trains(options):
    model = build(options).train()
    loss = loss_of(model(torch.randn(2, 3, 16, 16)))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if trainable:
        loss.backward()
    assert not [name for name, param in trainable.items() if param.grad is None]


def test_two_processes_train(tmp_path):
    multiprocessing.start_processes(
        train_in_process, args=(tmp_path,), nprocs=2, start_method=forked.METHOD
    )


def test_blocks_behind_the_deepest_tap_are_skipped_when_loading():
    full = build(dict(out_indices=-1, out_norm='none'))
    model = build(dict(out_indices=(1, 0), out_norm='none'))
    assert len(model.layers) == 2 and model.num_layers == 4
    state = full.state_dict()
    model.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(RuntimeError, match=r'Unexpected.*layers\.4\.mixer\.D'):
        model.load_state_dict(state | {'layers.4.mixer.D': torch.ones(16)})
    every = build(dict(out_indices=(1, 0, 3), out_norm='none')).eval()
    every.load_state_dict(state)
    x = torch.randn(2, 3, 24, 16)
    for found, wanted in zip(model.eval()(x), every(x)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
