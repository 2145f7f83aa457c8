"""benchmark_backbone.py at tiny sizes: what it writes is consistent. No time is judged."""

import json
import math
from pathlib import Path
from typing import Any

import benchmark_backbone
import pytest
import torch
import torch.nn.functional as F
from benchmark_backbone import Setting, make_step
from benchmarking import backbones
from benchmarking.measuring import saved_bytes
from benchmarking.published_vmamba import LoopedSS2D
from benchmarking.report import significant
from torch import nn

from mmvim.analysis.flops import count_flops
from mmvim.models import SS2D

pytest.importorskip('mmpretrain')
QUICK = ['--rounds', '2', '--seconds', '0', '--threads', '1']


@pytest.fixture(autouse=True)
def keep_threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def as_tuple(outputs: Any) -> tuple[torch.Tensor, ...]:
    return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)


def setting(**changed: Any) -> Setting:
    values: dict[str, Any] = dict(execution='eager', mode='inference', dtype='float32')
    values.update(batch=1, size='tiny', resolution=32)
    return Setting(**{**values, **changed})


@pytest.fixture(scope='module')
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp('backbone') / 'new'
    argv = ['--out', str(folder), '--resolutions', '48', '32', *QUICK]
    assert benchmark_backbone.main(argv) == 0
    return folder, json.loads((folder / 'backbone.json').read_text())


def test_all_files_and_all_rows_are_there(report: tuple[Path, dict[str, Any]]) -> None:
    folder, result = report
    files = {'backbone.md', 'backbone.json', 'backbone.png'}
    assert {file.name for file in folder.iterdir()} == files
    keys = [(row['mode'], row['resolution'], row['model']) for row in result['rows']]
    assert keys == [
        (mode, size, model)
        for mode in ('inference', 'training')
        for size in (32, 48)
        for model in ('vim', 'deit', 'deit-plain')
    ]
    assert all(row['status'] == 'ok' for row in result['rows'])


def test_ratios_follow_from_the_medians(report: tuple[Path, dict[str, Any]]) -> None:
    _, result = report
    rows = {(r['mode'], r['resolution'], r['model']): r for r in result['rows']}
    for (mode, size, _), row in rows.items():
        vim = rows[mode, size, 'vim']
        assert row['seconds_over_first'] == pytest.approx(row['seconds'] / vim['seconds'])
        assert row['peak_bytes_over_first'] == row['peak_bytes'] / vim['peak_bytes']
        # In training the gradients are there too.
        weights = sum(p.nbytes for p in backbones.build(row['model'], 'tiny', size).parameters())
        assert row['peak_bytes'] > (weights if mode == 'inference' else 2 * weights)


def test_the_table_has_vims_time_over_the_others(report: tuple[Path, dict[str, Any]]) -> None:
    folder, result = report
    text = (folder / 'backbone.md').read_text()
    columns = (
        '| resolution | model | M parameters | GMACs | Vim ÷ | spread | peak MiB | Vim ÷ peak |'
    )
    assert columns in text
    (row,) = (r for r in result['rows'][:3] if r['model'] == 'deit-plain')
    numbers = (row['parameters'] / 1e6, row['macs'] / 1e9, 1 / row['seconds_over_first'])
    cells = ' | '.join(map(significant, numbers))
    assert f'| 32 | DeiT, plain attention | {cells} |' in text


def test_the_six_systems_of_the_papers_in_one_command(tmp_path: Path) -> None:
    names = ['vim', 'vmamba', 'deit', 'resnet50', 'swin', 's4nd']
    argv = ['--out', str(tmp_path), '--resolutions', '64', *QUICK, '--modes', 'inference']
    assert benchmark_backbone.main([*argv, '--rounds', '1', '--contenders', *names]) == 0
    rows = json.loads((tmp_path / 'backbone.json').read_text())['rows']
    assert [(row['model'], row['status']) for row in rows] == [(name, 'ok') for name in names]
    found = {row['model']: row for row in rows}
    assert found['resnet50']['parameters'] == 25_557_032 - 2048 * 1000 - 1000  # torchvision's
    assert found['vmamba']['parameters'] == 30_249_064 - 768 * 1000 - 1000  # published
    # At 64² of 224²: (64 / 224)² of 4.09 (torchvision), 4.9 (published); windows are padded there.
    assert found['resnet50']['macs'] == pytest.approx(4.09e9 * (2 / 7) ** 2, rel=0.03)
    assert found['vmamba']['macs'] == pytest.approx(4.9e9 * (2 / 7) ** 2, rel=0.03)


def test_s4nd_costs_what_its_products_and_transforms_do() -> None:
    model = backbones.build('s4nd', 'tiny', 64).eval()
    count = count_flops(model, torch.randn(1, 3, 64, 64)).total
    tokens, dims, points = 16, 192, 32
    products = 2 * 3 * 16**2 * dims + 12 * (2 * (2 * dims) ** 2 + 2 * 2 * dims * 4 * dims)
    # One transform of the input, two back; norms; kernels are those of evaluation, computed before.
    transforms = 12 * 3 * dims * 2.5 * points * math.log2(points)
    assert count == tokens * products + transforms + 25 * tokens * dims * 7


