"""Compile the Triton kernels for GPUs that need not be there, and tell what they became.

Every kernel is compiled as the ops launch it at given sizes: registers of a thread, numbers it had
to spill into memory, shared memory of a block, and of the scans the instructions a token and state,
which are counted in the innermost loops of the machine code. Needs torch and triton alone; for
GPUs of NVIDIA, triton brings the assembler and the disassembler.
"""

from __future__ import annotations

import argparse
import ast
import linecache
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mmvim_ops.triton_kernels import conv, norm, scan_direction, scans

TARGETS = {
    **{f'sm_{number}': GPUTarget('cuda', number, 32) for number in (80, 90, 100, 120)},
    'gfx942': GPUTarget('hip', 'gfx942', 64),
    'gfx1100': GPUTarget('hip', 'gfx1100', 32),
}
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
SIZES = 384, 12  # E and R of Vim-tiny
OPS = ('forward', 'backward', 'selective', 'conv', 'norm')
# In NVIDIA's machine code: an instruction; a label, and a branch to it.
_INSTRUCTION = r'\s+/\*[0-9a-f]{4,}\*/\s+(?!.*\bNOP\b)'
_NVIDIA_LOOP = r'\s*(\.L_x_\d+):', r'BRA.*`\((\.L_x_\d+)\)'
MULTIPROCESSORS = 132  # of an H200: few channels go in segments


class Launch(NamedTuple):
    """A kernel as an op launches it: its arguments, and options of the compiler."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]


class Measures(NamedTuple):
    """Of compiled code: per thread, per block, and per token and state (None but for scans)."""

    registers: int
    spills: int
    shared_bytes: int
    instructions: float | None


class _Device:
    """Stands in for the driver of a device, which would have to be there."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextmanager
def standing_in(target: GPUTarget) -> Iterator[None]:
    """Has triton take a large device of a kind for the current one."""
    multiprocessors = scan_direction.multiprocessors
    scan_direction.multiprocessors = lambda device: MULTIPROCESSORS
    driver.set_active(_Device(target))
    try:
        yield
    finally:
        scan_direction.multiprocessors = multiprocessors
        with suppress(RuntimeError):  # there is no driver to go back to
            driver.reset_active()


def launches(run: Callable[[], object], target: GPUTarget) -> list[Launch]:
    """What an op would launch; its tensors are on the meta device."""
    found: list[Launch] = []

    def record(kernel: JITFunction, *, grid: object, warmup: bool, **given: Any) -> None:
        names = set(kernel.arg_names)
        options = {name: value for name, value in given.items() if name not in names}
        found.append(Launch(kernel, {name: given[name] for name in kernel.arg_names}, options))

    original = JITFunction.run
    JITFunction.run = record
    try:
        with standing_in(target):
            run()
    finally:
        JITFunction.run = original
    return found


def compiled(launch: Launch, target: GPUTarget) -> Any:
    """The kernel, specialised for its arguments as triton does at a launch."""
    kernel, arguments, options = launch
    with standing_in(target):
        *_, backend, bind = kernel.create_binder()
        bound, kinds, _ = bind(**arguments, **options)
        parsed, *specialised = kernel._pack_args(backend, options, bound, kinds, options)
        source = ASTSource(kernel, *specialised)
        return triton.compile(source, target=target, options=vars(parsed))


def loops(lines: Sequence[str], label: str, branch: str) -> Iterator[Sequence[str]]:
    """The lines of every innermost loop of machine code: from a label to a branch back to it."""
    places = {found[1]: i for i, line in enumerate(lines) if (found := re.match(label, line))}
    spans = [
        (places[found[1]], i)
        for i, line in enumerate(lines)
        if (found := re.search(branch, line)) and places.get(found[1], i + 1) <= i
    ]
    for start, stop in spans:
        if not any(start <= a and b <= stop and (a, b) != (start, stop) for a, b in spans):
            yield lines[start : stop + 1]


