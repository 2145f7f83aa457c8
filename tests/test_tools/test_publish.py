"""tools/model_converters/publish.py: files that every loader takes, out of a training's."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from repository import load_config
from safetensors import safe_open

from mmvim.analysis.model_views import build_model
from mmvim.checkpoints.publishing import to_half
from mmvim.cli.converter import pack_weights
from mmvim.models import VisionMamba

Run = Callable[..., Any]
TOOL = 'model_converters/publish'
ARCH = dict(embed_dims=16, num_layers=2, d_state=4)
ON_VIM = f"""
model['backbone'] = dict(
    type='mmvim.VisionMamba', arch={ARCH}, img_size=32, patch_size=8, cls_token='head',
    out_norm='none', out_indices=[1])
custom_hooks = [dict(type='EMAHook', momentum=0.5)]
param_scheduler = []
"""


@pytest.fixture
def trained(run: Run, segmentation: Path) -> Path:
    """The config of a segmentor on Vim, trained for two steps with an average of its weights."""
    segmentation.write_text(segmentation.read_text() + ON_VIM)
    outcome = run('train', segmentation, '--work-dir', 'run')
    assert outcome.code == 0, outcome.err
    return segmentation


def published(folder: str = '.') -> dict[str, Path]:
    """The two files by suffix; each is named by its digest."""
    files = {file.suffix: file for file in Path(folder).glob('vim-*')}
    assert set(files) == {'.pth', '.safetensors'}
    for file in files.values():
        assert file.stem == f'vim-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}'
    return files


def entry(outcome: Any) -> dict[str, Any]:
    (found,) = yaml.safe_load(outcome.out.partition('Entry of the metafile:')[2])
    return dict(found)


@pytest.mark.parametrize('half', [(), ('--half',)])
def test_every_loader_takes_what_is_published(
    half: tuple[str, ...], run: Run, trained: Path
) -> None:
    outcome = run(TOOL, 'run/iter_2.pth', 'out/vim.pth', '--config', trained, *half)
    assert outcome.code == 0, outcome.err
    assert 'left behind: message_hub, optimizer, ' in outcome.out
    assert 'weights: their average (EMA)' in outcome.out
    files = published('out')
    run_state = torch.load('run/iter_2.pth', weights_only=False)
    held = torch.load(files['.pth'])  # nothing in it but what a plain weights-only load allows
    assert held.keys() == {'meta', 'state_dict'}
    meta = held['meta']
    assert meta['cls_token'] == 'head' and meta['mmvim_version'] and 'EMAHook' in meta['cfg']
    assert 'work_dir' not in meta['cfg']  # the run's own text has the machine's paths
    assert meta['dataset_meta']['classes'] == ('sky', 'sea', 'sand')
    with safe_open(files['.safetensors'], 'pt') as file:
        assert json.loads(file.metadata()['mmvim'])['cls_token'] == 'head'
    averaged, last = run_state['state_dict'], run_state['ema_state_dict']
    key = 'backbone.patch_embed.projection.weight'
    assert not torch.equal(averaged[key], last[f'module.{key}'])
    expected = to_half(averaged) if half else averaged
    assert held['state_dict'].keys() == expected.keys()
    for name, value in expected.items():
        assert held['state_dict'][name].dtype == value.dtype
        assert torch.equal(held['state_dict'][name], value), name

    listed = entry(outcome)
    assert (listed['Name'], listed['Weights']) == (trained.stem, str(files['.pth']))
    assert listed['Metadata']['Iterations'] == 2
    assert listed['Metadata']['Training Techniques'] == ['AdamW', 'EMA']

    results = {}
    for name, file in dict(files, training='run/iter_2.pth').items():
        results[name] = run('test', trained, file).out
        assert 'mIoU' in results[name]
        outcome = run('predict', trained, file, 'scenes/images', '--out', 'drawn')
        assert outcome.code == 0, outcome.err

    from mmseg.apis import init_model

    for file in files.values():
        model = init_model(str(trained), str(file), device='cpu')
        assert list(model.dataset_meta['classes']) == ['sky', 'sea', 'sand']
        state = model.state_dict()
        for name, value in expected.items():
            assert state[name].dtype == averaged[name].dtype
            assert torch.equal(state[name], value.to(averaged[name].dtype)), name
        for size, patch in ((32, 8), (64, 8), (32, 4)):  # as it is, resized, adapted
            start = dict(type='mmvim.PretrainedVim', checkpoint=str(file), patch_embed='mean')
            vim = VisionMamba(
                ARCH, size, patch, out_indices=[1], out_norm='none', cls_token='head',
                init_cfg=dict(start, cls_token='head'),
            )  # fmt: skip
            vim.init_weights()
            assert {p.dtype for p in vim.parameters()} == {torch.float32}
            wanted = expected['backbone.layers.1.mixer.in_proj.weight'].float()
            assert torch.equal(vim.layers[1].mixer.in_proj.weight, wanted)

    outcome = run('train', trained, '--resume', files['.pth'])
    assert outcome.code == 1
    assert 'cannot be resumed, it holds weights but no epoch, iter, optimizer' in outcome.sentence


def test_half_leaves_vectors_and_a_and_refuses_what_is_too_large() -> None:
    state = VisionMamba(ARCH, img_size=64).state_dict()
    halved = to_half(state)
    kept = {key for key, value in halved.items() if value.dtype == torch.float32}
    assert {key for key, value in state.items() if value.ndim < 2} - {'pos_embed_grid'} <= kept
    assert kept >= {f'layers.0.mixer.{name}' for name in ('A_log', 'A_b_log', 'D', 'dt_proj.bias')}
    assert halved['layers.0.mixer.in_proj.weight'].dtype == torch.float16
    assert halved['pos_embed_grid'].dtype == torch.int64
    # Versions of modules, which some of the libraries' heads read when they are loaded.
    held = torch.load(io.BytesIO(pack_weights(halved, '.pth', 'state_dict', {})))
    assert held['state_dict']._metadata == state._metadata and state._metadata
    with pytest.raises(RuntimeError, match=r'^w has numbers beyond 65504'):
        to_half({'w': torch.full((2, 2), 1e5)})


def test_a_run_of_our_config_needs_no_config(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    """The run's name is the config's; its entry is that of the family's metafile."""
    pytest.importorskip('mmseg')
    monkeypatch.chdir(tmp_path)
    name = 'vim-nano_upernet_1xb8-900_patterns-128x128'
    cfg = load_config(f'demo/{name}.py')
    from mmengine.registry import init_default_scope

    init_default_scope('mmseg')
    state = build_model(cfg).state_dict()
    meta = dict(experiment_name=f'{name}_20260101_235959')
    torch.save(dict(meta=meta, state_dict=state, message_hub={}), 'iter.pth')
    outcome = run(TOOL, 'iter.pth', 'vim')
    assert outcome.code == 0, outcome.err
    listed = entry(outcome)
    assert list(listed)[:3] == ['Name', 'In Collection', 'Config']
    assert listed['Config'] == f'configs/demo/{name}.py'
    assert listed['Metadata']['Training Data'] == 'patterns'
    assert torch.load(published()['.pth'])['meta']['cls_token'] == 'none'


