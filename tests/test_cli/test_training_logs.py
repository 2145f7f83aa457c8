"""Curves out of mmengine's logs: iterations, resumed runs, broken lines, smoothing."""

import json
import math

import pytest

from mmvim.cli.training_logs import find_logs, read_run, smoothed
from mmvim.errors import UserError


def write(path, *entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
    return path


def train(step, loss, **more):
    return dict(lr=0.1, loss=loss, time=1.0, data_time=0.5, memory=3, iter=step, step=step, **more)


def validation(step, value):
    return dict(mIoU=value, time=1.0, data_time=0.5, step=step)


def points(run, key):
    return list(zip(run.curves[key].steps, run.curves[key].values))


def test_by_iteration(tmp_path):
    log = write(tmp_path / 'a.json', train(10, 2), train(20, 1), validation(25, 40), train(30, 0.5))
    run = read_run([log])
    assert list(run.curves) == ['lr', 'loss', 'mIoU']
    assert points(run, 'loss') == [(10, 2.0), (20, 1.0), (30, 0.5)]
    assert points(run, 'mIoU') == [(25, 40.0)]
    assert run.curves['mIoU'].validation and not run.curves['loss'].validation
    assert run.broken == 0


@pytest.mark.parametrize('tag', [dict(epoch=1), {}])
def test_validations_logged_by_epoch_stand_at_iterations(tmp_path, tag):
    """mmengine's default; loops by iteration log no epoch beside the losses."""
    entries = [train(10, 2, **tag), train(20, 1, **tag), validation(1, 40)]
    entries += [train(30, 0.5, **tag), validation(2, 50)]
    run = read_run([write(tmp_path / 'a.json', *entries)])
    assert points(run, 'mIoU') == [(20, 40.0), (30, 50.0)]
    assert 'epoch' not in run.curves


def test_a_resumed_run_is_one(tmp_path):
    """The later log counts from where it begins, whatever the earlier one saw after that."""
    first = [train(10, 5), train(20, 4), validation(20, 30), train(30, 3), validation(30, 31)]
    second = [train(25, 3.5), validation(30, 32), train(35, 2)]
    write(tmp_path / '20260102_000000/vis_data/scalars.json', *second)
    write(tmp_path / '20260101_000000/vis_data/scalars.json', *first)
    logs = find_logs(str(tmp_path))
    assert [log.parts[-3] for log in logs] == ['20260101_000000', '20260102_000000']
    run = read_run(logs)
    assert points(run, 'loss') == [(10, 5.0), (20, 4.0), (25, 3.5), (35, 2.0)]
    assert points(run, 'mIoU') == [(20, 30.0), (30, 32.0)]


def test_a_new_start_in_the_same_folder_replaces_the_old_run(tmp_path):
    first = write(tmp_path / 'a.json', train(10, 5), validation(10, 30))
    second = write(tmp_path / 'b.json', train(10, 4))
    run = read_run([first, second])
    assert points(run, 'loss') == [(10, 4.0)] and 'mIoU' not in run.curves


def test_a_test_in_the_folder_is_passed_over(tmp_path):
    first = write(tmp_path / 'a.json', train(10, 5), validation(10, 30))
    second = write(tmp_path / 'b.json', validation(0, 31))
    run = read_run([first, second])
    assert points(run, 'loss') == [(10, 5.0)] and points(run, 'mIoU') == [(10, 30.0)]
    assert points(read_run([second]), 'mIoU') == [(0, 31.0)]


def test_broken_lines_are_counted(tmp_path):
    log = write(tmp_path / 'a.json', train(10, 5))
    log.write_text(log.read_text() + '\n{"loss": 3.0, "it\n[1]\n{"loss": 2.0}\n')
    run = read_run([log])
    assert run.broken == 3 and points(run, 'loss') == [(10, 5.0)]


@pytest.mark.parametrize(
    'line',
    [
        b'{"loss": 1.0, "iter": 1e400, "step": 1e400}',
        b'{"loss": 1.0, "iter": 1, "step": 1' + b'0' * 400 + b'}',
        b'{"loss": 1.0, "iter": 1, "step": -1}',
        b'{"loss": 1.0, "iter": 1, "step": NaN}',
        b'{"loss": 1.0, "iter": 1, "step": "1"}',
        b'{"loss": 1.0, "iter": 1, "step": null}',
        b'\xff\xfe{"loss": 1.0, "iter": 1, "step": 1}',
        b'[' * 100_000,
    ],
    ids=['infinite', 'huge', 'negative', 'nan', 'text', 'null', 'no UTF-8', 'deep'],
)
def test_impossible_lines_are_broken_ones(tmp_path, line):
    log = write(tmp_path / 'a.json', train(10, 5))
    log.write_bytes(log.read_bytes() + line + b'\n' + json.dumps(train(20, 4)).encode())
    run = read_run([log])
    assert run.broken == 1 and points(run, 'loss') == [(10, 5.0), (20, 4.0)]


def test_values_beyond_a_float_are_infinite(tmp_path):
    log = write(tmp_path / 'a.json', train(10, 10**400))
    assert points(read_run([log]), 'loss') == [(10, math.inf)]


def test_values_that_are_not_finite_stay(tmp_path):
    log = write(tmp_path / 'a.json', train(10, math.nan), train(20, 1))
    values = read_run([log]).curves['loss'].values
    assert math.isnan(values[0]) and values[1] == 1.0


def test_where_there_is_nothing(tmp_path):
    with pytest.raises(UserError, match='nowhere does not exist'):
        find_logs('nowhere')
    with pytest.raises(UserError, match=r'holds no log .*LocalVisBackend'):
        find_logs(str(tmp_path))
    with pytest.raises(UserError, match='holds no values'):
        read_run([write(tmp_path / 'a.json')])
    log = write(tmp_path / 'vis_data/scalars.json', train(1, 1))
    assert find_logs(str(tmp_path)) == find_logs(str(log)) == [log]


def test_smoothing():
    assert smoothed([3.0, 3.0, 3.0], 0.9) == pytest.approx([3.0] * 3, abs=1e-12)
    assert smoothed([1.0, 5.0], 0.0) == [1.0, 5.0]
    # Weights of 1 and 0.5 for the newer and the older value.
    assert smoothed([1.0, 4.0], 0.5) == pytest.approx([1.0, (4 + 0.5 * 1) / 1.5], abs=1e-12)
    found = smoothed([math.nan, 2.0, math.inf, 2.0], 0.5)
    assert math.isnan(found[0]) and found[1:] == pytest.approx([2.0] * 3, abs=1e-12)
