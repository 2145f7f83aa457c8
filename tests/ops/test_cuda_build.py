"""What was compiled of the CUDA kernels: registers, spills, and on which devices they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmvim_ops import library, loading

PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5twicePf' for 'sm_90'
ptxas info    : Function properties for _Z5twicePf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
ptxas info    : Compiling entry function '_Z6thricePf' for 'sm_80'
ptxas info    : Function properties for _Z6thricePf
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size
"""


@pytest.fixture
def kernels() -> list[dict[str, Any]]:
    """What the sidecar says of each kernel."""
    cuda = loading.info().get('cuda')
    if cuda is None:
        pytest.skip(f'no CUDA kernels: {loading.cuda_problem()}')
    found: list[dict[str, Any]] = cuda['kernels']
    return found


def test_what_ptxas_says(tmp_path: Path) -> None:
    building = pytest.importorskip('mmvim_ops_build', reason='needs the sources')
    log = tmp_path / 'kernels.cu.o.log'
    log.write_text(PTXAS)
    assert building._kernel_resources([log]) == [
        dict(kernel='_Z5twicePf', arch='sm_90', registers=10, spilled_bytes=0),
        dict(kernel='_Z6thricePf', arch='sm_80', registers=255, spilled_bytes=32),
    ]


def test_no_kernel_spills(kernels: list[dict[str, Any]]) -> None:
    """No instance on any architecture that this library was compiled for."""
    passes = ('ScanForward', 'ScanBackward', 'ConvForward', 'ConvBackward')
    for name in passes:
        assert any(name in kernel['kernel'] for kernel in kernels), name
    assert not [kernel for kernel in kernels if kernel['spilled_bytes'] > 0]


def test_kernels_of_every_architecture(kernels: list[dict[str, Any]]) -> None:
    """Each has all of them, machine code or not: PTX is compiled by the driver."""
    archs = [arch for arch in loading.info()['cuda']['archs'] if arch.startswith('sm_')]
    names = {kernel['kernel'] for kernel in kernels}
    for arch in archs:
        assert {kernel['kernel'] for kernel in kernels if kernel['arch'] == arch} == names


@pytest.mark.usefixtures('kernels')
def test_every_operator_has_cuda_kernels() -> None:
    """Registered without a driver, and not for the operators that are pure torch by name."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in library.Family._fields:
        assert has(f'mmvim::{name}', 'CUDA'), name
        assert not has(f'mmvim::chunked_{name}', 'CUDA'), name


@pytest.mark.usefixtures('kernels')
def test_forcing_a_split() -> None:
    loading.force_splits(4, 8)
    loading.force_splits(1, 1)  # the kernels of one state
    loading.force_splits()


@pytest.mark.parametrize(
    ('arch', 'runs', 'does_not'),
    [
        ('sm_80', [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0), (10, 0)]),
        ('sm_86', [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ('sm_90', [(9, 0)], [(8, 9), (10, 0), (12, 0)]),
        ('sm_90a', [(9, 0)], [(10, 0)]),
        ('sm_100f', [(10, 0), (10, 3)], [(12, 0), (9, 0)]),
        ('compute_90', [(9, 0), (10, 0), (12, 0)], [(8, 9)]),
        ('compute_120', [(12, 0), (12, 1)], [(10, 0)]),
    ],
)
def test_where_code_runs(
    arch: str, runs: list[tuple[int, int]], does_not: list[tuple[int, int]]
) -> None:
    """Machine code within a major version, PTX on everything later."""
    assert all(loading._runs_on(arch, capability) for capability in runs)
    assert not any(loading._runs_on(arch, capability) for capability in does_not)


@pytest.mark.usefixtures('kernels')
def test_a_device_or_a_driver_that_cannot_run_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the variable that helps."""
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: (7, 5))
    versions = {'driver': 13000, 'runtime': 13000}

    def write_versions(driver: Any, runtime: Any) -> None:
        driver._obj.value, runtime._obj.value = versions.values()

    library = type(
        'Library',
        (),
        {
            'mmvim_cuda_knows_streams': staticmethod(lambda: True),
            'mmvim_cuda_versions': staticmethod(write_versions),
        },
    )
    monkeypatch.setattr(loading, '_library', library)
    problem = loading.cuda_problem()
    assert problem is not None and 'needs compute capability 8.0' in problem and '7.5' in problem
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: (99, 0))
    monkeypatch.setitem(loading._facts, 'cuda', loading._facts['cuda'] | {'archs': ['sm_90']})
    problem = loading.cuda_problem()
    assert problem is not None and 'TORCH_CUDA_ARCH_LIST=99.0' in problem
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: (9, 0))
    assert loading.cuda_problem() is None
    versions['driver'] = 12040
    problem = loading.cuda_problem()
    assert problem is not None and 'CUDA 13.0, and the driver is one for CUDA 12.4' in problem