def test_what_cannot_be_published_is_one_sentence(run: Run, toy: Path) -> None:
    assert run('train', toy, '--work-dir', 'run').code == 0
    trained = 'run/epoch_1.pth'

    def refused(source: Any, out: str = 'new', config: Any = toy) -> str:
        outcome = run(TOOL, source, out, *(() if config is None else ('--config', config)))
        assert outcome.code == 1 and not list(Path().glob('new-*'))
        return str(outcome.sentence)

    assert run(TOOL, trained, 'vim', '--config', toy).code == 0
    files = published()
    for file in files.values():
        assert 'as one does that is published or converted already' in refused(file)
    assert 'exists: remove it, or give another name' in refused(trained, 'vim')
    Path('text.pth').write_text('no checkpoint')
    assert 'it is no checkpoint' in refused('text.pth')
    assert 'does not exist' in refused('absent.pth')
    assert f'is of the run {toy.stem}, and no config of mmvim' in refused(trained, config=None)
    held = torch.load(trained, weights_only=False)
    for meta in (['no dict'], dict(experiment_name=f'{"../" * 12}{toy.with_suffix("")}')):
        torch.save(dict(held, meta=meta), 'odd.pth')  # no file of its naming is run as a config
        assert 'no config of mmvim has that name' in refused('odd.pth', config=None)
    other = toy.with_name('other.py')
    other.write_text(toy.read_text().replace('width=2', 'width=3'))
    assert 'does not fit the ToyModel of this config' in refused(trained, config=other)
