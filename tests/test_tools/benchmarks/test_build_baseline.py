"""The baseline's build: what it makes of source distributions; nothing is compiled here."""

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from benchmarking import build_baseline
from benchmarking.build_baseline import PACKAGES, BaselineError, unpacked, write_sources
from torch.utils import cpp_extension

SCAN, CONVOLUTION = PACKAGES
TYPES = ('float', 'at::Half', 'at::BFloat16')


def instance(function: str, inputs: str, weights: str, params: str) -> str:
    return (
        f'template void {function}<{inputs}, {weights}>({params} &params, cudaStream_t stream);\n'
    )


@pytest.fixture
def sdists(tmp_path: Path) -> dict[str, Path]:
    """Folders laid out as the source distributions are, with the instances that those ask for."""
    scan = tmp_path / 'mamba_ssm-2.3.2.post1'
    folder = scan / SCAN.folder
    folder.mkdir(parents=True)
    for kind in ('fwd', 'bwd'):
        params = 'SSMParamsBase' if kind == 'fwd' else 'SSMParamsBwd'
        for inputs in TYPES:
            short = inputs.split('::')[-1]
            real, complex_ = (
                instance(f'selective_scan_{kind}_cuda', inputs, weights, params)
                for weights in ('float', 'complex_t')
            )
            head = f'#include "selective_scan_{kind}_kernel.cuh"\n\n'
            if kind == 'fwd':  # one file for both there
                (folder / f'fwd_{short}.cu').write_text(head + real + complex_)
            else:  # and no line end at the end
                (folder / f'bwd_{short}_real.cu').write_text(head + real.rstrip())
                (folder / f'bwd_{short}_complex.cu').write_text(head + complex_.rstrip())
    (scan / 'mamba_ssm.egg-info').mkdir()
    (scan / 'mamba_ssm.egg-info' / 'PKG-INFO').write_text('Name: mamba-ssm\nVersion: 2.3.2\n')
    convolution = tmp_path / 'causal_conv1d-1.7.0'
    folder = convolution / CONVOLUTION.folder
    folder.mkdir(parents=True)
    for kind, also in (('fwd', ['channellast_fwd']), ('bwd', ['channellast_bwd']), ('update', [])):
        params = 'ConvParamsBwd' if kind == 'bwd' else 'ConvParamsBase'
        text = '#include "causal_conv1d.h"\n__global__ void kernel() {}\n\n'
        for name in (kind, *also):
            for weights in TYPES:
                text += ''.join(
                    instance(f'causal_conv1d_{name}_cuda', inputs, weights, params)
                    for inputs in TYPES
                )
        (folder / f'causal_conv1d_{kind}.cu').write_text(text)
    found = {SCAN.name: scan, CONVOLUTION.name: convolution}
    for package in PACKAGES:
        for name in (package.binding, package.header):
            (found[package.name] / package.folder / name).write_text('')
    return found


def test_every_wanted_kernel_has_a_file_and_no_other(
    sdists: dict[str, Path], tmp_path: Path
) -> None:
    for package in PACKAGES:
        binding, *kernels, left_out = write_sources(package, sdists[package.name], tmp_path / 'w')
        assert binding == sdists[package.name] / package.folder / package.binding
        assert sorted(file.stem for file in kernels) == sorted(
            f'{function}_{inputs.replace("::", "_")}'
            for function in package.functions
            for inputs in TYPES
        )
        for file in kernels:
            text = file.read_text()
            asked = [line for line in text.splitlines() if line.startswith('template void')]
            assert len(asked) == 1 and ', float>(' in asked[0]
            assert asked[0].startswith(f'template void {file.stem.split("_cuda")[0]}_cuda<')
        # All others are there to be linked, and say so when they are called.
        rest = left_out.read_text()
        assert rest.count('\ntemplate void ') == (6 if package is SCAN else 9 * 5 - 6)
        assert not any(f'{function}<float, float>' in rest for function in package.functions)
        assert 'TORCH_CHECK(false, "left out of the baseline' in rest


