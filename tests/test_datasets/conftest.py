"""The tools of the patterns dataset, run in this process."""

import pytest
from repository import TOOLS, load_script

from mmvim.cli.run_tool import run_tool


@pytest.fixture
def run():
    """Run a tool: ``run('dataset_converters/make_patterns', '--out', folder)`` is its exit code."""

    def run_in_process(name, *arguments):
        module = load_script(TOOLS / f'{name}.py')
        return run_tool(module.main, [str(argument) for argument in arguments])

    return run_in_process
