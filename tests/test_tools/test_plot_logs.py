"""tools/analysis_tools/plot_logs.py on the logs of real runs and on written ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from matplotlib.figure import Figure

Run = Callable[..., Any]
TOOL = 'analysis_tools/plot_logs'


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that were saved."""
    saved: list[Figure] = []
    savefig = Figure.savefig

    def watched(self: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        savefig(self, *args, **kwargs)

    monkeypatch.setattr(Figure, 'savefig', watched)
    return saved


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, ``one`` and ``two``; the second logs another loss too."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(('one', 'two')):
        entries = []
        for step in range(1, 5):
            entry = dict(lr=0.1 / step, loss=4.0 / step + number, iter=step, step=step)
            entries.append(dict(entry, loss_aux=1.0) if number else entry)
        entries.append(dict(mIoU=40.0 + number, time=1.0, step=4))
        entries.append(dict(mIoU=30.0 + number, time=1.0, step=5))
        folder = Path(name, '20260101_000000', 'vis_data')
        folder.mkdir(parents=True)
        text = ''.join(json.dumps(entry) + '\n' for entry in entries)
        (folder / 'scalars.json').write_text(text)
    return tmp_path


def lines(figure: Figure, title: str) -> dict[str, list[tuple[float, float]]]:
    """Points by label in the panel of that title."""
    (axis,) = [axis for axis in figure.axes if axis.get_title() == title]
    return {
        str(line.get_label()): list(zip(line.get_xdata(), line.get_ydata()))
        for line in axis.lines
        if len(line.get_xdata())
    }


def test_two_runs(run: Run, logs: Path, figures: list[Figure]) -> None:
    outcome = run(TOOL, 'one', 'two', '--out', 'plots/curves.png')
    assert outcome.code == 0, outcome.err
    assert 'curves: plots/curves.png' in outcome.out
    assert matplotlib.image.imread('plots/curves.png').std() > 0.01
    (figure,) = figures
    assert [axis.get_title() for axis in figure.axes] == ['loss', 'lr', 'mIoU']
    assert lines(figure, 'loss') == {
        'one': [(1, 4.0), (2, 2.0), (3, pytest.approx(4 / 3)), (4, 1.0)],
        'two': [(1, 5.0), (2, 3.0), (3, pytest.approx(7 / 3)), (4, 2.0)],
    }
    assert lines(figure, 'mIoU') == {'one': [(4, 40.0), (5, 30.0)], 'two': [(4, 41.0), (5, 31.0)]}


def test_keys_smoothing_and_logarithms(run: Run, logs: Path, figures: list[Figure]) -> None:
    arguments = ('--keys', 'loss*', '--smooth', 0.5, '--log', 'loss')
    outcome = run(TOOL, 'one', 'two', '--out', 'curves.svg', *arguments)
    assert outcome.code == 0, outcome.err
    (figure,) = figures
    assert [axis.get_title() for axis in figure.axes][:2] == ['loss', 'loss_aux']
    assert [axis.get_yscale() for axis in figure.axes][:2] == ['log', 'linear']
    drawn = lines(figure, 'loss')
    assert drawn['one'][:2] == [(1, pytest.approx(4.0)), (2, pytest.approx((2 + 0.5 * 4) / 1.5))]
    assert len(drawn) == 4  # the raw values stay, unlabelled
    assert 'one' not in lines(figure, 'loss_aux')


def test_names_are_no_formulas(run: Run, logs: Path, figures: list[Figure]) -> None:
    log = Path('one/20260101_000000/vis_data/scalars.json')
    log.write_text(log.read_text().replace('loss', 'loss$_{$'))
    names = ('a$_{$b', '$\udcff')
    for before, name in zip(('one', 'two'), names):
        Path(before).rename(name)
    outcome = run(TOOL, *names, '--out', 'c.png', '--keys', 'loss*')
    assert outcome.code == 0, outcome.err
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [names[0], '$?']
    assert 'loss$_{$' in [axis.get_title() for axis in figures[0].axes]


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no device that is always full')
def test_a_full_disk_is_one_sentence(run: Run, logs: Path) -> None:
    Path('curves.png').symlink_to('/dev/full')
    outcome = run(TOOL, 'one', '--out', 'curves.png')
    assert (outcome.code, 'No space left on device' in outcome.sentence) == (1, True)


def test_a_training_by_epoch(run: Run, toy: Path, figures: list[Figure]) -> None:
    toy.write_text(
        toy.read_text()
        + 'val_dataloader = test_dataloader\nval_evaluator = test_evaluator\nval_cfg = dict()\n'
        "train_cfg = dict(by_epoch=True, max_epochs=3)\nvisualizer = dict(type='Visualizer', "
        "vis_backends=[dict(type='LocalVisBackend')])\n"
    )
    assert run('train', toy, '--work-dir', 'w').code == 0
    outcome = run(TOOL, 'w', '--out', 'curves.png')
    assert outcome.code == 0, outcome.err
    (figure,) = figures
    (losses,) = lines(figure, 'loss').values()
    assert [step for step, _ in losses] == list(range(1, 13))  # 8 samples, 2 a batch
    (counts,) = lines(figure, 'toy/count').values()
    assert counts == [(4, 8.0), (8, 8.0), (12, 8.0)]


def test_mistakes(run: Run, logs: Path) -> None:
    base = (TOOL, 'one', 'two', '--out', 'curves.png')
    for arguments, code, sentence in (
        (('--keys', 'mAP'), 1, 'no run logged mAP: there are lr, loss, mIoU, loss_aux'),
        (('--smooth', 1), 2, '--smooth takes a number in [0, 1); got 1'),
        (('--log', 'acc'), 2, '--log: acc is not plotted: loss, lr, mIoU are'),
    ):
        outcome = run(*base, *arguments)
        assert (outcome.code, sentence in outcome.sentence) == (code, True), outcome.err
    assert '--out must end in' in run(TOOL, 'one', '--out', 'curves.txt').sentence
    assert 'three does not exist' in run(TOOL, 'three', '--out', 'c.png').sentence
    log = Path('one/20260101_000000/vis_data/scalars.json')
    log.write_text(log.read_text() + '{"loss":')
    outcome = run(*base)
    assert outcome.code == 0 and 'warning: one: lines that cannot be read: 1' in outcome.err
