"""Files of weights: what is read, what is written, and that nothing half written stays."""

import argparse
import errno
import io
import os

import pytest
import torch
from safetensors.torch import load

from mmvim.checkpoints import files
from mmvim.checkpoints.files import pack_weights, read_weight_file, refuse_existing, write_hashed
from mmvim.errors import UserError


def test_published_training_checkpoints_hold_their_arguments(tmp_path):
    """DeiT's training script, on which the published one is built, saves its Namespace."""
    weights = {'module.norm_f.weight': torch.ones(2)}
    held = dict(model=weights, model_ema={}, epoch=3, args=argparse.Namespace(lr=0.1, name='vim'))
    torch.save(held, tmp_path / 'vim.pth')
    found = read_weight_file(str(tmp_path / 'vim.pth'))
    assert list(found.weights) == ['norm_f.weight']
    assert found.others == ['model_ema', 'epoch', 'args']
    # Nowhere else than here.
    with pytest.raises(Exception, match='Namespace'):
        torch.load(tmp_path / 'vim.pth', weights_only=True)


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f'touch {self.target}',)


def test_arguments_that_run_something_are_refused(tmp_path):
    arguments = argparse.Namespace(lr=Hostile(tmp_path / 'written'))
    torch.save(dict(model={'a': torch.ones(1)}, args=arguments), tmp_path / 'vim.pth')
    with pytest.raises(UserError, match=r'vim\.pth is refused: it asks for \w+\.system'):
        read_weight_file(str(tmp_path / 'vim.pth'))
    assert not (tmp_path / 'written').exists()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_packed_weights_are_compact_and_always_the_same(suffix):
    """Slices and shared tensors are stored on their own, whatever they were cut from."""
    whole = torch.arange(100_000.0).reshape(100, 1000)
    weights = {'slice': whole[3:5], 'turned': whole[:2].T, 'again': whole[3:5]}
    packed = pack_weights(weights, suffix, 'model', epoch=3)
    assert len(packed) < 40_000
    assert pack_weights(weights, suffix, 'model', epoch=3) == packed
    found = load(packed) if suffix == '.safetensors' else torch.load(io.BytesIO(packed))
    if suffix == '.pth':
        assert found.pop('epoch') == 3 and list(found) == ['model']
        found = found['model']
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value) for key, value in weights.items())


def test_other_suffixes():
    with pytest.raises(ValueError, match=r"one of .*got '\.onnx'"):
        pack_weights({}, '.onnx', 'model')


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, 'write_atomically', full)
    with pytest.raises(UserError, match=r'a\.pth cannot be written \(No space left on device\)'):
        write_hashed(tmp_path / 'a.pth', b'1')


def test_existing_files_are_kept(tmp_path):
    path = tmp_path / 'folder' / 'a.pth'
    refuse_existing(path, overwrite=False)
    assert write_hashed(path, b'abc').startswith('ba7816bf')  # NIST's example of SHA-256
    with pytest.raises(UserError, match='--overwrite'):
        refuse_existing(path, overwrite=False)
    refuse_existing(path, overwrite=True)
    assert path.read_bytes() == b'abc'
