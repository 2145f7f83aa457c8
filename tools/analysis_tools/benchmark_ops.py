"""Time the scan ops of mmvim_ops against the token loop, interleaved, and print a Markdown table.

Needs torch alone. Times are medians with the fastest and slowest run; on a shared machine only the
ratios, whose two sides were measured in turn, mean anything.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mmvim_ops import available_backends, bidirectional_selective_scan, selective_scan

Call = Callable[[], None]

# Name -> (batch B, tokens L, inner channels E, dt rank R): one direction where R is 0.
CASES = {
    'one direction, B 1, L 1024, E 384': (1, 1024, 384, 0),
    'both, B 1, L 197, E 384 (Vim-Ti at 224)': (1, 197, 384, 12),
    'both, B 1, L 1024, E 384 (Vim-Ti at 512)': (1, 1024, 384, 12),
    'both, B 16, L 256, E 128 (the demo)': (16, 256, 128, 4),
}
STATES = 16


def make_inputs(batch: int, length: int, channels: int, rank: int) -> list[Tensor]:
    """Random inputs of a scan, float32, in the order of its arguments."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tokens = (batch, length)
    decay = -torch.arange(1.0, STATES + 1).repeat(channels, 1)
    if not rank:
        u, z = draw(*tokens, channels), draw(*tokens, channels)
        delta, bias = draw(*tokens, channels) - 3, 0.1 * draw(channels)
        return [
            u,
            delta,
            decay,
            draw(*tokens, STATES),
            draw(*tokens, STATES),
            draw(channels),
            z,
            bias,
        ]
    both = [draw(*tokens, channels) for _ in range(2)]
    both += [draw(*tokens, rank + 2 * STATES) for _ in range(2)]
    both += [0.3 * draw(channels, rank) for _ in range(2)]
    both += [0.1 * draw(channels) - 3 for _ in range(2)]
    return [*both, decay, decay.clone(), draw(channels), draw(channels), draw(*tokens, channels)]


def make_calls(inputs: list[Tensor], both: bool, backend: str, device: str) -> dict[str, Call]:
    """The forward pass, and forward with backward, of one backend."""
    scan = bidirectional_selective_scan if both else selective_scan
    options = {} if both else dict(delta_softplus=True)
    inputs = [tensor.to(device) for tensor in inputs]
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]

    def forward() -> None:
        with torch.no_grad():
            scan(*inputs, **options, backend=backend)

    def forward_backward() -> None:
        torch.autograd.grad(scan(*leaves, **options, backend=backend).sum(), leaves)

    return {'forward': forward, 'forward + backward': forward_backward}


def measure(calls: dict[str, Call], runs: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of every call, taken in turn, after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if device == 'cuda':
                torch.cuda.synchronize()
            if run:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--backends', nargs='+', default=['chunked'], help='what to time')
    parser.add_argument('--against', default='reference', help='what to compare with')
    parser.add_argument('--runs', type=int, default=9, help='counted runs of each call')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    args = parser.parse_args()
    for backend in (*args.backends, args.against):
        status = available_backends().get(backend)
        if status is None or not status.available:
            reason = 'unknown backend' if status is None else status.note
            parser.error(f'{backend}: {reason}')
    torch.set_num_threads(args.threads)
    name = torch.cuda.get_device_name() if args.device == 'cuda' else platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    print(f'{name or platform.machine()} ({capability}), {args.threads} threads, ', end='')
    print(f'torch {torch.__version__}, float32, N {STATES}, median of {args.runs} (min – max)\n')
    print(f'| case | pass | backend | ms | {args.against}, ms | ratio |\n|---|---|---|---|---|---|')
    for case, (batch, length, channels, rank) in CASES.items():
        inputs = make_inputs(batch, length, channels, rank)
        calls = {
            f'{kind}|{backend}': call
            for backend in (*args.backends, args.against)
            for kind, call in make_calls(inputs, bool(rank), backend, args.device).items()
        }
        times = measure(calls, args.runs, args.device)
        for kind in ('forward', 'forward + backward'):
            slow = times[f'{kind}|{args.against}']
            for backend in args.backends:
                fast = times[f'{kind}|{backend}']
                ratio = statistics.median(b / a for a, b in zip(fast, slow))
                cells = [
                    f'{statistics.median(t):.1f} ({min(t):.1f} – {max(t):.1f})'
                    for t in (fast, slow)
                ]
                print(f'| {case} | {kind} | {backend} | {" | ".join(cells)} | {ratio:.1f}x |')


if __name__ == '__main__':
    main()
