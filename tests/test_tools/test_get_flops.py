"""tools/analysis_tools/get_flops.py against formulas written from the architectures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import task_configs as configs
from mmengine.config import Config
from repository import ROOT

from mmvim.analysis.config_flops import count_on
from mmvim.cli.config import load_config

Run = Callable[..., Any]
TOOL = 'analysis_tools/get_flops'
CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmvim.VisionMamba', arch='tiny', out_type='cls_token'),
    head=dict(type='LinearClsHead', in_channels=192, num_classes=1000))
"""
SEGMENTOR = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    backbone=dict(
        type='mmvim.VisionMamba', arch='nano', img_size=64, cls_token='none', out_norm='none',
        out_indices=[0, 1, 2, 3]),
    neck=dict(
        type='Feature2Pyramid', embed_dim=64, rescales=[4, 2, 1, 0.5],
        norm_cfg=dict(type='BN')),
    decode_head=dict(
        type='FCNHead', in_channels=64, in_index=0, channels=8, num_convs=1, kernel_size=3,
        concat_input=False, num_classes=5, norm_cfg=dict(type='BN')),
    auxiliary_head=dict(
        type='FCNHead', in_channels=64, in_index=2, channels=8, num_convs=1, num_classes=5),
    test_cfg=dict(mode='whole'))
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    monkeypatch.chdir(tmp_path)

    def write_config(text: str) -> Path:
        config = tmp_path / f'{tmp_path.name}.py'
        config.write_text(text)
        return config

    return write_config


def counts(run: Run, config: Path, *arguments: object) -> tuple[dict[str, Any], Any]:
    outcome = run(TOOL, config, *arguments, '--out', 'counts.json')
    assert outcome.code == 0, outcome.err
    return json.loads(Path('counts.json').read_text()), outcome


