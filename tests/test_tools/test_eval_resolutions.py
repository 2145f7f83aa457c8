"""tools/analysis_tools/eval_resolutions.py on small classifiers and segmentors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import task_configs as configs
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmvim.checkpoints.conversion import ours_to_published
from mmvim.models import VisionMamba, VMamba

Run = Callable[..., Any]
TOOL = 'analysis_tools/eval_resolutions'
VIM = dict(type='mmvim.VisionMamba', arch='nano', img_size=32, patch_size=8)
VMAMBA = dict(type='mmvim.VMamba', arch=dict(dims=16, depths=(1, 1, 1)), out_indices=2)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Heights and widths of the images that reach the backbone."""
    shapes: list[tuple[int, ...]] = []

    def watch(kind: type) -> None:
        forward = kind.forward

        def watched(self: Any, x: torch.Tensor) -> tuple[Any, ...]:
            shapes.append(tuple(x.shape[-2:]))
            return forward(self, x)

        monkeypatch.setattr(kind, 'forward', watched)

    watch(VisionMamba)
    watch(VMamba)
    return shapes


def save(cfg: Config, **changes: torch.Tensor) -> str:
    """Seeded weights, some of them replaced."""
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    state = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=state | changes), 'weights.pth')
    return 'weights.pth'


@pytest.fixture
def classification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip('mmpretrain')
    monkeypatch.chdir(tmp_path)
    configs.write_folders(tmp_path / 'folders')
    cfg = Config.fromstring(configs.CLASSIFICATION, '.py')
    cfg.model.backbone = dict(VIM, out_type='cls_token')
    del cfg.model['neck']
    cfg.model.head.in_channels = 64
    pipeline = cfg.test_dataloader.dataset.pipeline
    pipeline[1].scale = 36
    cfg.dump('classification.py')
    return Path('classification.py')


@pytest.mark.parametrize('family', ['Vim', 'VMamba'])
def test_a_classifier_at_every_size(
    run: Run, classification: Path, seen: list[tuple[int, ...]], family: str
) -> None:
    cfg = Config.fromfile(classification)
    if family == 'VMamba':
        cfg.model.backbone = dict(VMAMBA, out_type='avg_featmap')
        cfg.dump(classification)
    # Always the second class: known answers, whatever the size.
    bias = {'head.fc.weight': torch.zeros(2, 64), 'head.fc.bias': torch.tensor([0.0, 1.0])}
    weights = save(cfg, **bias)
    known = run('test', classification, weights, '--work-dir', 'w')
    share = sum(path.parent.name == 'light' for path in Path('folders').rglob('*.png'))
    total = len(list(Path('folders').rglob('*.png')))
    expected = 100 * share / total
    assert f'accuracy/top1: {expected:.4f}' in known.out
    seen.clear()
    outcome = run(TOOL, classification, weights, '--sizes', 64, 24, 32, 24, '--out', 'out')
    assert outcome.code == 0, outcome.err
    assert sorted(set(seen)) == [(24, 24), (32, 32), (64, 64)]
    held = json.loads(Path('out/resolutions.json').read_text())
    assert held['config_size'] == 32
    assert [result['size'] for result in held['results']] == [24, 32, 64]
    for result in held['results']:
        assert result['metrics'] == {'accuracy/top1': pytest.approx(expected, abs=1e-4)}
    assert held['results'][0]['changes'] == [
        'ResizeEdge.scale 36 → 27',
        'CenterCrop.crop_size 32 → 24',
    ]
    assert '64: ResizeEdge.scale 36 → 72' in outcome.err
    rows = [line for line in outcome.out.splitlines() if line.startswith('|')]
    assert len(rows) == 2 + 3 and '| 32 (config) |' in rows[3]
    assert f'{expected:.2f}' in rows[2]
    assert Path('out/resolutions.png').read_bytes().startswith(b'\x89PNG')


def segmentor(segmentation: Path) -> Config:
    cfg = Config.fromfile(segmentation)
    cfg.model.backbone = dict(VIM, cls_token='none', out_norm='none')
    cfg.model.decode_head.in_channels = 64
    cfg.model.data_preprocessor.test_cfg = dict(size_divisor=8)
    cfg.dump(segmentation)
    return cfg


