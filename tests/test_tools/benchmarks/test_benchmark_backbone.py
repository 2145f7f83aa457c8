"""benchmark_backbone.py at tiny sizes: what it writes is consistent. No time is judged."""

import json
from pathlib import Path
from typing import Any

import benchmark_backbone
import pytest
import torch
import torch.nn.functional as F
from benchmark_backbone import Setting, Step, add_ratios, too_large
from benchmarking import backbone_report, backbones
from benchmarking.memory import saved_bytes

pytest.importorskip('mmpretrain')
CPU = torch.device('cpu')
QUICK = ['--rounds', '2', '--seconds', '0', '--threads', '1']


@pytest.fixture(autouse=True)
def keep_threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def setting(**changed: Any) -> Setting:
    values: dict[str, Any] = dict(execution='eager', threads=1, mode='inference', dtype='float32')
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
        for model in ('vim', 'deit-sdpa', 'deit-plain')
    ]
    assert all(row['status'] == 'ok' for row in result['rows'])
    assert {row['tokens'] for row in result['rows']} == {5, 10}


def test_ratios_follow_from_the_medians(report: tuple[Path, dict[str, Any]]) -> None:
    _, result = report
    rows = {(r['mode'], r['resolution'], r['model']): r for r in result['rows']}
    for (mode, size, _), row in rows.items():
        vim = rows[mode, size, 'vim']
        assert row['vim_time_ratio'] == pytest.approx(vim['median_seconds'] / row['median_seconds'])
        assert row['vim_memory_ratio'] == pytest.approx(vim['peak_bytes'] / row['peak_bytes'])
        assert row['images_per_second'] == pytest.approx(1 / row['median_seconds'])
        # In training the gradients are there too.
        weights = 4 * row['parameters']
        assert row['peak_bytes'] > (weights if mode == 'inference' else 2 * weights)


def test_the_report_says_where_vim_loses(report: tuple[Path, dict[str, Any]]) -> None:
    folder, result = report
    text = (folder / 'backbone.md').read_text()
    assert len(result['crossovers']) == 4
    for row in result['crossovers']:
        assert row['sentence'] in text and row['sentence'].startswith('Vim-tiny ')
    assert 'The **paper** reports' in text and '86.8% less memory' in text
    assert '| ms |' not in text
    assert '| ms | images/s |' in backbone_report.to_markdown(dict(result, device='cuda'))


def test_crossovers_of_known_times() -> None:
    rows = []
    for size in (224, 512, 1024):
        for model, seconds in (('vim', size**2 / 1e6), ('deit-sdpa', size**4 / 1e6 / 600**2)):
            row = dict(setting(resolution=size).__dict__, model=model, status='ok')
            rows.append(dict(row, median_seconds=seconds, peak_bytes=seconds))
        add_ratios(rows[-2:])
    (found,) = backbone_report.crossovers(rows)
    assert found['time'] == pytest.approx([600]) and found['memory'] == pytest.approx([600])
    assert 'loses to DeiT, SDPA at 224 (7.17), 512 (1.37), beats' in found['sentence']


def test_models_that_failed_have_a_row_without_figures() -> None:
    row = dict(setting().__dict__, tokens=5)
    vim = dict(row, model='vim', status='ok', median_seconds=2.0, spread=0.0)
    plain = dict(row, model='deit-plain', status='OOM', peak_bytes=7)
    add_ratios([vim, plain])
    assert vim['vim_time_ratio'] == 1 and 'vim_time_ratio' not in plain
    result = dict(device='cpu', with_neck=False, deit_from='mmpretrain', command='', machine={})
    result.update(versions={}, rows=[vim, plain], crossovers=backbone_report.crossovers([plain]))
    text = backbone_report.to_markdown(result)
    assert '| 32 | 5 | DeiT, plain attention | OOM |' in text
    assert 'nothing was measured at a common size' in text


