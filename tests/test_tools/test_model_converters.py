"""tools/model_converters: files in and out, the table, the digest, refusals."""

import argparse
import errno
import hashlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from mmvim.checkpoints import to_official
from mmvim.cli import converter
from mmvim.models import VisionMamba

Run = Callable[..., Any]
IN, OUT = 'model_converters/official_to_mmvim', 'model_converters/mmvim_to_official'
ARCH = dict(embed_dims=16, num_layers=2, d_state=4)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Those of ``vim.pth``, which the published training would have saved."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    weights = to_official(VisionMamba(ARCH, img_size=64).state_dict())
    weights |= {'head.weight': torch.randn(5, 16), 'head.bias': torch.randn(5)}
    arguments = argparse.Namespace(lr=1e-3, model='vim_tiny')
    torch.save({'model': weights, 'optimizer': {}, 'epoch': 299, 'args': arguments}, 'vim.pth')
    return weights


def convert(run: Run, *arguments: Any) -> Any:
    """Run the converter to our keys on a file of a middle token, as the published ones are."""
    return run(IN, *arguments, '--cls-token', 'middle')


def same(file: str, weights: dict[str, torch.Tensor]) -> bool:
    found = load_file(file) if file.endswith('.safetensors') else torch.load(file)['model']
    return found.keys() == weights.keys() and all(torch.equal(found[k], weights[k]) for k in found)


@pytest.mark.parametrize('middle', ['ours.pth', 'folder/ours.safetensors'])
@pytest.mark.parametrize('end', ['back.pth', 'back.safetensors'])
def test_there_and_back(run: Run, weights: dict[str, torch.Tensor], middle: str, end: str) -> None:
    outcome = convert(run, 'vim.pth', middle)
    assert outcome.code == 0, outcome.err
    digest = hashlib.sha256(Path(middle).read_bytes()).hexdigest()
    assert f'SHA-256 {digest}' in outcome.out
    assert f'{middle}: {len(weights) + 2} tensors' in outcome.out  # class row and grid
    assert re.search(r'head\.weight +head\.fc\.weight +1 +\(5, 16\) +renamed', outcome.out)
    assert re.search(
        r'layers\.\*\.mixer\.A_log +backbone\.layers\.\*\.mixer\.A_log +2 ', outcome.out
    )
    assert 'Vim of its own size: 2 blocks of 16 channels, 4×4 patches of 16×16' in outcome.out
    assert 'left behind, beside the weights: optimizer, epoch, args' in outcome.out
    assert run(OUT, middle, end).code == 0
    assert same(end, weights)


def test_the_classifier_file_is_mmpretrains(run: Run, weights: dict[str, torch.Tensor]) -> None:
    models = pytest.importorskip('mmpretrain.models')
    assert convert(run, 'vim.pth', 'ours.pth').code == 0
    held = torch.load('ours.pth')
    assert held['meta'] == dict(cls_token='middle')
    backbone = VisionMamba(ARCH, img_size=64, out_type='cls_token')
    model = models.ImageClassifier(backbone, head=models.LinearClsHead(5, 16))
    model.load_state_dict(held['state_dict'], strict=True)


def test_backbone_alone_of_any_source(run: Run, weights: dict[str, torch.Tensor]) -> None:
    save_file({key: value.contiguous() for key, value in weights.items()}, 'vim.safetensors')
    for source in ('vim.pth', 'vim.safetensors'):
        outcome = convert(run, source, 'bare.pth', '--backbone-only', '--overwrite')
        assert outcome.code == 0
        assert re.search(r'head\.weight +– +1 +\(5, 16\) +dropped', outcome.out)
        model = VisionMamba(ARCH, img_size=64)
        model.load_state_dict(torch.load('bare.pth')['state_dict'], strict=True)
        assert torch.equal(model.norm_f.weight, weights['norm_f.weight'])


