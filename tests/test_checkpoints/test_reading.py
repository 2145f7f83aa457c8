"""Checkpoint files: what is read, and what is refused before it can do harm."""

import argparse
import builtins
import collections
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint, save_checkpoint

from mmvim.checkpoints import load_checkpoint_file
from mmvim.checkpoints.reading import read_checkpoint, read_weights
from mmvim.errors import UserError


def mmengine_checkpoint():
    """What mmengine's CheckpointHook saves, with a log history in it."""
    hub = MessageHub.get_instance('test_compat')
    hub.update_scalar('train/loss', 0.5)
    hub.update_scalar('train/loss', np.float32(0.25).item())
    hub.update_info('names', ('a', 'b'))
    return dict(
        meta=dict(epoch=0, iter=3, seed=0),
        state_dict=collections.OrderedDict(weight=torch.arange(3.0)),
        optimizer=dict(state={}, param_groups=[dict(lr=0.1, betas=(0.9, 0.999))]),
        message_hub=hub.state_dict(),
        best=np.float64(0.5),
    )


def test_mmengine_checkpoint_with_history_loads(tmp_path):
    file = tmp_path / 'epoch.pth'
    save_checkpoint(mmengine_checkpoint(), str(file))
    loaded = CheckpointLoader.load_checkpoint(str(file), map_location='cpu')
    assert torch.equal(loaded['state_dict']['weight'], torch.arange(3.0))
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert history.data[0].tolist() == [0.5, 0.25]
    assert history.statistics('mean') == 0.375
    assert loaded['best'] == 0.5


def test_checkpoint_needs_the_repair(tmp_path):
    """Plain torch.load refuses such a file: the repair is needed, and it stays scoped."""
    file = tmp_path / 'epoch.pth'
    torch.save(mmengine_checkpoint(), file)
    allowed = set(torch.serialization.get_safe_globals())
    load_checkpoint_file(file)
    assert set(torch.serialization.get_safe_globals()) == allowed
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file)


class Payload:
    """Unpickles by calling a function of the attacker's choice."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_state(target):
    """Ways to write ``target`` while a checkpoint is loaded."""
    return {
        'exec': Payload(builtins.exec, f"open({str(target)!r}, 'w').write('x')"),
        'system': Payload(os.system, f'touch {target}'),
        'getattr': Payload(getattr, HistoryBuffer, '__init__'),
        'getattr_other': Payload(getattr, np.ndarray, 'mean'),
    }


@pytest.mark.parametrize('way', ['exec', 'system', 'getattr', 'getattr_other'])
@pytest.mark.parametrize('loader', ['mmengine', 'mmvim'])
def test_hostile_checkpoint_is_refused(tmp_path, way, loader):
    file, target = tmp_path / 'hostile.pth', tmp_path / 'written'
    torch.save(dict(state_dict={}, meta=hostile_state(target)[way]), file)
    load = {
        'mmengine': lambda: load_checkpoint(torch.nn.Linear(1, 1), str(file)),
        'mmvim': lambda: load_checkpoint_file(file),
    }[loader]
    with pytest.raises(pickle.UnpicklingError):
        load()
    assert not target.exists()


def test_hostile_checkpoint_would_write_without_the_guard(tmp_path):
    """The attack above is a real one: an unsafe load runs it."""
    target = tmp_path / 'written'
    file = tmp_path / 'hostile.pth'
    torch.save(hostile_state(target)['exec'], file)
    torch.load(file, weights_only=False)
    assert target.read_text() == 'x'


def test_hostile_walk_to_globals_is_refused(tmp_path):
    """getattr(getattr(HistoryBuffer, '__init__'), '__globals__') opens every door; not here."""
    inner = (
        b'cbuiltins\ngetattr\n(cmmengine.logging.history_buffer\nHistoryBuffer\n'
        b'X\x08\x00\x00\x00__init__tR'
    )
    walk = b'\x80\x02cbuiltins\ngetattr\n(' + inner + b'X\x0b\x00\x00\x00__globals__tR.'
    assert isinstance(pickle.loads(walk), dict)  # with the plain getattr it works
    buffer = io.BytesIO()
    torch.save({}, buffer)
    file = tmp_path / 'hostile.pth'
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(file, 'w') as crafted:
        for name in source.namelist():
            data = walk if name.endswith('data.pkl') else source.read(name)
            crafted.writestr(name, data)
    with pytest.raises(pickle.UnpicklingError, match='__init__'):
        load_checkpoint_file(file)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        load_checkpoint_file(tmp_path / 'nowhere.pth')


def test_published_training_checkpoints_hold_their_arguments(tmp_path):
    """DeiT's training script, on which the published one is built, saves its Namespace."""
    weights = {'module.norm_f.weight': torch.ones(2)}
    held = dict(model=weights, model_ema={}, epoch=3, args=argparse.Namespace(lr=0.1, name='vim'))
    torch.save(held, tmp_path / 'vim.pth')
    assert list(read_weights(str(tmp_path / 'vim.pth'))) == ['norm_f.weight']
    assert read_checkpoint(str(tmp_path / 'vim.pth'))['args'].lr == 0.1
    # Nowhere else than here.
    with pytest.raises(Exception, match='Namespace'):
        torch.load(tmp_path / 'vim.pth', weights_only=True)


def test_arguments_that_run_something_are_refused(tmp_path):
    arguments = argparse.Namespace(lr=Payload(os.system, f'touch {tmp_path / "written"}'))
    torch.save(dict(model={'a': torch.ones(1)}, args=arguments), tmp_path / 'vim.pth')
    with pytest.raises(UserError, match=r'vim\.pth is refused: .* GLOBAL \w+\.system'):
        read_weights(str(tmp_path / 'vim.pth'))
    assert not (tmp_path / 'written').exists()


def test_entries_without_a_name_are_no_weights(tmp_path):
    torch.save({7: {'a': torch.ones(1)}, 8: {'a': torch.ones(1)}}, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='it holds a dict of 7, 8, but no weights'):
        read_checkpoint(str(tmp_path / 'a.pth'))


@pytest.mark.parametrize(
    'weights, says',
    [
        ({7: torch.ones(1)}, 'the key 7 of its weights'),
        ([torch.ones(1)], 'its weights are a list'),
        (torch.ones(1), 'its weights are a Tensor'),
    ],
)
def test_weights_of_no_use_are_refused_before_a_run(tmp_path, weights, says):
    torch.save(dict(state_dict=weights, extra=torch.ones(1), meta={}), tmp_path / 'a.pth')
    with pytest.raises(UserError, match=rf'a\.pth is no checkpoint .*{says}'):
        read_checkpoint(str(tmp_path / 'a.pth'))
