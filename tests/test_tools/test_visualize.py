"""tools/analysis_tools/visualize.py on small models of each task."""

import io
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_configs as configs
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from repository import TOOLS, load_script

from mmvim.analysis.model_views import (
    NotApplicableError,
    class_responses,
    position_similarity,
    untrained,
)
from mmvim.checkpoints.reading import read_checkpoint
from mmvim.cli.config import load_config

Run = Callable[..., Any]
TOOL = 'analysis_tools/visualize'
VIM = dict(type='mmvim.VisionMamba', arch='nano', img_size=32, patch_size=8)
VMAMBA = dict(type='mmvim.VMamba', arch=dict(dims=16, depths=(1, 1, 1)), img_size=32)


def save(cfg: Config, seed: int = 1) -> str:
    """The config, and seeded weights that are not those of the tool's random start."""
    init_default_scope(cfg.default_scope)
    torch.manual_seed(seed)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), 'weights.pth')
    cfg.dump('config.py')
    return 'weights.pth'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images of two sizes in ``images``; the test runs beside it."""
    monkeypatch.chdir(tmp_path)
    Path('images').mkdir()
    rng = np.random.default_rng(0)
    for index, size in enumerate([(32, 40), (48, 32), (32, 40)]):
        pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f'images/{index}.png')
    return tmp_path


def segmentor() -> Config:
    cfg = Config.fromstring(configs.SEGMENTATION, '.py')
    cfg.model.backbone = dict(VIM, cls_token='none', out_norm='none', out_indices=[1, 3])
    cfg.model.decode_head.update(in_channels=64, in_index=1)
    cfg.model.data_preprocessor.test_cfg = dict(size_divisor=8)
    return cfg


def classifier(**backbone: Any) -> Config:
    cfg = Config.fromstring(configs.CLASSIFICATION, '.py')
    cfg.model.backbone = dict(VIM, **dict(dict(out_type='cls_token'), **backbone))
    del cfg.model['neck']
    cfg.model.head.in_channels = 64
    return cfg


def shown(file: str) -> np.ndarray:
    return np.asarray(Image.open(file).convert('RGB'))


def test_a_segmentor(run: Run, folder: Path) -> None:
    pytest.importorskip('mmseg')
    weights = save(segmentor())
    outcome = run(TOOL, 'config.py', weights, 'images', '--out', 'out')
    assert outcome.code == 0, outcome.err
    for place in ('taps', 'responses'):
        assert f'{place}: out/{place}' in outcome.out
        names = sorted(path.name for path in Path('out', place).iterdir())
        assert names == ['0.png', '1.png', '2.png']
        assert shown(f'out/{place}/0.png').std() > 10
    for name in ('receptive_field.png', 'positions.png'):
        assert f'out/{name}' in outcome.out and shown(f'out/{name}').std() > 10
    assert 'skipped' not in outcome.out


def test_a_classifier_and_one_of_all_pictures(run: Run, folder: Path) -> None:
    pytest.importorskip('mmpretrain')
    weights = save(classifier())
    arguments = ('--what', 'taps', 'responses', '--blocks', -1)
    outcome = run(TOOL, 'config.py', weights, 'images/1.png', '--out', 'out', *arguments)
    assert outcome.code == 0, outcome.err
    assert sorted(str(path) for path in Path('out').rglob('*.png')) == [
        'out/responses/1.png',
        'out/taps/1.png',
    ]
    # The image and one tap; the image and two classes.
    one, two = shown('out/taps/1.png'), shown('out/responses/1.png')
    assert one.shape[1] * 3 == two.shape[1] * 2


@pytest.mark.parametrize('task', ['mmseg', 'mmpretrain'])
def test_vmamba(run: Run, folder: Path, task: str) -> None:
    pytest.importorskip(task)
    if task == 'mmseg':
        cfg = segmentor()
        cfg.model.backbone = dict(VMAMBA, out_indices=(0, 1, 2))
        cfg.model.decode_head.in_index = 2
    else:
        cfg = classifier()
        cfg.model.backbone = dict(VMAMBA, out_indices=2, out_type='avg_featmap')
    weights = save(cfg)
    outcome = run(TOOL, 'config.py', weights, 'images', '--out', 'out')
    assert outcome.code == 0, outcome.err
    assert 'positions: skipped, VMamba has no position embedding for a grid' in outcome.out
    assert shown('out/receptive_field.png').std() > 10
    # The image and every stage, whatever the config taps; the image and each class.
    widths = {kind: shown(f'out/{kind}/1.png').shape[1] for kind in ('taps', 'responses')}
    classes = 3 if task == 'mmseg' else 2
    assert widths['taps'] * (classes + 1) == widths['responses'] * 4
    outcome = run(TOOL, 'config.py', weights, 'images', '--out', 'out', '--blocks', 3)
    assert (outcome.code, 'the model has 3 stages' in outcome.sentence) == (1, True)


def test_a_detector_has_no_class_responses(run: Run, folder: Path) -> None:
    pytest.importorskip('mmdet')
    weights = save(Config.fromstring(configs.DETECTION, '.py'))  # a ResNet
    outcome = run(TOOL, 'config.py', weights, 'images', '--out', 'out')
    assert outcome.code == 0, outcome.err
    said = 'MaskRCNN has neither a linear classifier on the features of its backbone nor a decode'
    assert f'responses: skipped, {said}' in outcome.out
    assert 'positions: skipped, ResNet has no position embedding' in outcome.out
    assert Path('out/taps/2.png').is_file() and Path('out/receptive_field.png').is_file()
    outcome = run(TOOL, 'config.py', weights, 'images', '--out', 'o', '--what', 'positions')
    assert (outcome.code, 'no position embedding' in outcome.sentence) == (1, True)


@pytest.fixture
def subject(folder: Path) -> Callable[[Config], Any]:
    """The tool's module, the config it would read, and its model with seeded weights."""
    tool = load_script(TOOLS / f'{TOOL}.py')

    def build(cfg: Config) -> tuple[Any, Config, Any]:
        weights = save(cfg)
        read = load_config('config.py', {})
        args = Namespace(checkpoint=weights, device='cpu')
        return tool, read, tool.load_model(read, args, read_checkpoint(weights))

    return build


