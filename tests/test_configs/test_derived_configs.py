"""Configs of users, outside the repository: derived by ``mmvim::``, read by the libraries' APIs."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config, get_model
from mmengine.registry import DefaultScope, Registry
from repository import CONFIGS

import mmvim

pytestmark = pytest.mark.stack
UPERNET = 'upernet/vim-tiny_upernet_4xb8-60k_ade20k-512x512.py'
# One of each model base, dataset and schedule.
DERIVED = {
    UPERNET: 'mmseg',
    'segmenter/vim-tiny-ssm-conv_segmenter_4xb8-60k_ade20k-512x512.py': 'mmseg',
    'dropin/vim-tiny_dpt_4xb8-60k_ade20k-512x512.py': 'mmseg',
    'demo/vim-nano_upernet_1xb8-900_patterns-128x128.py': 'mmseg',
    'vitdet/vitdet_mask-rcnn_vim-tiny_lsj-100e_coco.py': 'mmdet',
    'vitdet/vitdet_cascade-mask-rcnn_vim-tiny_lsj-100e_coco.py': 'mmdet',
    'demo/vim-nano_mask-rcnn_1xb8-600_patterns-128x128.py': 'mmdet',
    'vim/vim-tiny_8xb128-300e_in1k.py': 'mmpretrain',
    'demo/vim-nano_1xb16-1150_patterns-128x128.py': 'mmpretrain',
}


@pytest.fixture(autouse=True)
def no_scope_is_left() -> Any:
    yield
    DefaultScope._instance_dict.clear()


def built_in_scope(config: Any, inherited: bool = False) -> list[dict[str, Any]]:
    """The entries that mmengine builds in scope mmvim because they come from a config of ours."""
    entries = []
    if isinstance(config, dict):
        scope = config.get('_scope_', 'mmvim' if inherited else None)
        if 'type' in config and scope == 'mmvim':
            entries.append(config)
        inherited = scope == 'mmvim'
    children = config.values() if isinstance(config, dict) else config
    for child in children if isinstance(config, (dict, list, tuple)) else ():
        entries += built_in_scope(child, inherited)
    return entries


def found_in_scope(name: str) -> bool:
    roots = [r for r in vars(importlib.import_module('mmengine.registry')).values()]
    registries = [r for r in roots if isinstance(r, Registry)]
    children = [r.children.get('mmvim', r) for r in registries]
    return any(registry.get(name) is not None for registry in children)


@pytest.mark.parametrize('name', DERIVED)
def test_types_of_a_derived_config_are_found(tmp_path: Path, name: str) -> None:
    """Scope mmvim does not know the types of other libraries: our configs say whose they are."""
    library = DERIVED[name]
    pytest.importorskip(library)
    importlib.import_module(f'{library}.utils').register_all_modules(False)
    (tmp_path / 'mine.py').write_text(f'_base_ = "mmvim::{name}"\nmodel = dict(init_cfg=None)\n')
    config = Config.fromfile(tmp_path / 'mine.py')
    assert config.default_scope == library
    # Variables of pipelines are no entries: they stand in a data set, whose library they have.
    used = {k: v for k, v in config.items() if not k.endswith(('_pipeline', '_preprocessor'))}
    entries = built_in_scope({k: v for k, v in used.items() if k not in ('box_head', 'norm_cfg')})
    assert any(entry['type'].endswith('OptimWrapper') for entry in entries)
    assert [e['type'] for e in entries if not found_in_scope(e['type'])] == []


def test_a_model_of_a_derived_config_is_built(tmp_path: Path) -> None:
    registry = pytest.importorskip('mmseg.registry')
    text = f'_base_ = "mmvim::{UPERNET}"\nmodel = dict(backbone=dict(drop_path_rate=0.3))\n'
    (tmp_path / 'mine.py').write_text(text)
    model = registry.MODELS.build(Config.fromfile(tmp_path / 'mine.py').model)
    assert isinstance(model.backbone, mmvim.VisionMamba)
    assert model.backbone.layers[-1].drop_path.drop_prob > 0.28


@pytest.mark.parametrize('name', [UPERNET, 'vitdet/vitdet_mask-rcnn_vim-tiny_lsj-100e_coco.py'])
def test_mmengines_hub_finds_them(name: str) -> None:
    pytest.importorskip(DERIVED[name])
    config = get_config(f'mmvim::{name}')
    assert Path(config.filename).resolve() == CONFIGS / name
    assert isinstance(get_model(f'mmvim::{name}').backbone, mmvim.VisionMamba)


def test_inferencer_of_mmseg() -> None:
    apis = pytest.importorskip('mmseg.apis')
    config = get_config(f'mmvim::{UPERNET}')
    config.model.backbone.arch = dict(embed_dims=192, num_layers=24, d_state=1)
    config.model.test_cfg = dict(mode='whole')
    config.test_pipeline[1].scale = (64, 64)
    config.test_dataloader.dataset.pipeline[1].scale = (64, 64)
    inferencer = apis.MMSegInferencer(config, device='cpu')
    predicted = inferencer(np.zeros((64, 64, 3), np.uint8))['predictions']
    assert predicted.shape == (64, 64)


def test_inferencer_of_mmdet() -> None:
    apis = pytest.importorskip('mmdet.apis')
    config = get_config('mmvim::vitdet/vitdet_mask-rcnn_vim-tiny_lsj-100e_coco.py')
    inferencer = apis.DetInferencer(config, device='cpu')
    assert isinstance(inferencer.model.backbone, mmvim.VisionMamba)


def test_public_classes() -> None:
    from mmvim import LN2d, MaxPoolClsHead, PretrainedVim, SimpleFPN, VisionMamba

    assert VisionMamba is mmvim.models.VisionMamba and SimpleFPN is mmvim.models.SimpleFPN
    assert PretrainedVim is mmvim.checkpoints.PretrainedVim
    assert LN2d(4)(torch.ones(1, 4, 2, 2)).shape == (1, 4, 2, 2) and MaxPoolClsHead
    # All that is registered under the scope mmvim is a name of the package.
    from mmvim import registry

    for root in (registry.MODELS, registry.HOOKS, registry.WEIGHT_INITIALIZERS):
        assert set(root.module_dict) - {'RMSNorm', 'LN'} <= set(mmvim.__all__), root