def test_scores_that_do_not_fit_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = setting(resolution=2048).tokens
    assert tokens == 128**2 + 1
    # scores and probabilities of one layer; in training the probabilities of all twelve
    assert backbones.score_bytes('tiny', 2, tokens, False) == 2 * 4 * 2 * 3 * tokens**2
    assert backbones.score_bytes('base', 1, tokens, True) == 13 * 4 * 12 * tokens**2
    monkeypatch.setattr(benchmark_backbone, 'free_bytes', lambda: 8 * 2**30)
    large = setting(resolution=2048, mode='training')
    reason = too_large('deit-plain', large, CPU)
    assert reason == 'OOM (scores 39 GiB, free 8)'
    assert too_large('deit-sdpa', large, CPU) is None is too_large('vim', large, CPU)
    assert too_large('deit-plain', setting(), CPU) is None


@pytest.mark.parametrize('library', backbones.DEIT_LIBRARIES)
def test_plain_attention_and_sdpa_agree(library: str) -> None:
    pytest.importorskip(library)
    image = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    models, outputs = {}, {}
    for name in ('deit-sdpa', 'deit-plain'):
        torch.manual_seed(0)
        models[name] = backbones.build(name, 'tiny', 48, deit_library=library)
        models[name].eval()
        (outputs[name],) = backbones.outputs_of(models[name](image))
    # DeiT-Ti without its head (arXiv 2012.12877), position embedding for 9 patches instead of 196
    count = sum(tensor.numel() for tensor in models['deit-sdpa'].parameters())
    assert count == 5_717_416 - 1000 * 193 - 187 * 192
    assert outputs['deit-sdpa'].shape == (1, 192)
    torch.testing.assert_close(outputs['deit-plain'], outputs['deit-sdpa'], rtol=1e-4, atol=1e-5)
    scores = 12 * 4 * 3 * 10**2  # the probabilities, which SDPA does not save
    saved = {n: saved_bytes(lambda m=m: m(image), m.parameters()) for n, m in models.items()}
    assert saved['deit-plain'] >= saved['deit-sdpa'] + scores / 2


def test_plain_attention() -> None:
    q, k, v = torch.randn(3, 2, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    ours = backbones.plain_attention(q, k, v)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v))
    with pytest.raises(ValueError, match='without dropout'):
        backbones.plain_attention(q, k, v, dropout_p=0.1)


@pytest.mark.parametrize('name', backbones.MODELS)
def test_the_neck_gets_four_taps(name: str) -> None:
    pytest.importorskip('mmseg')
    model = backbones.build(name, 'tiny', 64, with_neck=True)
    levels = backbones.outputs_of(model(torch.randn(2, 3, 64, 64)))
    assert [tuple(level.shape) for level in levels] == [(2, 192, s, s) for s in (16, 8, 4, 2)]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_training_step_leaves_gradients(dtype: str) -> None:
    model = backbones.build('vim', 'tiny', 32)
    point = setting(mode='training', dtype=dtype)
    step = Step(model, point, torch.randn(1, 3, 32, 32))
    step.run()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert model.training and all(grad is not None for grad in grads.values())
    step.run()  # the same gradients again, not their sum
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-3, atol=1e-4)


def test_a_prediction_keeps_no_graph() -> None:
    model = backbones.build('vim', 'tiny', 32)
    (out,) = Step(model, setting(), torch.randn(1, 3, 32, 32)).run()
    assert not model.training and not out.requires_grad


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['--resolutions', '100'], 'multiples of 16 pixels, got [100]'),
        (['--execution', 'graphs'], 'a CPU has no CUDA graphs'),
        (['--batch', '0'], '--batch takes numbers from 1 on'),
        (['--device', 'nonsense'], 'nonsense'),
        (['--rounds', '0'], 'rounds=0 must be within'),
    ],
)
def test_bad_arguments(
    argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        benchmark_backbone.main(['--out', str(tmp_path), *argv])
    assert error.value.code == 2
    assert said in capsys.readouterr().err