def sample_of(tool: Any, cfg: Config, model: Any, number: int = 0) -> Any:
    pipeline = cfg.test_dataloader.dataset.pipeline
    return tool.read_sample(model, pipeline, Path(f'images/{number}.png'), str(number))


def test_inputs_are_those_of_a_test(subject: Callable[[Config], Any]) -> None:
    """The test pipeline, then normalised, in RGB order and padded as the config says."""
    pytest.importorskip('mmseg')
    sample = sample_of(*subject(segmentor()))
    # 32 x 40 in a box of 32 is 26 x 32, padded to multiples of 8.
    assert sample.picture.shape == (32, 32, 3) and sample.inputs.shape == (1, 3, 32, 32)
    picture = torch.from_numpy(sample.picture[:26]).permute(2, 0, 1).float()
    torch.testing.assert_close(sample.inputs[0, :, :26], (picture - 127) / 60)
    assert (sample.picture[26:] == 0).all()


def test_responses_name_the_classes_that_answer_most(subject: Callable[[Config], Any]) -> None:
    pytest.importorskip('mmpretrain')
    cfg = classifier(cls_token='none', out_type='avg_featmap')
    tool, read, model = subject(cfg)
    inputs = sample_of(tool, read, model).inputs
    (first, scores), (second, others) = class_responses(model, inputs, 5).items()
    logits = model(inputs, mode='tensor')[0]
    best = int(logits.argmax())
    assert [first, second] == [best, 1 - best]
    # Mean pooling: the tokens' responses average to the model's scores.
    torch.testing.assert_close(scores.mean(), logits[best].detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(others.mean(), logits[1 - best].detach(), rtol=0, atol=1e-5)


def test_decode_heads_that_need_more_than_features(
    subject: Callable[[Config], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mask2Former's forward wants data samples too; others give several results."""
    pytest.importorskip('mmseg')
    tool, read, model = subject(segmentor())
    inputs = sample_of(tool, read, model).inputs
    assert set(class_responses(model, inputs, 2)) < {0, 1, 2}
    maps = torch.stack([*class_responses(model, inputs, 3).values()])
    torch.testing.assert_close(maps.sum(dim=0), torch.ones(4, 4))  # shares of each token
    for forward in (lambda inputs, samples: inputs[0], lambda inputs: inputs):
        monkeypatch.setattr(model.decode_head, 'forward', forward)
        with pytest.raises(NotApplicableError, match='FCNHead gives no map of scores'):
            class_responses(model, inputs, 2)


@pytest.mark.parametrize('family', ['Vim', 'VMamba'])
def test_before_is_a_start_without_files(
    subject: Callable[[Config], Any], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    pytest.importorskip('mmpretrain')
    cfg = classifier()
    if family == 'VMamba':
        cfg.model.backbone = dict(VMAMBA, out_indices=2, out_type='avg_featmap')
    cfg.model.backbone.init_cfg = dict(type=f'mmvim.Pretrained{family}', checkpoint='nowhere.pth')
    tool, read, model = subject(cfg)
    one, two = (untrained(read, torch.device('cpu')) for _ in range(2))
    state, again, trained = (m.state_dict() for m in (one, two, model))
    assert all(torch.equal(state[key], again[key]) for key in state)
    drawn = next(key for key in state if key.endswith('in_proj.weight'))
    assert not torch.equal(state[drawn], trained[drawn])
    samples = [sample_of(tool, read, model, i) for i in range(3)]
    fields = tool.receptive_fields(read, model, samples)
    assert list(fields) == ['before', 'after']
    assert fields['before'].shape == (32, 32)
    assert not torch.equal(fields['before'], fields['after'])


def test_receptive_fields_are_black_where_nothing_reaches(folder: Path) -> None:
    tool = load_script(TOOLS / f'{TOOL}.py')
    field = torch.ones(8, 8)
    field[:, 4:] = 1e-12  # below what is told apart, but not zero
    field[4:] = 0
    tool.draw_fields({'after': field, 'nothing': torch.zeros(8, 8)}, 1, Path('field.png'))
    pixels = shown('field.png')
    image = pixels[pixels.shape[0] // 8 : -pixels.shape[0] // 8, : pixels.shape[1] // 2]
    colours = {tuple(colour): int((image == colour).all(axis=2).sum()) for colour in
               ((0, 0, 0), (68, 1, 84), (253, 231, 36))}  # fmt: skip
    assert min(colours.values()) > image.shape[0] * image.shape[1] / 10
    assert colours[(0, 0, 0)] > 1.5 * colours[(68, 1, 84)]


@pytest.mark.parametrize('library', ['mmpretrain', 'mmseg'])
@pytest.mark.parametrize('cls_token', [True, False])
def test_positions_of_a_vit(
    subject: Callable[[Config], Any], library: str, cls_token: bool
) -> None:
    """A class row before the patches is no patch."""
    pytest.importorskip(library)
    vit = dict(type='VisionTransformer', img_size=(16, 24), patch_size=8, with_cls_token=cls_token)
    if library == 'mmpretrain':
        arch = dict(embed_dims=64, num_layers=1, num_heads=2, feedforward_channels=8)
        out_type = 'cls_token' if cls_token else 'avg_featmap'
        cfg = classifier()
        cfg.model.backbone = dict(vit, arch=arch, out_type=out_type)
    else:
        cfg = segmentor()
        cfg.model.backbone = dict(vit, embed_dims=64, num_layers=1, num_heads=2)
        cfg.model.decode_head.in_index = 0
    backbone = subject(cfg)[2].backbone
    rows = torch.eye(6, 64)[None]
    extra = backbone.pos_embed.shape[1] - 6
    assert extra == (1 if cls_token else 0) or library == 'mmseg'
    with torch.no_grad():
        backbone.pos_embed.copy_(torch.cat([torch.ones(1, extra, 64), rows], dim=1))
    assert torch.equal(position_similarity(backbone), torch.eye(6).reshape(2, 3, 2, 3))


def test_odd_pictures_do_not_cost_the_others(run: Run, folder: Path) -> None:
    pytest.importorskip('mmseg')
    weights = save(segmentor())
    for name, size in (('0', (1, 1)), ('1x', (1, 128)), ('zz', (128, 1))):
        Image.new('RGB', size).save(f'images/{name}.png')
    Path('images/z.png').write_bytes(Path('images/2.png').read_bytes()[:60])
    argv = ('config.py', weights, 'images', '--out', 'out', '--what', 'taps')
    outcome = run(TOOL, *argv)
    assert outcome.code == 1
    assert '3 of 6 pictures failed' in outcome.sentence
    assert all(f'images/{name}.png' in outcome.sentence for name in ('1x', 'z', 'zz'))
    assert sorted(path.name for path in Path('out/taps').iterdir()) == ['0.png', '1.png', '2.png']


def test_mistakes(run: Run, folder: Path) -> None:
    pytest.importorskip('mmpretrain')
    weights = save(classifier())
    base = (TOOL, 'config.py', weights, 'images', '--out', 'out')
    for arguments, code, sentence in (
        (('--blocks', 4), 1, 'the model has 4 blocks'),
        (('--what', 'dreams'), 2, 'invalid choice'),
        (('--cfg-options', 'model.head.num_classes=9'), 1, 'does not fit'),
    ):
        outcome = run(*base, *arguments)
        assert (outcome.code, sentence in outcome.sentence) == (code, True), outcome.err
    outcome = run(TOOL, 'config.py', weights, 'nowhere', '--out', 'out')
    assert 'nowhere is neither an image nor a folder' in outcome.sentence


def png(height: int, width: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(content, 'PNG')
    return content.getvalue()


def test_pictures_that_fail_cost_no_other(run: Run, folder: Path) -> None:
    """Without a resize that would make them large enough."""
    pytest.importorskip('mmseg')
    cfg = segmentor()
    cfg.test_dataloader.dataset.pipeline = [
        step for step in cfg.test_dataloader.dataset.pipeline if step['type'] != 'Resize'
    ]
    cfg.model.data_preprocessor.test_cfg = dict(size_divisor=1)
    weights = save(cfg)
    odd = {
        'text.png': b'no image',
        'empty.png': b'',
        '1x1.png': png(1, 1),
        '1x128.png': png(1, 128),
        '20000x1.png': png(20000, 1),
        'bomb.ppm': b'P6 60000 60000 255\n' + bytes(64),  # says it has 3.6 gigapixels
    }
    for name, content in odd.items():
        Path('images', name).write_bytes(content)
    arguments = ('--what', 'taps', 'receptive-field')
    outcome = run(TOOL, 'config.py', weights, 'images', '--out', 'out', *arguments)
    assert outcome.code == 1
    assert '6 of 9 pictures failed' in outcome.sentence
    assert all(f'images/{name}' in outcome.sentence for name in odd)
    assert sorted(p.name for p in Path('out/taps').iterdir()) == ['0.png', '1.png', '2.png']
    assert Path('out/receptive_field.png').is_file()


def test_names_are_no_formulas(run: Run, folder: Path) -> None:
    pytest.importorskip('mmseg')
    cfg = segmentor()
    cfg.test_dataloader.dataset.metainfo.classes = ('sky$_{$', 'sea', 'sand')
    weights = save(cfg)
    Path('images/0.png').rename('images/a$_{$b.png')
    Path('images/1.png').rename('images/\udcff.png')  # no UTF-8
    Image.new('RGB', (8, 6000)).save('images/2.png')
    cfg.test_dataloader.dataset.pipeline.pop(1)  # which would make it smaller than a patch
    cfg.dump('config.py')
    arguments = ('--what', 'responses')
    outcome = run(TOOL, 'config.py', weights, 'images', '--out', 'out', *arguments)
    assert outcome.code == 0, outcome.err
    assert Path('out/responses/a$_{$b.png').is_file()
    assert Path('out/responses/\udcff.png').is_file()
    assert Path('out/responses/2.png').is_file()
