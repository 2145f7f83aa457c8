"""The report of benchmark_ops.py: Markdown, JSON, plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarking import report
from benchmarking.report import Row, facts, mebibytes, percent, significant, threads_text

_GROUP = ('part', 'size', 'batch', 'dtype', 'threads', 'execution')
_LOOPS = 'gigaexp_per_second_of_loops'
_STYLES = {'forward': '-', 'forward + backward': '--'}
_READING = """\
`÷ {ours}` is a contender's time over that of `{ours}`, from the medians of interleaved samples:
above 1 `{ours}` is faster. `÷ forward` is the time over that of the same contender's forward pass,
`spread` the distance between the quartiles over the median. `G exp/s` counts B·L·E·N per direction,
twice for forward + backward (no implementation saves the decays); {share}
`GB/s` counts the bytes that cannot be avoided (inputs read once, results
written once); `of copy` is its share of a large copy. `peak` is what torch held above the inputs,
`resident` the growth of a fresh process (native scratch included), `saved` what autograd keeps for
the backward pass, parameters apart. `rms` is the relative distance of the output to that of
`{baseline}`, or of the last contender where that was left out."""
_SHARE_OF_LOOP = """`of exp` is its share of what the machine can do ({loop})."""
_SHARE_OF_UNITS = """\
`of MUFU` is the share of
what the special-function units can do, 16 results a clock and multiprocessor, that the formulas
ask for: for each token, channel and direction a power for every state and two results for softplus,
two more for the gate of both directions, and in the part `inner` two for each convolution; twice
for forward + backward. `graphs` are passes replayed as CUDA graphs, without the time that Python
takes to launch kernels; `cuda S4` are our kernels with 4 threads a channel, `auto` those that
their rule chooses."""


def to_markdown(result: dict[str, Any]) -> str:
    """The report as Markdown. A CPU's absolute times stay out: they are the machine's mood."""
    rows, on_gpu = result['rows'], result['device'] == 'cuda'
    loops: dict[str, float] = next((row[_LOOPS] for row in rows if _LOOPS in row), {})
    has_units = any('mufu_giga_per_second' in ceiling for ceiling in result['ceilings'])
    share = _SHARE_OF_UNITS if has_units else _SHARE_OF_LOOP.format(loop=next(iter(loops), 'none'))
    parts = [*report.preamble('Scan ops', result), facts('Ceilings', _ceilings(result))]
    if result['left_out']:
        parts.append(facts('Not measured', {f'`{k}`:': v for k, v in result['left_out'].items()}))
    parts.append(_READING.format(ours=result['ours'], baseline=result['baseline'], share=share))
    header = ['L', 'pass', 'contender', f'÷ {result["ours"]}', '÷ forward', 'spread']
    header += ['µs'] if on_gpu else []
    header += ['G exp/s', 'of MUFU' if has_units else 'of exp', 'GB/s', 'of copy', 'peak MiB']
    header += ['saved MiB', 'rms'] if on_gpu else ['resident MiB', 'saved MiB', 'rms']
    for group, members in report.grouped(rows, _GROUP):
        title = _title(group, f' (E {members[0]["inner_channels"]})', on_gpu)
        parts += [f'## {title}', report.table([_cells(row, on_gpu) for row in members], header)]
    return '\n\n'.join(parts) + '\n'


def _title(group: dict[str, Any], channels: str, on_gpu: bool) -> str:
    how = group['execution'] if on_gpu else threads_text(group['threads'])
    size = f'{group["size"]}{channels}'
    return f'{group["part"]}, {size}, B {group["batch"]}, {group["dtype"]}, {how}'


def _cells(row: Row, on_gpu: bool) -> list[object]:
    cells: list[object] = [row['length'], row['kind'], row['contender']]
    if row['status'] != 'ok':
        return [*cells, row['status']]
    cells.append(_times(row['over_ours']))
    cells.append(_times(row['over_forward']) if row['kind'] != 'forward' else None)
    cells.append(percent(row['spread']))
    cells += [significant(1e6 * row['median_seconds'])] if on_gpu else []
    cells += [significant(row['gigaexp_per_second']), percent(row['exp_share'])]
    cells += [significant(row['gigabytes_per_second']), percent(row['copy_share'])]
    memory = (
        ('peak_bytes', 'saved_bytes') if on_gpu else ('peak_bytes', 'resident_bytes', 'saved_bytes')
    )
    cells += [mebibytes(row.get(key)) for key in memory]
    return [*cells, None if (rms := row['difference']) is None else f'{rms:.0e}']


def _times(ratio: float | None) -> str | None:
    return None if ratio is None else f'{significant(ratio)}×'


def _ceilings(result: dict[str, Any]) -> dict[str, str]:
    """The measured ceilings as text."""
    on_gpu = result['device'] == 'cuda'
    texts = {}
    for ceiling in result['ceilings']:
        threads = ceiling['threads']
        where = '' if on_gpu else f', {threads_text(threads)}'
        texts[f'copy{where}'] = f'{significant(ceiling["copy_gigabytes_per_second"])} GB/s'
        if 'mufu_giga_per_second' in ceiling:
            texts['special-function units'] = (
                f'{significant(ceiling["mufu_giga_per_second"])} G results/s at '
                f'{ceiling["sm_megahertz"]:.0f} MHz'
            )
        mine = [
            row for row in result['rows'] if row['threads'] == threads and row['status'] == 'ok'
        ]
        for name in mine[0][_LOOPS] if mine else ():
            rates = sorted(row[_LOOPS][name] for row in mine)
            texts[f'{name}{where}'] = (
                f'{significant(rates[len(rates) // 2])} G exp/s '
                f'({significant(rates[0])} to {significant(rates[-1])} over the cases)'
            )
    return texts


def plot(folder: Path, result: dict[str, Any]) -> None:
    """Write ``ops.png``: time over ours, and the share of the exponential ceiling, over L."""
    names = list(dict.fromkeys(row['contender'] for row in result['rows']))

    def draw(group: dict[str, Any], members: list[Row], left: Any, right: Any) -> None:
        left.set_title(_title(group, '', result['device'] == 'cuda'))
        for name in names:
            for kind, style in _STYLES.items():
                points = [r for r in members if r['contender'] == name and r['kind'] == kind]
                lengths = [row['length'] for row in points]
                for axis, key, factor in ((left, 'over_ours', 1), (right, 'exp_share', 100)):
                    values = [row[key] for row in points]
                    if values and None not in values:
                        axis.plot(
                            lengths,
                            [factor * value for value in values],
                            color=f'C{names.index(name)}',
                            linestyle=style,
                            marker='o',
                            markersize=4,
                            label=f'{name}, {kind}',
                        )
        left.set_ylabel(f'time ÷ time of {result["ours"]}')
        right.set_ylabel('% of the exponential ceiling')

    groups = report.grouped((row for row in result['rows'] if row['status'] == 'ok'), _GROUP)
    report.plot(folder / 'ops.png', groups, 'length', 'tokens L', draw)
