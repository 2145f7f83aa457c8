"""Demos that are told to stop: saved, one line at the end, and the same command goes on."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import Script
from repository import ROOT

from mmvim.datasets.patterns import PatternsSpec, generate

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with few images, and a Makefile that starts the demos."""
    out = tmp_path_factory.mktemp('demos')
    generate(out / 'data' / 'patterns', PatternsSpec(train=16, val=4, size=128))
    command = f'{sys.executable} {ROOT / "tests" / "tiny_demo.py"}'
    (out / 'Makefile').write_text(f'demo:\n\t@{command} $(DEMO)\n')
    return out


def start(folder, demo, **environment):
    """``make``, as the leader of a process group, which a terminal's Ctrl-C reaches whole."""
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / 'ops', ROOT / 'tests'))
    with open(folder / 'out.txt', 'w') as out:
        return subprocess.Popen(
            ['make', 'demo', f'DEMO={demo}'],
            cwd=folder,
            env={**os.environ, **environment, 'PYTHONPATH': paths},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for(words, folder, process):
    """What was printed, once it has the words."""
    deadline = time.monotonic() + 300
    while True:
        text = (folder / 'out.txt').read_text()
        if re.search(words, text):
            return text
        if process.poll() is not None or time.monotonic() > deadline:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(text)
        time.sleep(0.05)


def stop(folder, process, number):
    """Signal the group, and what is printed after it."""
    before = len((folder / 'out.txt').read_text())
    os.killpg(process.pid, number)
    process.wait(timeout=120)
    after = (folder / 'out.txt').read_text()[before:]
    assert 'Traceback' not in after
    return [line for line in after.splitlines() if not re.match('make|.*mmengine - INFO', line)]


LAST = 'interrupted: the same command goes on from there'
OTHERS = ('ablate', 'detection', 'segmentation')  # whose trainings go the same way
DEMOS = ['classification', *(pytest.param(demo, marks=pytest.mark.slow) for demo in OTHERS)]


@pytest.mark.parametrize('demo', DEMOS)
def test_a_stopped_training_is_saved_and_goes_on(demo, folder):
    # Two demos share a training.
    shutil.rmtree(folder / 'work_dirs', ignore_errors=True)
    done = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        process = start(folder, demo)
        text = wait_for(rf'Iter\(train\) \[ *{done + 2}/', folder, process)
        logged = [int(n) for n in re.findall(r'Iter\(train\) \[ *(\d+)/', text)]
        assert logged[0] == done + 1
        # A page before the first loss; the log file has the rest.
        assert text[: text.index('Iter(train)')].count('\n') <= 40
        log = Path(re.search(r'environment, config and log: (.*)', text)[1]).read_text()
        assert 'System environment' in log and 'Config:' in log
        lines = stop(folder, process, number)
        name = signal.Signals(number).name
        (saved,) = (re.search(r'at iteration (\d+)', line) for line in lines if 'saved' in line)
        assert lines[0].startswith(f'{name}: saving')
        assert lines[-1] == LAST
        assert len(lines) == 3
        done = int(saved[1])
        assert done >= logged[-1]


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_still_imports_ends_in_a_line(number, folder):
    process = start(folder, 'classification')
    wait_for('imports begin', folder, process)
    assert stop(folder, process, number) == [LAST]


def test_a_demo_that_tests_or_fits_ends_in_a_line_and_keeps_the_training(folder):
    shutil.rmtree(folder / 'work_dirs', ignore_errors=True)
    process = start(folder, 'classification', ITERATIONS='2')
    assert 'Iter(train)' in wait_for(r'Iter\(test\)', folder, process)
    assert stop(folder, process, signal.SIGINT) == [LAST]
    process = start(folder, 'classification', ITERATIONS='2')
    assert 'Iter(train)' not in wait_for('Logistic regression', folder, process)
    assert stop(folder, process, signal.SIGTERM) == [LAST]


def is_running(words):
    """Whether a process has the words on its command line, where Linux says so."""
    for file in Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):  # it may end meanwhile
            if words in file.read_text():
                return True
    return False


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_data_are_made_anew_after_an_interruption(number, tmp_path):
    """The process that draws them ends with the demo."""
    script = tmp_path / 'data_only.py'
    script.write_text(
        'import sys\n'
        f'sys.path.insert(0, {str(ROOT / "tools" / "demos")!r})\n'
        'import common\n'
        'from mmvim.cli.run_tool import run_tool\n'
        f'common.DATA = common.Path({str(tmp_path / "data")!r})\n'
        'sys.exit(run_tool(lambda argv: common.begin()))\n'
    )
    process = Script(script)
    while not (manifest := tmp_path / 'data' / 'patterns.json').exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, number)
    done = process.wait()
    assert done.returncode == 128 + number
    assert done.stderr.splitlines()[-1] == LAST
    assert '"complete": false' in manifest.read_text()
    assert not is_running(str(tmp_path / 'data'))
    count = len(list((tmp_path / 'data').rglob('*.png')))
    time.sleep(1)
    assert len(list((tmp_path / 'data').rglob('*.png'))) <= count + 2