def test_resized_to_a_stride_or_a_size(run: Run, weights: dict[str, torch.Tensor]) -> None:
    for arguments, grid in (
        (('--patch-stride', 8), (27, 27)),
        (('--img-size', 96), (6, 6)),
        (('--img-size', 64, 96, '--patch-stride', 8), (7, 11)),
        (('--img-size', 64), (4, 4)),
    ):
        outcome = convert(run, 'vim.pth', 'ours.pth', '--overwrite', *arguments)
        assert outcome.code == 0, outcome.err
        state = torch.load('ours.pth')['state_dict']
        assert tuple(state['backbone.pos_embed_grid'].tolist()) == grid
        assert state['backbone.pos_embed'].shape == (1, grid[0] * grid[1], 16)
        assert f'{grid[0]}×{grid[1]} patches of 16×16' in outcome.out
        text = 'position embedding resized from 4×4 (bicubic)'
        assert (text in outcome.out) == (grid != (4, 4))


def test_same_input_same_digest(run: Run, weights: dict[str, torch.Tensor]) -> None:
    lines = [
        [line for line in convert(run, 'vim.pth', name).out.splitlines() if 'SHA-256' in line]
        for name in ('one.pth', 'two.pth')
    ]
    assert len(lines[0]) == 1 and lines[0] == lines[1]


def test_outputs_are_kept(run: Run, weights: dict[str, torch.Tensor]) -> None:
    Path('kept.pth').write_text('mine')
    outcome = convert(run, 'vim.pth', 'kept.pth')
    assert outcome.code == 1
    assert outcome.sentence == 'kept.pth exists: give another name, or --overwrite to replace it'
    outcome = convert(run, 'vim.pth', './vim.pth', '--overwrite')
    assert (outcome.code, 'is the checkpoint to convert' in outcome.sentence) == (2, True)
    outcome = convert(run, 'vim.pth', 'ours.onnx')
    assert (outcome.code, 'must end in .pth or .safetensors' in outcome.sentence) == (2, True)
    # A conversion that fails leaves what was there.
    outcome = run(IN, 'vim.pth', 'kept.pth', '--overwrite', '--cls-token', 'none')
    assert outcome.code == 1
    assert outcome.sentence.startswith("vim.pth: the checkpoint has the class tokens ['cls_token']")
    assert Path('kept.pth').read_text() == 'mine'
    assert convert(run, 'vim.pth', 'kept.pth', '--overwrite').code == 0
    assert sorted(path.name for path in Path().iterdir()) == ['kept.pth', 'vim.pth']


def test_a_full_disk_is_one_sentence(
    run: Run, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(converter, 'write_atomically', full)
    outcome = convert(run, 'vim.pth', 'ours.pth')
    assert outcome.code == 1
    assert outcome.sentence == 'ours.pth cannot be written (No space left on device)'


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_packed_weights_are_compact_and_always_the_same(suffix: str) -> None:
    """Slices and shared tensors are stored on their own, whatever they were cut from."""
    whole = torch.arange(100_000.0).reshape(100, 1000)
    weights = {'slice': whole[3:5], 'turned': whole[:2].T, 'again': whole[3:5]}
    packed = converter.pack_weights(weights, suffix, 'model', dict(cls_token='head'))
    assert len(packed) < 40_000
    assert converter.pack_weights(weights, suffix, 'model', dict(cls_token='head')) == packed
    if suffix == '.safetensors':
        found = load(packed)
    else:
        held = torch.load(io.BytesIO(packed))
        assert held.pop('meta') == dict(cls_token='head') and list(held) == ['model']
        found = held['model']
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value) for key, value in weights.items())


@pytest.mark.parametrize('middle', ['ours.pth', 'ours.safetensors'])
def test_a_head_token_comes_back_without_being_named_again(
    run: Run, weights: dict[str, torch.Tensor], middle: str
) -> None:
    """No tensor tells head from middle: the tools ask, and remember what they were told."""
    for tool, source in ((IN, 'vim.pth'), (OUT, 'bare.pth')):
        if tool == OUT:
            state = VisionMamba(ARCH, img_size=64, cls_token='head').state_dict()
            torch.save(dict(state_dict=state, meta=dict(epoch=3)), source)
        outcome = run(tool, source, 'out.pth')
        assert outcome.code == 2
        assert outcome.sentence.startswith(f'{source}: it has one class token, and no file tells')
    assert run(IN, 'vim.pth', middle, '--cls-token', 'head').code == 0
    outcome = run(OUT, middle, 'back.pth', '--cls-token', 'middle')
    assert outcome.code == 1
    assert '--cls-token middle contradicts the file, whose meta says head' in outcome.sentence
    for arguments in ((), ('--cls-token', 'head', '--overwrite')):
        assert run(OUT, middle, 'back.pth', *arguments).code == 0
        assert same('back.pth', weights)
    assert run(IN, 'back.pth', 'again.pth').code == 0  # which notes it too
    assert torch.load('again.pth')['meta']['cls_token'] == 'head'
    for noted in (5, ['middle']):
        torch.save(dict(model=weights, meta=dict(cls_token=noted)), 'odd.pth')
        assert f'its meta has cls_token={noted}' in run(IN, 'odd.pth', 'out.pth').sentence