def vim_flops(height: int, width: int, dims: int, depth: int, cls_tokens: int) -> dict[str, int]:
    """Vim on one image, from section 3 of the paper: E = 2D, N = 16, conv width 4, R = D / 16.

    Multiplications, additions and exponentials; without biases, activations and the residual sum.
    Per state and token, a scan takes 9; D u takes 2 and the gate 1 per channel.
    """
    patches = (height // 16) * (width // 16)
    tokens = patches + cls_tokens
    inner, states, rank = 2 * dims, 16, dims // 16
    in_and_out = 2 * dims * (2 * inner) + 2 * inner * dims
    x_and_dt = 2 * inner * (rank + 2 * states) + 2 * rank * inner
    return {
        'patch embedding': patches * 2 * (3 * 16 * 16) * dims,
        'blocks: projections': depth * tokens * (in_and_out + 2 * x_and_dt),
        'blocks: convolution': depth * tokens * 2 * (2 * 4 * inner),
        'blocks: scan': depth * tokens * 2 * inner * (9 * states + 2 + 1),
        'norms': depth * tokens * 4 * dims,
    }


@pytest.mark.parametrize(('height', 'width'), [(224, 224), (512, 768), (2048, 2048)])
def test_vim_tiny_is_the_closed_formula(
    run: Run, write: Callable[[str], Path], height: int, width: int
) -> None:
    pytest.importorskip('mmpretrain')
    held, _ = counts(run, write(CLASSIFIER), '--shape', height, width)
    expected = vim_flops(height, width, 192, 24, 1)
    tokens = (height // 16) * (width // 16) + 1
    expected['norms'] += 4 * tokens * 192  # before the head
    expected['head'] = 2 * 192 * 1000
    (size,) = held['sizes']
    assert size['parts'] == expected
    assert size['flops'] == sum(expected.values()) == 2 * size['macs']
    assert (size['tokens'], size['device']) == (tokens, 'meta')
    assert size['paper_scan_macs'] == 24 * 2 * (3 * tokens * 384 * 16 + tokens * 384 * 16)
    if (height, width) == (224, 224):
        assert size['flops'] == 3_122_989_824
    assert held['parameters']['total'] == 7_148_008
    assert held['parameters']['parts']['head'] == 193_000


@pytest.mark.parametrize('channels', [1, 12])
def test_images_have_the_channels_of_the_model(
    run: Run, write: Callable[[str], Path], channels: int
) -> None:
    pytest.importorskip('mmpretrain')
    option = f'model.backbone.in_channels={channels}'
    held, outcome = counts(run, write(CLASSIFIER), '--shape', 32, '--cfg-options', option)
    assert 'note' not in outcome.err
    assert held['sizes'][0]['parts']['patch embedding'] == 4 * 2 * (channels * 16 * 16) * 192


def test_segmentor_with_pyramid(run: Run, write: Callable[[str], Path]) -> None:
    pytest.importorskip('mmseg')
    held, outcome = counts(run, write(SEGMENTOR), '--shape', 64, 96, '--shape', 128)
    assert [size['shape'] for size in held['sizes']] == [[64, 96], [128, 128]]
    for size in held['sizes']:
        height, width = size['shape']
        grid, dims = (height // 16) * (width // 16), 64
        up = 2 * dims * dims * 2 * 2  # a 2 × 2 transposed convolution, per token that enters it
        neck = grid * (up + 4 * up + up) + 4 * grid * dims * 2  # the last is the batch norm
        finest = 16 * grid  # a quarter of the image's sides
        head = finest * (2 * dims * 8 * 9 + 8 * 2 + 2 * 8 * 5)
        expected = vim_flops(height, width, dims, 4, 0)
        assert size['parts'] == {**expected, 'neck': neck, 'decode_head': head}
        assert 'upsample_bilinear2d' in size['uncounted']
    assert 'without counted operations' in held['remarks'][0]
    assert held['remarks'][0].endswith(': auxiliary_head')
    (warning,) = [line for line in outcome.out.splitlines() if line.startswith('warning:')]
    assert 'operators that were not counted' in warning and 'upsample_bilinear2d' in warning
    for text in ('64×96', '128×128', 'blocks: scan', 'total in GFLOPs', '(paper)'):
        assert text in outcome.out


def test_meta_and_real_tensors_count_alike(write: Callable[[str], Path]) -> None:
    pytest.importorskip('mmseg')
    cfg = load_config(str(write(SEGMENTOR)), {})
    one, other = (count_on(cfg, [(48, 80)], device)[1][0] for device in ('meta', 'cpu'))
    assert (one.device, other.device) == ('meta', 'cpu')
    assert one.parts == other.parts
    assert one.uncounted == other.uncounted


def test_the_backend_of_the_scan_changes_nothing(run: Run, write: Callable[[str], Path]) -> None:
    pytest.importorskip('mmseg')
    config = write(SEGMENTOR)
    parts = [
        counts(run, config, '--cfg-options', f'model.backbone.scan_backend={backend}')[0]['sizes']
        for backend in ('auto', 'chunked', 'reference')
    ]
    assert parts[0] == parts[1] == parts[2]


def test_mask_rcnn(run: Run, write: Callable[[str], Path]) -> None:
    pytest.importorskip('mmdet')
    cfg = Config.fromstring(configs.DETECTION, '.py')
    backbone = dict(
        type='mmvim.VisionMamba', arch='nano', img_size=64, cls_token='none', out_norm='none',
        out_indices=[1, 3],
    )  # fmt: skip
    cfg.model.backbone = backbone
    cfg.model.neck.in_channels = [64, 64]
    held, outcome = counts(run, write(cfg.pretty_text))
    (size,) = held['sizes']
    assert (size['shape'], size['device']) == ([64, 64], 'meta')  # img_size
    grid = 4 * 4
    boxes, masks = 20, 5
    expected = vim_flops(64, 64, 64, 4, 0)
    expected['neck'] = 2 * grid * 2 * (64 * 8 + 8 * 8 * 9)  # two levels; the third is pooled
    expected['rpn_head'] = (2 * grid + grid // 4) * 2 * (8 * 8 * 9 + 8 * 1 + 8 * 4)
    linear = 8 * 49 * 8 + 8 * 8 + 8 * (2 + 1) + 8 * 4 * 2
    expected['roi_head.bbox_head'] = boxes * 2 * linear
    up = 2 * 2 * 8 * 8
    pixels = 14 * 14
    expected['roi_head.mask_head'] = masks * 2 * pixels * (8 * 8 * 9 + up + 4 * 8 * 2)
    assert size['parts'] == expected
    assert '20 boxes and 5 masks an image' in held['remarks'][0]
    assert size['invisible'] == ['RoIAlign']
    (warning,) = [line for line in outcome.out.splitlines() if line.endswith(': RoIAlign')]
    assert warning.startswith('warning: not counted')


def test_mask_rcnn_of_vitdet(run: Run, write: Callable[[str], Path]) -> None:
    """All its parts, from ViTDet's appendix: 1x1 and 3x3 convolutions with layer norm."""
    pytest.importorskip('mmdet')
    config = ROOT / 'configs' / 'vitdet' / 'vitdet_mask-rcnn_vim-tiny_lsj-100e_coco.py'
    held, _ = counts(run, config, '--shape', 512)
    (size,) = held['sizes']
    assert size['device'] == 'meta'
    dims, wide, grid = 192, 256, 32 * 32
    norm = 7  # per number: mean, centring, square, sum, factor, and the two of the affine map
    three = 2 * 9 * wide * wide + norm * wide
    cells = [16 * grid, 4 * grid, grid, grid // 4]
    up = 2 * 4 * dims * (dims // 2)  # per cell that enters; the channels are halved
    neck = 2 * grid * up + 4 * grid * (norm * dims // 2 + up // 4)
    for number, channels in zip(cells, (dims // 4, dims // 2, dims, dims)):
        neck += number * (2 * channels * wide + norm * wide + three)
    plain = 2 * 9 * wide * wide
    expected = vim_flops(512, 512, dims, 24, 0)
    expected['neck'] = neck
    expected['rpn_head'] = (sum(cells) + grid // 16) * (2 * plain + 2 * wide * (3 + 3 * 4))
    linear = 2 * (wide * 49 * 1024 + 1024 * (80 + 1) + 1024 * 80 * 4)
    expected['roi_head.bbox_head'] = 1000 * (49 * 4 * three + linear)
    last = 2 * 4 * wide * wide + 4 * 2 * wide * 80
    expected['roi_head.mask_head'] = 100 * 14 * 14 * (4 * three + last)
    assert size['parts'] == expected


def test_other_second_stages_run_on_what_the_first_proposes(
    run: Run, write: Callable[[str], Path]
) -> None:
    pytest.importorskip('mmdet')
    cfg = Config.fromstring(configs.DETECTION, '.py')
    cfg.model.roi_head.type = 'DoubleHeadRoIHead'
    cfg.model.roi_head.update(reg_roi_scale_factor=1.3)
    cfg.model.roi_head.bbox_head = dict(
        type='DoubleConvFCBBoxHead', num_convs=1, num_fcs=1, in_channels=8, conv_out_channels=8,
        fc_out_channels=8, num_classes=2, roi_feat_size=7,
        bbox_coder=cfg.model.roi_head.bbox_head.bbox_coder,
    )  # fmt: skip
    held, outcome = counts(run, write(cfg.pretty_text), '--shape', 64)
    assert held['sizes'][0]['device'] == 'cpu'
    assert 'note: the model did not run on meta tensors' in outcome.err
    assert 'as many regions as the untrained first stage proposed' in held['remarks'][0]
    assert held['sizes'][0]['parts']['roi_head.bbox_head'] > 0


def test_model_that_looks_at_numbers(
    run: Run, write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of mmengine alone; its operator without a formula is named."""
    (tmp_path / 'looking_model.py').write_text(
        'import torch\n'
        'from mmengine.model import BaseModel\n'
        'from mmengine.registry import MODELS\n'
        '@MODELS.register_module(force=True)\n'
        'class LookingModel(BaseModel):\n'
        '    def __init__(self):\n'
        '        super().__init__()\n'
        '        self.conv = torch.nn.Conv2d(3, 4, 1, bias=False)\n'
        "    def forward(self, inputs, data_samples=None, mode='tensor'):\n"
        '        out = self.conv(inputs)\n'
        '        return torch.special.bessel_j0(out) if out.mean().item() < 9 else out\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = write(
        "custom_imports = dict(imports=['looking_model'])\nmodel = dict(type='LookingModel')"
    )
    held, outcome = counts(run, config, '--shape', 5, 6)
    (size,) = held['sizes']
    assert (size['device'], size['parts']) == ('cpu', {'conv': 2 * 5 * 6 * 3 * 4})
    assert size['uncounted'] == {'special_bessel_j0': 120, 'mean': 1}
    assert 'special_bessel_j0' in outcome.out
    outcome = run(TOOL, config)
    assert outcome.code == 2
    assert 'does not say how large its images are: give --shape H W' in outcome.sentence


@pytest.mark.parametrize(
    'arguments, tokens',
    [
        (('--shape', 10**6), (10**6 // 16) ** 2 + 1),
        (('--shape', 10**9, 224), 10**9 // 16 * 14 + 1),
        (('--shape', 224, '--cfg-options', 'model.backbone.img_size=1000000000'), 14**2 + 1),
    ],
)
def test_what_fits_no_memory_is_counted_without_it(
    run: Run, write: Callable[[str], Path], arguments: tuple[object, ...], tokens: int
) -> None:
    pytest.importorskip('mmpretrain')
    (size,) = counts(run, write(CLASSIFIER), *arguments)[0]['sizes']
    assert (size['tokens'], size['device']) == (tokens, 'meta')
    assert size['parts']['blocks: scan'] == 24 * tokens * 2 * 384 * (9 * 16 + 2 + 1)


WIDTHS = ('backbone.arch.embed_dims', 'head.in_channels')


@pytest.mark.parametrize(
    'arguments, sentence',
    [
        (('--shape', 10**9), 'images of 1000000000x1000000000 do not fit into the memory'),
        (('--cfg-options', 'model.backbone.img_size=1000000000'), 'do not fit into the memory'),
        pytest.param(
            ('--shape', 224, '--cfg-options', *(f'model.{key}=4000000000' for key in WIDTHS)),
            'cannot be',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_absurd_sizes_are_refused(
    run: Run, write: Callable[[str], Path], arguments: tuple[object, ...], sentence: str
) -> None:
    pytest.importorskip('mmpretrain')
    arch = 'dict(embed_dims=192, num_layers=24)'
    outcome = run(TOOL, write(CLASSIFIER.replace("'tiny'", arch)), *arguments)
    assert outcome.code == 1
    assert sentence in outcome.sentence


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no device that is always full')
def test_a_full_disk_is_one_sentence(run: Run, write: Callable[[str], Path]) -> None:
    pytest.importorskip('mmpretrain')
    Path('counts.json').symlink_to('/dev/full')
    outcome = run(TOOL, write(CLASSIFIER), '--shape', 32, '--out', 'counts.json')
    assert (outcome.code, 'No space left on device' in outcome.sentence) == (1, True)


def test_mistakes(run: Run, write: Callable[[str], Path]) -> None:
    pytest.importorskip('mmpretrain')
    config = write(CLASSIFIER)
    for arguments, code, sentence in (
        (
            ('--shape', 1, 2, 3),
            2,
            '--shape takes H W, or one number for both, from 1 on; got 1 2 3',
        ),
        (('--shape', 0), 2, 'from 1 on; got 0'),
        (('--shape', 'big'), 2, "invalid int value: 'big'"),
        (('--out', 'counts.txt'), 2, '--out must end in .json'),
        (('--shape', 8), 1, 'run on images of 8x8: the image of 8x8 pixels is'),
    ):
        outcome = run(TOOL, config, *arguments)
        assert outcome.code == code
        assert sentence in outcome.sentence
    outcome = run(TOOL, write('work_dir = None'))
    assert outcome.code == 1
    assert 'has no model, which counting needs' in outcome.sentence
