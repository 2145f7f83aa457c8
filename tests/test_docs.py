"""What the documents show works."""

import doctest
import re

import pytest
from mmengine.config import Config
from repository import ROOT

import mmvim.models.backbones.vision_mamba as vision_mamba
from mmvim.models import VisionMamba

DOCUMENTS = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('**/*.md'))]


def blocks(file, language):
    return re.findall(rf'^```{language}\n(.*?)^```', file.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize('file', DOCUMENTS, ids=lambda file: file.stem)
def test_python_blocks_run(file):
    for code in blocks(file, 'python'):
        exec(compile(code, str(file), 'exec'), {})


def anchors(file):
    """What links may point at within a document: its headings, as GitHub spells them."""
    headings = re.findall(r'^#+ (.+)$', file.read_text(), re.MULTILINE)
    return {
        re.sub(r'[^\w -]', '', heading).strip().lower().replace(' ', '-') for heading in headings
    }


@pytest.mark.parametrize('file', DOCUMENTS, ids=lambda file: file.stem)
def test_links_and_paths_exist(file):
    text = file.read_text()
    links = re.findall(r'\]\((?!https?:)([^)]+)\)', text)
    paths = re.findall(r'\b(?:configs|tools)/[\w/.-]+\.py\b', text)
    for link in links:
        path, _, anchor = link.partition('#')
        target = file.parent / path if path else file
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    for path in paths:
        assert (ROOT / path).exists(), path


def test_config_of_the_readme_gives_what_it_says():
    code = next(code for code in blocks(ROOT / 'README.md', 'python') if '_delete_' in code)
    cfg = Config.fromstring(code, '.py').model.backbone
    assert cfg.pop('type') == 'mmvim.VisionMamba' and cfg.pop('_delete_')
    import torch

    taps = VisionMamba(**cfg)(torch.zeros(1, 3, 64, 96))
    assert [tuple(tap.shape) for tap in taps] == [(1, 192, 4, 6)] * 4


def test_docstring_examples():
    failed, tried = doctest.testmod(vision_mamba)
    assert tried and not failed