@pytest.mark.parametrize('cls_token', ['none', 'double'])
def test_other_placements_are_told_by_the_tensors(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls_token: str
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = to_official(
        VisionMamba(ARCH, img_size=64, cls_token=cls_token).state_dict(), cls_token
    )
    torch.save(dict(model=weights), 'vim.pth')
    assert run(IN, 'vim.pth', 'ours.pth', '--backbone-only').code == 0
    state = torch.load('ours.pth')['state_dict']
    torch.save(dict(state_dict=state), 'bare.pth')  # without the note
    assert run(OUT, 'bare.pth', 'back.pth').code == 0
    assert same('back.pth', weights)


def spoilt(weights: dict[str, torch.Tensor], how: str) -> dict[Any, Any]:
    """What an attacker or an accident may leave in a file."""
    rows = weights['pos_embed']
    return {
        'integer key': {**weights, 7: torch.ones(1)},
        'sparse': {**weights, 'norm_f.weight': weights['norm_f.weight'].to_sparse()},
        'meta device': {**weights, 'norm_f.weight': weights['norm_f.weight'].to('meta')},
        'quantized': {
            **weights,
            'norm_f.weight': torch.quantize_per_tensor(torch.ones(16), 0.1, 0, torch.qint8),
        },
        'repeated': {**weights, 'pos_embed': torch.ones(1).expand(1, 10**9, 16)},
        'string': {**weights, 'pos_embed': 'rows'},
        'scalar': {**weights, 'pos_embed': torch.tensor(3.0)},
        'complex': {**weights, 'pos_embed': rows.to(torch.complex64)},
        'scalar head': {**weights, 'head.weight': torch.tensor(3.0)},
        'flat': {**weights, 'pos_embed': rows[0]},
        'scalar token': {**weights, 'cls_token': torch.tensor(3.0)},
        'narrow token': {**weights, 'cls_token': torch.ones(1, 1, 3)},
        'no rows': {**weights, 'pos_embed': rows[:, :0]},
        'far block': {**weights, 'layers.1000000000.norm.weight': torch.ones(16)},
        'flat A': {**weights, 'layers.0.mixer.A_log': torch.ones(32)},
        'empty patch': {**weights, 'patch_embed.proj.weight': torch.ones(16, 3, 0, 0)},
        'narrow A': {**weights, 'layers.0.mixer.A_log': torch.ones(3, 4)},
    }[how]


@pytest.mark.parametrize(
    'how, says',
    [
        ('integer key', 'the key 7 of its weights is no name of a parameter'),
        ('sparse', 'norm_f.weight is no dense tensor'),
        ('meta device', 'norm_f.weight is a tensor without content'),
        ('quantized', 'norm_f.weight is no dense tensor of plain numbers'),
        ('repeated', 'pos_embed is one of 16000000000 numbers, of which the file has few'),
        ('string', 'pos_embed is of type str, and no tensor'),
        ('scalar', 'cls_token (1, 1, 16) of torch.float32, pos_embed ()'),
        ('complex', 'pos_embed (1, 17, 16) of torch.complex64'),
        ('scalar head', 'the classifier is not whole: its weight of shape ()'),
        ('flat', 'pos_embed (17, 16)'),
        ('scalar token', 'cls_token ()'),
        ('narrow token', 'cls_token (1, 1, 3)'),
        ('no rows', 'holds no 1 class token'),
        ('far block', 'it has a block 1000000000 among'),
        ('flat A', 'layers.0.mixer.A_log of shape (32,) has not 2 axes'),
        ('empty patch', 'of shape (16, 3, 0, 0) has not 4 axes with something in each'),
        ('narrow A', "arch['expand'] must be a positive int"),
    ],
)
def test_spoilt_files_are_refused_in_one_sentence(
    run: Run, weights: dict[str, torch.Tensor], how: str, says: str
) -> None:
    torch.save({'model': spoilt(weights, how)}, 'spoilt.pth')
    outcome = convert(run, 'spoilt.pth', 'out.pth', '--patch-stride', 8)
    assert outcome.code == 1, outcome.err
    assert outcome.sentence.startswith('spoilt.pth') and says in outcome.sentence


@pytest.mark.parametrize(
    'key, value, says',
    [
        ('pos_embed_grid', torch.tensor([3, 5]), 'got tensor([3, 5])'),
        ('pos_embed_grid', torch.tensor([-4, -4]), 'got tensor([-4, -4])'),
        ('pos_embed_grid', torch.tensor(4), 'got tensor(4)'),
        ('pos_embed_grid', torch.ones(9, 9), 'got a tensor of shape (9, 9)'),
        ('pos_embed_grid', 'square', 'pos_embed_grid is of type str'),
        ('pos_embed', torch.tensor(3.0), 'pos_embed ()'),
        ('cls_pos_embed', torch.ones(1, 3, 16), 'has 1 class tokens, got 3'),
        ('cls_token', torch.tensor(3.0), 'cls_token ()'),
    ],
)
def test_spoilt_files_of_ours_are_refused_in_one_sentence(
    run: Run, weights: dict[str, torch.Tensor], key: str, value: Any, says: str
) -> None:
    state: dict[str, Any] = VisionMamba(ARCH, img_size=64).state_dict()
    torch.save({'state_dict': {**state, key: value}}, 'spoilt.pth')
    outcome = run(OUT, 'spoilt.pth', 'out.pth', '--cls-token', 'middle')
    assert outcome.code == 1, outcome.err
    assert outcome.sentence.startswith('spoilt.pth') and says in outcome.sentence


@pytest.mark.parametrize(
    'name, keys',
    [
        ('DeiT, MAE', ['patch_embed.proj.weight', 'cls_token', 'blocks.0.attn.qkv.weight']),
        ('MAE, encoder and decoder', ['mask_token', 'decoder_embed.weight']),
        ('Swin', ['layers.0.blocks.0.attn.relative_position_bias_table']),
    ],
)
def test_other_architectures_are_refused_by_name(
    run: Run, weights: dict[str, torch.Tensor], name: str, keys: list[str]
) -> None:
    torch.save({'model': {key: torch.ones(1, 1, 4) for key in keys}}, 'other.pth')
    for tool in (IN, OUT):
        outcome = run(tool, 'other.pth', 'out.pth')
        assert outcome.code == 1
        says = f'other.pth: no Vim checkpoint: its keys are those of {name}'
        assert outcome.sentence.startswith(says)
    assert not Path('out.pth').exists()


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ('touch written',)


def test_bad_files_and_numbers(run: Run, weights: dict[str, torch.Tensor]) -> None:
    torch.save({'model': weights, 'args': Hostile()}, 'hostile.pth')
    assert 'hostile.pth is refused' in convert(run, 'hostile.pth', 'out.pth').sentence
    assert not Path('written').exists()
    assert 'absent.pth does not exist' in convert(run, 'absent.pth', 'out.pth').sentence
    assert 'nothing to convert' in run(OUT, 'vim.pth', 'out.pth').sentence
    assert 'got 3 numbers' in convert(run, 'vim.pth', 'out.pth', '--img-size', 1, 2, 3).sentence
    for size in (10**6, 10**9):
        outcome = convert(run, 'vim.pth', 'out.pth', '--img-size', size)
        assert outcome.code == 2 and 'patches, more than the 1048576' in outcome.sentence
    for arguments in (('--img-size', 0), ('--patch-stride', -1)):
        outcome = convert(run, 'vim.pth', 'out.pth', *arguments)
        assert outcome.code == 2
        assert f'{arguments[0]} must be a positive int' in outcome.sentence