def test_models_that_failed_have_a_row_without_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Any:
        raise torch.OutOfMemoryError('x')

    title, _ = backbones.CONTENDERS['deit-plain']
    monkeypatch.setitem(backbones.CONTENDERS, 'deit-plain', (title, full))
    argv = ['--out', str(tmp_path), '--resolutions', '32', '--modes', 'inference', *QUICK]
    assert benchmark_backbone.main([*argv, '--contenders', 'vim', 'deit-plain']) == 0
    assert '| 32 | DeiT, plain attention | OOM |' in (tmp_path / 'backbone.md').read_text()
    vim, failed = json.loads((tmp_path / 'backbone.json').read_text())['rows']
    assert vim['status'] == 'ok' and 'seconds' not in failed


@pytest.mark.parametrize('library', ['mmpretrain', 'timm'])
def test_plain_attention_and_sdpa_agree(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(library)
    found = {'mmpretrain': library == 'mmpretrain'}
    monkeypatch.setattr(backbones.importlib.util, 'find_spec', found.get)
    image = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    models, outputs = {}, {}
    for name in ('deit', 'deit-plain'):
        torch.manual_seed(0)
        models[name] = backbones.build(name, 'tiny', 48)
        models[name].eval()
        (outputs[name],) = as_tuple(models[name](image))
    # DeiT-Ti without its head (arXiv 2012.12877), position embedding for 9 patches instead of 196
    count = sum(tensor.numel() for tensor in models['deit'].parameters())
    assert count == 5_717_416 - 1000 * 193 - 187 * 192
    assert outputs['deit'].shape == (1, 192)
    torch.testing.assert_close(outputs['deit-plain'], outputs['deit'], rtol=1e-4, atol=1e-5)
    scores = 12 * 4 * 3 * 10**2  # the probabilities, which SDPA does not save
    saved = {n: saved_bytes(lambda m=m: m(image), m.parameters()) for n, m in models.items()}
    assert saved['deit-plain'] >= saved['deit'] + scores / 2


def test_one_thread_whatever_the_others_have() -> None:
    threads, seen = torch.get_num_threads(), []

    class Asks(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            if image.sum() > 0:
                raise ValueError('a model that fails')
            return image

    model = backbones.OneThread(Asks())
    torch.set_num_threads(3)
    try:
        model(torch.zeros(1))
        with pytest.raises(ValueError, match='a model that fails'):
            model(torch.ones(1))
        assert seen == [1, 1] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_plain_attention() -> None:
    q, k, v = torch.randn(3, 2, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    ours = backbones.plain_attention(q, k, v)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize(
    'name', [n for n in backbones.CONTENDERS if n not in backbones.HIERARCHICAL]
)
def test_the_neck_gets_four_taps(name: str) -> None:
    pytest.importorskip('mmseg')
    model = backbones.build(name, 'tiny', 64, with_neck=True)
    levels = as_tuple(model(torch.randn(2, 3, 64, 64)))
    assert [tuple(level.shape) for level in levels] == [(2, 192, s, s) for s in (16, 8, 4, 2)]


@pytest.mark.parametrize('name', backbones.HIERARCHICAL)
def test_stages_give_four_maps(name: str) -> None:
    image = torch.randn(1, 3, 64, 64)
    levels = as_tuple(backbones.build(name, 'tiny', 64, with_neck=True)(image))
    first = 256 if name == 'resnet50' else 96
    assert [tuple(level.shape) for level in levels] == [
        (1, first * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)
    ]
    (out,) = as_tuple(backbones.build(name, 'tiny', 64)(image))
    assert out.shape[:2] == (1, 8 * first)


@pytest.mark.parametrize('states', [1, 3])
def test_the_published_algorithm_is_the_same_scan(states: int) -> None:
    torch.manual_seed(0)
    ours = SS2D(8, d_state=states, ssm_ratio=2).double()
    theirs = LoopedSS2D(8, d_state=states, ssm_ratio=2).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(theirs(x), ours(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_training_step_takes_every_gradient(dtype: str) -> None:
    model = backbones.build('vim', 'tiny', 32)
    image = torch.randn(1, 3, 32, 32)
    step = make_step(model, setting(mode='training', dtype=dtype), image)
    grads = step()
    assert model.training and len(grads) == len(list(model.parameters()))
    for grad, again in zip(grads, step()):
        torch.testing.assert_close(again, grad, rtol=1e-3, atol=1e-4)
    out = model(image)
    expected = torch.autograd.grad(sum(y.sum() for y in as_tuple(out)), list(model.parameters()))
    if dtype == 'float32':
        torch.testing.assert_close(grads, expected, rtol=1e-3, atol=1e-4)


def test_a_prediction_keeps_no_graph() -> None:
    model = backbones.build('vim', 'tiny', 32)
    (out,) = make_step(model, setting(), torch.randn(1, 3, 32, 32))()
    assert not model.training and not out.requires_grad


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['--resolutions', '100'], 'multiples of 16 pixels, got [100]'),
        (['--execution', 'graphs'], 'a CPU has no CUDA graphs'),
        (['--batch', '0'], 'argument --batch: takes numbers from 1 on'),
        (['--contenders', 'nonsense'], 'nonsense'),
        (['--rounds', '0'], 'argument --rounds: takes numbers from 1 on'),
    ],
)
def test_bad_arguments(
    argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        benchmark_backbone.main(['--out', str(tmp_path), *argv])
    assert error.value.code == 2
    assert said in capsys.readouterr().err