class Walk(NamedTuple):
    """What a thread does in one turn of a loop along tokens, and how many it has of each."""

    tokens: int
    channels: int
    states: int
    gated: bool


def per_state(
    found: Iterable[Sequence[str]],
    instruction: str,
    exponential: str,
    reciprocal: str,
    walk: Walk | None,
) -> float | None:
    """Instructions a token and state, over all loops in which a token has an exponential a state.

    A turn has one for every state and for the step of every channel, one for every gate where the
    loop has gates, which take a reciprocal; and more, of decays that are computed again for want
    of registers. Where it has twice as many as it needs, a compiler has unrolled the loop.
    """
    if walk is None:
        return None
    total = 0.0
    for lines in found:
        gates = walk.gated and any(reciprocal in line for line in lines)
        least = walk.tokens * walk.channels * (walk.states + 1 + gates)
        turns = sum(exponential in line for line in lines) // least
        count = sum(bool(re.match(instruction, line)) for line in lines)
        if turns:
            total += count / (turns * walk.tokens * walk.channels * walk.states)
    return total


def origin(file: str, line: int) -> str:
    """A function that kernels share, or a line of a kernel."""
    text = linecache.getline(file, line).strip()
    for node in ast.walk(ast.parse(''.join(linecache.getlines(file)))):
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or 0):
            return text if node.name.endswith('_kernel') else f'{node.name}()'
    return text


def by_origin(loop: Iterable[str]) -> dict[str, Counter[str]]:
    """The names of the instructions of NVIDIA's machine code that come from each origin."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    place = '(not said)'
    for text in loop:
        line = re.match(r'\s*//## File "(.*)", line (\d+)', text)
        if line and 'inlined at' not in text:
            place = origin(line[1], int(line[2]))
        elif instruction := re.match(rf'{_INSTRUCTION}(?:@!?U?P\d+ )?(\w+)', text):
            found[place][instruction[1]] += 1
    return found


def print_origins(launch: Launch, target: GPUTarget) -> None:
    """Print what a turn of a scan's innermost loops takes, most first."""
    with triton.knobs.compilation.scope():
        # Code from triton's cache names files where it was compiled, perhaps in another checkout.
        triton.knobs.compilation.always_compile = True
        code = compiled(launch, target)
    _, text = _nvidia_tools(code, ['-c', '-g'])
    for loop in loops(text.splitlines(), *_NVIDIA_LOOP):
        if not any('MUFU.EX2' in line for line in loop):
            continue
        found = by_origin(loop)
        total = sum(names.total() for names in found.values())
        print(f'\n| {total} | {title(launch)} | |\n|---|---|---|')
        for place, names in sorted(found.items(), key=lambda item: -item[1].total()):
            kinds = ', '.join(f'{count} {name}' for name, count in names.most_common())
            print(f'| {names.total()} | `{place}` | {kinds} |')


def _nvidia_tools(code: Any, disassembly: Sequence[str]) -> tuple[str, str]:
    """What triton's copies of NVIDIA's tools say of a cubin: its resources, its machine code."""
    tools = triton.knobs.nvidia
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'kernel.cubin'
        file.write_bytes(code.asm['cubin'])
        usage, text = (
            subprocess.run([tool, *flags, file], capture_output=True, text=True, check=True).stdout
            for tool, flags in (
                (tools.cuobjdump.path, ['-res-usage']),
                (tools.nvdisasm.path, disassembly),
            )
        )
    return usage, text