def test_a_segmentor_at_the_size_of_the_config_is_the_plain_test(
    run: Run, segmentation: Path, seen: list[tuple[int, ...]]
) -> None:
    cfg = segmentor(segmentation)
    weights = save(cfg)
    plain = run('test', segmentation, weights, '--work-dir', 'w')
    seen.clear()
    outcome = run(TOOL, segmentation, weights, '--sizes', 32, 64, '--out', 'out')
    assert outcome.code == 0, outcome.err
    # Images of 32 x 40 in a box of 32 x 32: 26 x 32, padded to whole patches.
    assert seen == [(32, 32)] * 4 + [(56, 64)] * 4
    results = json.loads(Path('out/resolutions.json').read_text())['results']
    assert results[0]['metrics'].keys() == {'aAcc', 'mIoU', 'mAcc'}
    assert f'mIoU: {results[0]["metrics"]["mIoU"]:.4f}' in plain.out
    assert results[0]['metrics'] != results[1]['metrics']


def test_a_segmentor_of_vmamba(run: Run, segmentation: Path, seen: list[tuple[int, ...]]) -> None:
    cfg = segmentor(segmentation)
    cfg.model.backbone = VMAMBA
    cfg.dump(segmentation)
    assert run(TOOL, segmentation, save(cfg), '--sizes', 32, 64, '--out', 'out').code == 0
    assert seen == [(32, 32)] * 4 + [(56, 64)] * 4


def test_windows_of_a_sliding_test(
    run: Run, segmentation: Path, seen: list[tuple[int, ...]]
) -> None:
    cfg = segmentor(segmentation)
    cfg.model.test_cfg = dict(mode='slide', crop_size=(16, 16), stride=(8, 8))
    cfg.dump(segmentation)
    weights = save(cfg)
    assert run(TOOL, segmentation, weights, '--sizes', 64, '--out', 'out').code == 0
    assert set(seen) == {(32, 32)}


def test_mistakes(run: Run, classification: Path) -> None:
    weights = save(Config.fromfile(classification))
    outcome = run(TOOL, classification, weights, '--sizes', 0, '--out', 'out')
    assert (outcome.code, outcome.sentence) == (2, '--sizes takes numbers from 1 on; got 0')
    outcome = run(TOOL, classification, weights, '--sizes', 32, 4, '--out', 'out')
    assert outcome.code == 1
    assert 'failed at size 4: the image of 4x4 pixels is smaller than one patch' in outcome.sentence
    option = ('--cfg-options', 'test_dataloader.dataset.pipeline.1.type=RandomResizedCrop')
    outcome = run(TOOL, classification, weights, '--out', 'out', *option)
    assert 'classification.py: the test pipeline has RandomResizedCrop(scale)' in outcome.sentence
    option = ('--cfg-options', 'model.head.num_classes=9')
    assert 'does not fit' in run(TOOL, classification, weights, '--out', 'o', *option).sentence


def test_every_tool_takes_a_published_classifier(run: Run, classification: Path) -> None:
    """Converted on the way: the same results as those of our file; a plain ViT is named."""
    ours = save(Config.fromfile(classification))
    state = torch.load(ours)['state_dict']
    torch.save(dict(model=ours_to_published(state, 'middle').weights, epoch=1), 'published.pth')
    vit = ('patch_embed.proj.weight', 'blocks.0.attn.qkv.weight')
    torch.save(dict(model=dict.fromkeys(vit, torch.ones(1))), 'vit.pth')
    image = next(Path('folders').rglob('*.png'))
    for tool, options, result in (
        (TOOL, ('--sizes', 32), 'resolutions.json'),
        ('predict', (image,), 'predictions.jsonl'),
        ('analysis_tools/visualize', (image, '--what', 'positions'), 'positions.png'),
    ):
        written = []
        for weights in (ours, 'published.pth'):
            out = Path(f'{Path(tool).name}-{weights}')
            outcome = run(tool, classification, weights, *options, '--out', out)
            assert outcome.code == 0, outcome.err
            written.append((out / result).read_bytes().replace(weights.encode(), b''))
        assert written[0] == written[1]
        outcome = run(tool, classification, 'vit.pth', *options, '--out', 'vit')
        assert outcome.code == 1
        assert 'vit.pth: no Vim checkpoint: its keys are those of DeiT' in outcome.sentence
