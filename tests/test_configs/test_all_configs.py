"""Every config, of whatever library."""

import shutil

import pytest
from mmengine.config import Config
from repository import CONFIGS, bases

FILES = sorted(path for path in CONFIGS.glob('*/*.py') if path.parent.name != '_base_')


@pytest.mark.parametrize('file', FILES, ids=lambda path: path.stem)
def test_repairs_come_before_bases_in_a_library(file):
    """mmengine finds those in every stack only thanks to the repairs, whichever tool runs."""
    assert next(bases(file)) == '_base_/mmvim.py'


@pytest.mark.parametrize('family', ['upernet', 'segmenter', 'dropin', 'vitdet'])
def test_line_for_pretrained_weights_fits_where_it_stands(family, tmp_path):
    """Made active, it gives every backbone of the family its ``init_cfg``."""
    copy = shutil.copytree(CONFIGS, tmp_path / 'configs') / family
    for file in copy.glob('*.py'):
        file.write_text(file.read_text().replace('# init_cfg=', 'init_cfg='))
    for file in copy.glob('*.py'):
        if file.stem.endswith('_rope'):  # these inherit the line
            continue
        backbone = Config.fromfile(file).model.backbone
        assert backbone.init_cfg.type == 'mmvim.PretrainedVim', file
        assert backbone.init_cfg.cls_token == 'middle'
