"""Imports point one way: what lies below knows nothing of what lies above."""

import ast

from repository import ROOT

GROUND, REGISTRY, MODELS, ROOMS, TOOLS = range(5)
LEVELS = dict.fromkeys(('errors', 'atomic_files', 'mmcv_ops', 'version'), GROUND)
LEVELS |= dict.fromkeys(('registry', 'compat'), REGISTRY) | dict(models=MODELS, cli=TOOLS)
LEVELS |= dict.fromkeys(('analysis', 'checkpoints', 'datasets', 'engine'), ROOMS)
STACK = {'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg'}


def imported(file):
    """The dotted names that a file imports, at its top or within functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f'{file}: a relative import'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def test_the_ops_know_torch_alone():
    files = list((ROOT / 'ops' / 'mmvim_ops').rglob('*.py'))
    against = {
        f'{file.name}: {name}'
        for file in files
        for name in imported(file)
        if name.partition('.')[0] in {'mmvim', *STACK}
    }
    assert files and not against


def test_nothing_imports_what_lies_above_it():
    against = set()
    for room, level in LEVELS.items():
        path = ROOT / 'mmvim' / room
        files = list(path.rglob('*.py')) if path.is_dir() else [path.with_suffix('.py')]
        assert files
        for file in files:
            for name in imported(file):
                package, _, rest = name.partition('.')
                other = rest.partition('.')[0]
                if package == 'mmvim' and LEVELS.get(other, TOOLS) > level:
                    against.add(f'{file.relative_to(ROOT)}: {name}')
    assert not against
