"""tools/print_config.py: the merged config, on stdout or in a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

Run = Callable[..., Any]


def test_prints_bases_and_overrides_merged(run: Run, toy: Path) -> None:
    child = toy.parent / 'child.py'
    child.write_text(f"_base_ = '{toy.name}'\nmodel = dict(width=5)\n")
    outcome = run('print_config', child, '--cfg-options', 'train_cfg.max_epochs=7')
    assert outcome.code == 0
    printed = Config.fromstring(outcome.out, '.py')
    assert printed.model == dict(type='ToyModel', width=5)
    assert printed.train_cfg.max_epochs == 7


def test_saves(run: Run, toy: Path) -> None:
    for suffix in ('py', 'json', 'yaml'):
        outcome = run('print_config', toy, '--save-path', f'new/merged.{suffix}')
        assert outcome.code == 0
        assert Config.fromfile(f'new/merged.{suffix}').model.width == 2
    outcome = run('print_config', toy, '--save-path', 'merged.txt')
    assert outcome.code == 2
    assert '--save-path must end in one of .py' in outcome.sentence


@pytest.mark.parametrize('tool', ['train', 'test', 'predict', 'print_config', 'browse_dataset'])
def test_help_warns_that_configs_are_run(
    tool: str, run: Run, toy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        run(tool, '--help')
    assert done.value.code == 0
    assert 'is run as such: use only those you trust' in ' '.join(capfd.readouterr().out.split())
