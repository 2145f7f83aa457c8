"""The report of benchmark_ops.py: Markdown, JSON, plot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarking.report import (
    Row,
    facts,
    load_pyplot,
    mebibytes,
    percent,
    plain_log_ticks,
    significant,
    table,
    threads_text,
    write_json,
    write_text,
)

_GROUP = ('part', 'size', 'batch', 'dtype', 'threads', 'execution')
_PLOTTED_GROUPS = 6
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


def write(folder: Path, result: dict[str, Any]) -> None:
    """Write ``ops.json`` and ``ops.md``."""
    write_json(folder / 'ops.json', result)
    write_text(folder / 'ops.md', to_markdown(result))


def to_markdown(result: dict[str, Any]) -> str:
    """The report as Markdown. A CPU's absolute times stay out: they are the machine's mood."""
    rows, on_gpu = result['rows'], result['device'] == 'cuda'
    loops: dict[str, float] = next((row[_LOOPS] for row in rows if _LOOPS in row), {})
    has_units = any('mufu_giga_per_second' in ceiling for ceiling in result['ceilings'])
    share = _SHARE_OF_UNITS if has_units else _SHARE_OF_LOOP.format(loop=next(iter(loops), 'none'))
    reading = _READING.format(ours=result['ours'], baseline=result['baseline'], share=share)
    parts = [
        '# Scan ops',
        f'```bash\n{result["command"]}\n```',
        facts('Machine', result['machine']),
        facts('Versions', result['versions']),
        facts('Ceilings', _ceilings(result)),
    ]
    if result['left_out']:
        parts.append(facts('Not measured', {f'`{k}`:': v for k, v in result['left_out'].items()}))
    parts.append(reading)
    for group, members in grouped(rows):
        part, size, batch, dtype, threads, execution = group
        where = f', {execution}' if on_gpu else f', {threads_text(threads)}'
        channels = members[0]['inner_channels']
        parts.append(f'## {part}, {size} (E {channels}), B {batch}, {dtype}{where}')
        header = ['L', 'pass', 'contender', f'÷ {result["ours"]}', '÷ forward', 'spread']
        header += ['µs'] if on_gpu else []
        header += ['G exp/s', 'of MUFU' if has_units else 'of exp', 'GB/s', 'of copy', 'peak MiB']
        header += [] if on_gpu else ['resident MiB']
        header += ['saved MiB', 'rms']
        parts.append(table([_cells(row, on_gpu) for row in members], header))
    return '\n\n'.join(parts) + '\n'


def _cells(row: Row, on_gpu: bool) -> list[object]:
    if row['status'] != 'ok':
        return [row['length'], row['kind'], row['contender'], row['status']]
    both = row['kind'] != 'forward'
    cells: list[object] = [row['length'], row['kind'], row['contender']]
    cells += [_times(row['over_ours']), _times(row['over_forward']) if both else None]
    cells.append(percent(row['spread']))
    cells += [significant(1e6 * row['median_seconds'])] if on_gpu else []
    cells += [significant(row['gigaexp_per_second']), percent(row['exp_share'])]
    cells += [significant(row['gigabytes_per_second']), percent(row['copy_share'])]
    cells.append(mebibytes(row.get('peak_bytes')))
    cells += [] if on_gpu else [mebibytes(row.get('resident_bytes'))]
    return [
        *cells,
        mebibytes(row.get('saved_bytes')),
        None if (rms := row['difference']) is None else f'{rms:.0e}',
    ]


def _times(ratio: float | None) -> str | None:
    return None if ratio is None else f'{significant(ratio)}×'


def _ceilings(result: dict[str, Any]) -> dict[str, str]:
    """What the ceilings came out as, as text."""
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


def grouped(rows: Iterable[Row]) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Rows that differ in length, pass and contender alone, together."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in _GROUP), []).append(row)
    return list(groups.items())


def plot(folder: Path, result: dict[str, Any]) -> None:
    """Write ``ops.png``: time over ours, and the share of the exponential ceiling, over L."""
    pyplot = load_pyplot()
    groups = grouped(row for row in result['rows'] if row['status'] == 'ok')[:_PLOTTED_GROUPS]
    if pyplot is None or not groups:
        return
    figure, axes = pyplot.subplots(
        len(groups), 2, figsize=(10, 3.2 * len(groups)), squeeze=False, layout='constrained'
    )
    colours = pyplot.rcParams['axes.prop_cycle'].by_key()['color']
    names = list(dict.fromkeys(row['contender'] for row in result['rows']))
    for (group, members), (left, right) in zip(groups, axes):
        part, size, batch, dtype, threads, execution = group
        how = execution if result['device'] == 'cuda' else threads_text(threads)
        left.set_title(f'{part}, {size}, B {batch}, {dtype}, {how}')
        for name in names:
            for kind, style in _STYLES.items():
                points = [r for r in members if r['contender'] == name and r['kind'] == kind]
                if not points:
                    continue
                drawn = dict(
                    color=colours[names.index(name) % len(colours)],
                    linestyle=style,
                    marker='o',
                    markersize=4,
                    label=f'{name}, {kind}',
                )
                lengths = [row['length'] for row in points]
                if None not in (ratios := [row['over_ours'] for row in points]):
                    left.plot(lengths, ratios, **drawn)
                if None not in (shares := [row['exp_share'] for row in points]):
                    right.plot(lengths, [100 * share for share in shares], **drawn)
        left.set_ylabel(f'time ÷ time of {result["ours"]}')
        left.set_yscale('log')
        plain_log_ticks(left.yaxis)
        right.set_ylabel('% of the exponential ceiling')
        right.set_ylim(bottom=0)
        for axis in (left, right):
            axis.set_xscale('log')
            ticks = sorted({row['length'] for row in members})
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
            axis.set_xlabel('tokens L')
            axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3, fontsize='small')
    figure.savefig(folder / 'ops.png', dpi=120)
    pyplot.close(figure)