def test_conditions_that_always_hold_are_compiled_for_one_value(
    sdists: dict[str, Path], tmp_path: Path
) -> None:
    _, kernel, *_ = write_sources(SCAN, sdists[SCAN.name], tmp_path / 'w')
    text = kernel.read_text()
    assert '#define ALWAYS_kHasZ true\n' in text and '#define ALWAYS_kIsEvenLen false\n' in text
    assert text.index('#undef BOOL_SWITCH') < text.index('#include "selective_scan_bwd_kernel.cuh"')
    _, kernel, *_ = write_sources(CONVOLUTION, sdists[CONVOLUTION.name], tmp_path / 'v')
    assert 'BOOL_SWITCH' not in kernel.read_text()


def test_archives_are_unpacked(sdists: dict[str, Path], tmp_path: Path) -> None:
    archive = tmp_path / 'a.tar.gz'
    with tarfile.open(archive, 'w:gz') as file:
        file.add(sdists[SCAN.name], arcname=sdists[SCAN.name].name)
    folder = unpacked(archive, tmp_path / 'w')
    assert folder == tmp_path / 'w' / 'mamba_ssm-2.3.2.post1'
    assert len(write_sources(SCAN, folder, tmp_path / 'v')) == 8
    assert unpacked(folder, tmp_path / 'u') == folder
    with pytest.raises(BaselineError, match='neither the folder nor the'):
        unpacked(tmp_path / 'nothing', tmp_path)


def test_other_sources_are_refused(sdists: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match='has no selective_scan'):
        write_sources(SCAN, sdists[CONVOLUTION.name], tmp_path / 'w')
    (sdists[SCAN.name] / SCAN.folder / 'fwd_Half.cu').unlink()
    with pytest.raises(BaselineError, match='5 of the 6 wanted kernels of mamba-ssm'):
        write_sources(SCAN, sdists[SCAN.name], tmp_path / 'w')


def run(sdists: dict[str, Path], out: Path, *more: str) -> int:
    given = [word for name, path in sdists.items() for word in (f'--{name}', str(path))]
    return build_baseline.main([*given, '--out', str(out), *more])


def test_both_modules_are_put_in_one_folder(
    sdists: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv('TORCH_CUDA_ARCH_LIST', raising=False)
    asked: dict[str, Any] = {}

    def load(name: str, sources: list[str], build_directory: str, **options: Any) -> None:
        assert os.environ['TORCH_CUDA_ARCH_LIST'] == '9.0'
        assert all(Path(source).is_file() for source in sources)
        asked[name] = options
        Path(build_directory, f'{name}.so').write_text(name)

    monkeypatch.setattr(cpp_extension, 'load', load)
    out = tmp_path / 'out'
    assert run(sdists, out, '--arch', '9.0') == 0
    os.environ.pop('TORCH_CUDA_ARCH_LIST')
    for package in PACKAGES:
        assert (out / f'{package.module}.so').read_text() == package.module
        options = asked[package.module]
        include = [str(sdists[package.name] / package.folder)]
        assert options['extra_include_paths'] == include and options['with_cuda']
        assert '--use_fast_math' in options['extra_cuda_cflags']
    assert (out / 'mamba_ssm.egg-info' / 'PKG-INFO').is_file()
    assert f'now: export PYTHONPATH={out}' in capsys.readouterr().out


def test_a_failed_compilation_is_told(
    sdists: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise RuntimeError('nvcc is not there')

    monkeypatch.setattr(cpp_extension, 'load', load)
    assert run(sdists, tmp_path / 'out') == 1
    assert 'error: selective_scan_cuda: nvcc is not there' in capsys.readouterr().err
    assert not (tmp_path / 'out' / 'selective_scan_cuda.so').exists()
