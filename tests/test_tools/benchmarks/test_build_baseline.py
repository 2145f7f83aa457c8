"""The baseline's build: what it makes of source distributions; nothing is compiled here."""

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from benchmarking import build_baseline
from benchmarking.build_baseline import PACKAGES, write_sources
from torch.utils import cpp_extension

SCAN, CONVOLUTION = PACKAGES
PARAMS = {
    'selective_scan': ('SSMParamsBase', 'SSMParamsBwd'),
    'causal_conv1d': ('ConvParamsBase', 'ConvParamsBwd'),
}
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
        (found[package.name] / package.folder / f'{package.stem}.cpp').write_text('')
    (convolution / 'causal_conv1d.egg-info').mkdir()
    return found


def test_every_wanted_kernel_is_kept_and_no_other(sdists: dict[str, Path], tmp_path: Path) -> None:
    for package in PACKAGES:
        folder = sdists[package.name] / package.folder
        binding, *kernels, left_out = write_sources(package, folder, tmp_path / package.stem)
        assert binding == folder / f'{package.stem}.cpp'
        assert [file.name for file in kernels] == sorted(file.name for file in folder.glob('*.cu'))
        text = ''.join(file.read_text() for file in kernels)
        asked = [line for line in text.splitlines() if line.startswith('template void')]
        assert sorted(asked) == sorted(
            f'template void {package.stem}_{kind}_cuda<{inputs}, float>({params} &params, '
            'cudaStream_t stream);'
            for kind, params in (('fwd', PARAMS[package.stem][0]), ('bwd', PARAMS[package.stem][1]))
            for inputs in TYPES
        )
        # All others are there to be linked, and say so when they are called.
        rest = left_out.read_text()
        assert rest.count('\ntemplate void ') == (6 if package is SCAN else 9 * 5 - 6)
        assert not any(line in rest for line in asked)
        assert 'TORCH_CHECK(false, "left out of the baseline' in rest


def test_conditions_that_always_hold_are_compiled_for_one_value(
    sdists: dict[str, Path], tmp_path: Path
) -> None:
    _, kernel, *_ = write_sources(SCAN, sdists[SCAN.name] / SCAN.folder, tmp_path / 'w')
    text = kernel.read_text()
    assert '#define ALWAYS_kHasZ true\n' in text and '#define ALWAYS_kIsEvenLen false\n' in text
    assert text.index('#undef BOOL_SWITCH') < text.index('#include "selective_scan_bwd_kernel.cuh"')
    folder = sdists[CONVOLUTION.name] / CONVOLUTION.folder
    _, kernel, *_ = write_sources(CONVOLUTION, folder, tmp_path / 'v')
    assert 'BOOL_SWITCH' not in kernel.read_text()


def test_other_sources_are_refused(sdists: dict[str, Path], tmp_path: Path) -> None:
    folder = sdists[SCAN.name] / SCAN.folder
    with pytest.raises(ValueError, match='0 of the 6 wanted kernels'):
        write_sources(SCAN, sdists[CONVOLUTION.name], tmp_path / 'w')
    (folder / 'fwd_Half.cu').unlink()
    with pytest.raises(ValueError, match='5 of the 6 wanted kernels'):
        write_sources(SCAN, folder, tmp_path / 'w')


def run(sdists: dict[str, Path], out: Path, *more: str) -> int:
    given = []
    for name, folder in sdists.items():
        archive = folder.with_name(f'{folder.name}.tar.gz')
        with tarfile.open(archive, 'w:gz') as file:
            file.add(folder, arcname=folder.name)
        given += [f'--{name}', str(archive)]
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
        module = f'{package.stem}_cuda'
        assert (out / f'{module}.so').read_text() == module
        options = asked[module]
        include = [str(out / 'work' / sdists[package.name].name / package.folder)]
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
    assert 'error: nvcc is not there' in capsys.readouterr().err
    assert not (tmp_path / 'out' / 'selective_scan_cuda.so').exists()


def test_what_is_no_archive_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = str(tmp_path / 'nothing.tar.gz')
    argv = ['--mamba-ssm', nothing, '--causal-conv1d', nothing, '--out', str(tmp_path / 'out')]
    assert build_baseline.main(argv) == 1
    assert 'nothing.tar.gz' in capsys.readouterr().err
