"""tools/model_converters: files in and out, the table, the digest, refusals."""

import argparse
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmvim.checkpoints import to_official
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


def same(file: str, weights: dict[str, torch.Tensor]) -> bool:
    found = load_file(file) if file.endswith('.safetensors') else torch.load(file)['model']
    return found.keys() == weights.keys() and all(torch.equal(found[k], weights[k]) for k in found)


@pytest.mark.parametrize('middle', ['ours.pth', 'folder/ours.safetensors'])
@pytest.mark.parametrize('end', ['back.pth', 'back.safetensors'])
def test_there_and_back(run: Run, weights: dict[str, torch.Tensor], middle: str, end: str) -> None:
    outcome = run(IN, 'vim.pth', middle)
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
    assert run(IN, 'vim.pth', 'ours.pth').code == 0
    held = torch.load('ours.pth')
    assert held['meta'].pop('mmvim_version')
    assert held['meta'] == dict(converted_from='vim.pth', cls_token='middle')
    backbone = VisionMamba(ARCH, img_size=64, out_type='cls_token')
    model = models.ImageClassifier(backbone, head=models.LinearClsHead(5, 16))
    model.load_state_dict(held['state_dict'], strict=True)


def test_backbone_alone_of_any_source(run: Run, weights: dict[str, torch.Tensor]) -> None:
    save_file({key: value.contiguous() for key, value in weights.items()}, 'vim.safetensors')
    for source in ('vim.pth', 'vim.safetensors'):
        outcome = run(IN, source, 'bare.pth', '--backbone-only', '--overwrite')
        assert outcome.code == 0
        assert re.search(r'head\.weight +– +1 +\(5, 16\) +dropped: the classifier', outcome.out)
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
        outcome = run(IN, 'vim.pth', 'ours.pth', '--overwrite', *arguments)
        assert outcome.code == 0, outcome.err
        state = torch.load('ours.pth')['state_dict']
        assert tuple(state['backbone.pos_embed_grid'].tolist()) == grid
        assert state['backbone.pos_embed'].shape == (1, grid[0] * grid[1], 16)
        text = f'resized: grid 4×4 → {grid[0]}×{grid[1]}'
        assert (text in outcome.out) == (grid != (4, 4))


def test_same_input_same_digest(run: Run, weights: dict[str, torch.Tensor]) -> None:
    lines = [
        [line for line in run(IN, 'vim.pth', name).out.splitlines() if 'SHA-256' in line]
        for name in ('one.pth', 'two.pth')
    ]
    assert len(lines[0]) == 1 and lines[0] == lines[1]


def test_outputs_are_kept(run: Run, weights: dict[str, torch.Tensor]) -> None:
    Path('kept.pth').write_text('mine')
    outcome = run(IN, 'vim.pth', 'kept.pth')
    assert outcome.code == 1
    assert outcome.sentence == 'kept.pth exists: give another name, or --overwrite to replace it'
    outcome = run(IN, 'vim.pth', './vim.pth', '--overwrite')
    assert (outcome.code, 'is the checkpoint to convert' in outcome.sentence) == (2, True)
    outcome = run(IN, 'vim.pth', 'ours.onnx')
    assert (outcome.code, 'must end in .pth or .safetensors' in outcome.sentence) == (2, True)
    # A conversion that fails leaves what was there.
    outcome = run(IN, 'vim.pth', 'kept.pth', '--overwrite', '--cls-token', 'none')
    assert outcome.code == 1
    assert outcome.sentence.startswith("vim.pth: the checkpoint has the class tokens ['cls_token']")
    assert Path('kept.pth').read_text() == 'mine'
    assert run(IN, 'vim.pth', 'kept.pth', '--overwrite').code == 0
    assert sorted(path.name for path in Path().iterdir()) == ['kept.pth', 'vim.pth']


@pytest.mark.parametrize(
    'name, keys',
    [
        ('DeiT, MAE', ['patch_embed.proj.weight', 'cls_token', 'blocks.0.attn.qkv.weight']),
        ('MAE, encoder and decoder', ['mask_token', 'decoder_embed.weight']),
        ('VMamba', ['patch_embed.0.weight', 'layers.0.blocks.0.op.A_logs']),
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
    assert 'hostile.pth is refused' in run(IN, 'hostile.pth', 'out.pth').sentence
    assert not Path('written').exists()
    assert 'absent.pth does not exist' in run(IN, 'absent.pth', 'out.pth').sentence
    assert 'nothing to convert' in run(OUT, 'vim.pth', 'out.pth').sentence
    assert 'got 3 numbers' in run(IN, 'vim.pth', 'out.pth', '--img-size', 1, 2, 3).sentence
    for arguments in (('--img-size', 0), ('--patch-stride', -1)):
        outcome = run(IN, 'vim.pth', 'out.pth', *arguments)
        assert outcome.code == 2
        assert f'{arguments[0]} must be a positive int' in outcome.sentence
