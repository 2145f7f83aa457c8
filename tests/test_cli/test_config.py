"""Loading configs: every way to fail names the file and, where there is one, the line."""

import importlib.metadata
from pathlib import Path

import pytest
from mmengine.config.utils import MODULE2PACKAGE

from mmvim.cli.config import load_config, missing_library
from mmvim.errors import UserError


def complaint(path: Path | str, options: dict[str, object] | None = None) -> str:
    """What loading says."""
    with pytest.raises(UserError) as caught:
        load_config(str(path), options)
    return str(caught.value)


def test_overrides_are_merged(tmp_path: Path) -> None:
    path = tmp_path / 'a.py'
    path.write_text("train_cfg = dict(max_iters=1)\nparam_scheduler = [dict(type='X', end=1)]\n")
    cfg = load_config(str(path), {'train_cfg.max_iters': 2, 'param_scheduler.0.end': 3})
    assert cfg.train_cfg.max_iters == 2
    assert cfg.param_scheduler[0].end == 3


def test_no_such_file(tmp_path: Path) -> None:
    (tmp_path / 'vim-tiny_upernet.py').touch()
    text = complaint(tmp_path / 'vim-tiny_upernt.py')
    assert 'vim-tiny_upernt.py does not exist' in text
    assert f'did you mean {tmp_path}/vim-tiny_upernet.py?' in text
    (tmp_path / 'a.txt').touch()
    for path in (tmp_path, tmp_path / 'a.txt'):
        assert 'must be a file in one of .py, .json' in complaint(path)


@pytest.mark.parametrize(
    ('text', 'line', 'what'),
    [
        ('a = 1\nb = (\n', 2, 'SyntaxError: '),
        ('a = 1\n\nb = undefined\n', 3, "NameError: name 'undefined' is not defined"),
        ('def f():\n    return 1 / 0\na = 1\nb = f()\n', 2, 'ZeroDivisionError: division by zero'),
        ("a = dict(b=1)\nc = a['d']\n", 2, "KeyError: 'd'"),
        ("a = 1\nb = open('/absent')\n", 2, 'FileNotFoundError: [Errno 2] No such file'),
    ],
)
def test_errors_in_the_config_name_its_line(
    tmp_path: Path, text: str, line: int, what: str
) -> None:
    path = tmp_path / 'broken.py'
    path.write_text(text)
    assert what in complaint(path)
    assert f'line {line}' in complaint(path)
    child = tmp_path / 'child.py'
    child.write_text("_base_ = 'broken.py'\n")
    said = complaint(child)
    assert said.startswith(f'config {child}')
    assert all(part in said for part in (str(path), f'line {line}', what))


def test_missing_base(tmp_path: Path) -> None:
    path = tmp_path / 'child.py'
    path.write_text("_base_ = 'absent.py'\n")
    text = complaint(path)
    assert f'{tmp_path}/absent.py' in text
    assert 'FileNotFoundError' in text


def test_missing_library_of_a_base(tmp_path: Path) -> None:
    path = tmp_path / 'child.py'
    path.write_text("_base_ = 'mmocr::_base_/default_runtime.py'\n")
    assert 'mmocr is not installed' in complaint(path)


@pytest.mark.parametrize(
    ('stack', 'scope', 'package'),
    [
        ('openmmlab', 'mmseg', 'mmsegmentation'),
        ('openmmlab', 'mmdet', 'mmdet'),
        ('onedl', 'mmseg', 'onedl-mmsegmentation'),
        ('onedl', 'mmdet', 'onedl-mmdetection'),
        ('onedl', 'mmocr', 'mmocr'),
    ],
)
def test_missing_library_is_named_as_in_the_stack(
    monkeypatch: pytest.MonkeyPatch, stack: str, scope: str, package: str
) -> None:
    def distribution(name: str) -> None:
        if stack == 'openmmlab':
            raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, 'distribution', distribution)
    # What mmengine looks bases up with, before anything is mended.
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    assert missing_library(scope) == f'{scope} is not installed: pip install {package}'


def test_custom_import_that_fails(tmp_path: Path) -> None:
    path = tmp_path / 'a.py'
    path.write_text("custom_imports = dict(imports=['no_such_module_anywhere'])\n")
    text = complaint(path)
    assert 'custom_imports failed: Failed to import no_such_module_anywhere' in text
    assert 'site-packages' not in text


def test_missing_library_of_the_scope(tmp_path: Path) -> None:
    path = tmp_path / 'a.py'
    path.write_text("default_scope = 'my_own_library'\n")
    assert 'put the package my_own_library on PYTHONPATH' in complaint(path)
    path.write_text('')
    assert 'pip install mmaction2' in complaint(path, {'default_scope': 'mmaction'})


def test_library_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / 'half_installed'
    package.mkdir()
    (package / '__init__.py').write_text("assert False, 'needs mmcv < 2.2'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / 'a.py'
    path.write_text("default_scope = 'half_installed'\n")
    assert 'half_installed cannot be imported: needs mmcv < 2.2' in complaint(path)


def test_a_variable_nothing_reads_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / 'a.py'
    path.write_text(
        "data_root = 'a'\ntrain_dataloader = dict(dataset=dict(type='X', data_root=data_root))\n"
    )
    load_config(str(path), {'data_root': 'b'})
    warned = capsys.readouterr().err
    assert "warning: 'data_root' is a variable of the config file that nothing reads" in warned
    assert 'set train_dataloader.dataset.data_root' in warned