def _nvidia(code: Any, walk: Walk | None) -> Measures:
    """Of a cubin."""
    usage, text = _nvidia_tools(code, ['-c'])
    registers, stack, local = (
        int(re.search(rf'{name}:(\d+)', usage)[1])  # type: ignore[index]
        for name in ('REG', 'STACK', 'LOCAL')
    )
    found = loops(text.splitlines(), *_NVIDIA_LOOP)
    count = per_state(found, _INSTRUCTION, 'MUFU.EX2', 'MUFU.RCP', walk)
    return Measures(registers, (stack + local) // 4, code.metadata.shared, count)


def _amd(code: Any, walk: Walk | None) -> Measures:
    """Of assembly text, which ends in what a kernel takes."""
    text = code.asm['amdgcn']
    registers, spills, shared = (
        int(re.search(rf'\.{name}:\s+(\d+)', text)[1])  # type: ignore[index]
        for name in ('vgpr_count', 'vgpr_spill_count', 'group_segment_fixed_size')
    )
    found = loops(text.splitlines(), r'(\.LBB\d+_\d+):', r's_cbranch_\w+ (\.LBB\d+_\d+)')
    count = per_state(found, r'\t[a-z]\w+_\w+', 'v_exp_f32', 'v_rcp_f32', walk)
    return Measures(registers, spills, shared, count)


def measured(launch: Launch, target: GPUTarget) -> Measures:
    """Compile a kernel and describe its code."""
    code, arguments = compiled(launch, target), launch.arguments
    walk = None
    if 'RANK' in arguments:
        channels = arguments['BLOCK'] // (target.warp_size * launch.options['num_warps'])
        walk = Walk(
            arguments.get('HELD', 1), channels, arguments['N'], arguments.get('z') is not None
        )
    return (_nvidia if target.backend == 'cuda' else _amd)(code, walk)


def scan_launches(target: GPUTarget, dtype: torch.dtype, N: int, E: int, R: int) -> list[Launch]:
    """Both directions of both passes of the scan of a Vim block; a backward pass is to come."""
    B, L = 8, 1024

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device='meta')

    x, dbl = (empty(B, L, width, dtype=dtype) for width in (E, R + 2 * N))
    z = empty(B, L, 2 * E, dtype=dtype)[..., E:]
    tensors = [x, dbl, empty(E, R), empty(E), empty(E, N), empty(E)]
    inputs = [tensor for tensor in tensors for _ in 'fb']
    checkpoints = empty(L // 64, B, 2, N, E)

    def run() -> None:
        scans.bidirectional_selective_scan(*inputs, z, 0.5, False, 64)
        scans.bidirectional_selective_scan_backward(
            *(x, *inputs, z, checkpoints, 0.5, 64, [True] * 13, False)
        )

    return launches(run, target)


def selective_launches(target: GPUTarget, dtype: torch.dtype, N: int, E: int) -> list[Launch]:
    """Both passes of the generic scan in two groups, with all that it may be given."""
    B, L, groups = 8, 1024, 2

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device='meta')

    u, states = empty(B, L, E, dtype=dtype), empty(B, L, groups, N, dtype=dtype)
    inputs = (u, u, empty(E, N), states, states, empty(E), u, empty(E))
    options = (True, False, groups, 64)
    last, checkpoints = empty(B, E, N), empty(L // 64, B, groups, N, E // groups)

    def run() -> None:
        scans.selective_scan(*inputs, *options)
        scans.selective_scan_backward(*(u, last, *inputs, checkpoints, *options, [True] * 8, False))

    return launches(run, target)


def conv_launches(target: GPUTarget, dtype: torch.dtype, E: int) -> list[Launch]:
    """One direction of both passes of the convolution of a Vim block."""
    x = torch.empty(8, 1024, 2 * E, dtype=dtype, device='meta')[..., :E]
    weight, bias = (torch.empty(*shape, device='meta') for shape in ((E, 4), (E,)))

    def run() -> None:
        conv.conv1d_silu(x, weight, bias, False)
        conv.conv1d_silu_backward(x, x, weight, bias, False, [True] * 3)

    return launches(run, target)


def norm_launches(target: GPUTarget, dtype: torch.dtype, E: int) -> list[Launch]:
    """Both passes of the normalisation of E / 2 channels, whose stream is in float32."""
    x, weight = (torch.empty(*shape, device='meta') for shape in ((8, 1024, E // 2), (E // 2,)))
    scales = torch.empty(8, 1024, device='meta')

    def run() -> None:
        norm.add_rms_norm(x, x.to(dtype), weight, 1e-5)
        norm.add_rms_norm_backward(x, x, x, scales, weight)

    return launches(run, target)


def pass_of(launch: Launch) -> str:
    """'forward' or 'backward', of a kernel of a scan."""
    adjoint = launch.arguments.get('grad_out') is not None or launch.arguments.get('ADJOINT')
    return 'backward' if adjoint else 'forward'


def title(launch: Launch) -> str:
    """What a row calls a kernel."""
    name = launch.kernel.fn.__name__.removesuffix('_kernel').replace('_', ' ')
    if name in ('segment', 'carry') and pass_of(launch) == 'backward':
        name += ' of the adjoint'
    name += ', reverse' if launch.arguments.get('REVERSE') else ''
    return name + ('' if launch.arguments.get('RANK', 1) else ', generic')


def rows(
    targets: Sequence[str], dtypes: Sequence[str], states: Sequence[int], ops: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    """The cells of every kernel's row, of the sizes of Vim-tiny."""
    E, R = SIZES
    for name in targets:
        target = TARGETS[name]
        for dtype in dtypes:
            found: list[tuple[str, Launch]] = []
            if 'forward' in ops or 'backward' in ops:
                found += [
                    (str(N), launch)
                    for N in states
                    for launch in scan_launches(target, DTYPES[dtype], N, E, R)
                    if pass_of(launch) in ops
                ]
            if 'selective' in ops:
                found += [
                    (str(N), launch)
                    for N in states
                    for launch in selective_launches(target, DTYPES[dtype], N, E)
                ]
            if 'conv' in ops:
                found += [('–', launch) for launch in conv_launches(target, DTYPES[dtype], E)]
            if 'norm' in ops:
                found += [('–', launch) for launch in norm_launches(target, DTYPES[dtype], E)]
            for N, launch in found:
                got = measured(launch, target)
                count = '–' if got.instructions is None else f'{got.instructions:.1f}'
                yield (title(launch), name, dtype, N, *map(str, got[:3]), count)


def print_all_origins(
    targets: Sequence[str], dtypes: Sequence[str], states: Sequence[int], ops: Sequence[str]
) -> None:
    """Print, of the scans of a Vim block, where the instructions of their loops come from."""
    for target, dtype, N in product(targets, dtypes, states):
        for launch in scan_launches(TARGETS[target], DTYPES[dtype], N, *SIZES):
            if launch.kernel.fn.__name__.startswith('scan') and pass_of(launch) in ops:
                print(f'\n{target}, {dtype}, N {N}')
                print_origins(launch, TARGETS[target])


def main() -> None:
    """Print a table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--targets', nargs='+', choices=TARGETS, default=list(TARGETS))
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=['bfloat16'])
    parser.add_argument('--states', nargs='+', type=int, default=[16], help='N of the scans')
    parser.add_argument(
        '--ops',
        nargs='+',
        choices=OPS,
        default=list(OPS),
        help='passes of the bidirectional scan, or others (default: all)',
    )
    parser.add_argument(
        '--origins',
        action='store_true',
        help='where the instructions of the loops of the scans come from (GPUs of NVIDIA)',
    )
    args = parser.parse_args()
    if args.origins:
        if any(TARGETS[target].backend != 'cuda' for target in args.targets):
            parser.error('--origins reads the machine code of sm_* alone; give --targets sm_90')
        print_all_origins(args.targets, args.dtypes, args.states, args.ops)
        return
    print('| kernel | for | dtype | N | registers | spilled | shared bytes | instructions |')
    print('|---|---|---|---|---|---|---|---|')
    for cells in rows(args.targets, args.dtypes, args.states, args.ops):
        print(f'| {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
    main()
