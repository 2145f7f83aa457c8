"""The tools of the patterns dataset, run in this process."""

import importlib.util
from pathlib import Path

import pytest

from mmvim.cli.run_tool import run_tool

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture
def run():
    """Run a tool: ``run('dataset_converters/make_patterns', '--out', folder)`` is its exit code."""

    def run_in_process(name, *arguments):
        spec = importlib.util.spec_from_file_location(
            f'tool_{Path(name).name}', TOOLS / f'{name}.py'
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return run_tool(module.main, [str(argument) for argument in arguments])

    return run_in_process
