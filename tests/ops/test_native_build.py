"""The build of the native library, on small sources of its own: what is made, and why it is not."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmvim_ops.library_file import LIBRARY, SIDECAR

building = pytest.importorskip('mmvim_ops_build', reason='there is no build without the sources')
BuildError, build, build_if_possible = (
    building.BuildError,
    building.build,
    building.build_if_possible,
)

CXX = next(filter(None, map(shutil.which, ('g++', 'c++', 'clang++'))), None)
NVCC = shutil.which('nvcc', path=f'{os.environ.get("PATH")}:/usr/local/cuda/bin')
needs_compiler = pytest.mark.skipif(CXX is None, reason='no C++ compiler')

SOURCES = {
    'answer.h': '#define ANSWER 42\n',
    'main.cpp': """
        #include "answer.h"
        extern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }
    """,
    'cpu/plain.cpp': '#ifdef __AVX__\n#error more than the plain flags\n#endif\n',
    'cpu/avx2.cpp': '#if !(defined __AVX2__ && defined __FMA__)\n#error flags\n#endif\n',
    'cpu/avx512.cpp': '#ifndef __AVX512VL__\n#error flags\n#endif\n',
}
NO_CUDA = 'MMVIM_CUDA=0 asked for the CPU kernels alone'
NVCC_SCRIPT = """#!/bin/sh
case "$1" in
    --version) printf 'some compiler\\ntools, release 12.4, V12.4.1\\nbuild 1\\n' ;;
    --list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_90\\n' ;;
    *) echo "$@" > "$(dirname "$0")/nvcc.log"
       echo 'this compiler understands no such thing' >&2; exit 2 ;;
esac
"""


class Site:
    """Folders of a build, and the build in them."""

    def __init__(self, folder: Path) -> None:
        self.sources, self.target, self.work = (folder / n for n in ('csrc', 'target', 'work'))
        for name, text in SOURCES.items():
            self.write(name, text)
        self.environ = {'PATH': os.environ.get('PATH', ''), 'MAX_JOBS': '2', 'MMVIM_CUDA': '0'}

    def write(self, name: str, text: str) -> None:
        path = self.sources / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def build(self, **environ: str) -> dict[str, Any]:
        return build(self.target, self.sources, self.work, {**self.environ, **environ})

    def build_if_possible(self, **environ: str) -> str | None:
        environ = {**self.environ, **environ}
        return build_if_possible(self.target, self.sources, self.work, environ)

    def sidecar(self) -> dict[str, Any]:
        return json.loads((self.target / SIDECAR).read_text())

    def objects(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in self.work.rglob('*.o')}

    def fake_nvcc(self) -> str:
        """A CUDA_HOME whose nvcc tells its version and compiles nothing."""
        nvcc = self.work / 'cuda' / 'bin' / 'nvcc'
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text(NVCC_SCRIPT)
        nvcc.chmod(0o755)
        return str(nvcc.parents[1])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@needs_compiler
def test_library_and_sidecar(site: Site) -> None:
    facts = site.build()
    content = (site.target / LIBRARY).read_bytes()
    sidecar = site.sidecar()
    assert sidecar == {**facts, 'interface': building.INTERFACE, 'version': sidecar['version']}
    assert sidecar['sha256'] == hashlib.sha256(content).hexdigest()
    assert sidecar['sources'] == building.sources_digest(site.sources)
    assert sidecar['cuda'] is None and sidecar['cuda_problem'] == NO_CUDA
    assert {path.name for path in site.target.iterdir()} == {LIBRARY, SIDECAR}
    assert str(site.sources).encode() not in content


@needs_compiler
def test_same_sources_same_bytes(site: Site, tmp_path: Path) -> None:
    """Wherever they lie."""
    other = Site(tmp_path / 'elsewhere')
    assert site.build()['sha256'] == other.build()['sha256']


@needs_compiler
def test_only_what_changed_is_compiled(site: Site) -> None:
    first = site.build()
    before = site.objects()
    assert site.build() == first and site.objects() == before
    site.write('answer.h', '#define ANSWER 43\n')
    second = site.build()
    changed = {name for name, time in site.objects().items() if time != before[name]}
    assert changed == {'main.cpp.o'}
    assert first['sha256'] != second['sha256'] and first['sources'] != second['sources']
    before = site.objects()
    site.build(CXXFLAGS='-DMORE')
    assert all(time != before[name] for name, time in site.objects().items())


@needs_compiler
@pytest.mark.parametrize('text', ['int broken(\n', 'int other(); int f() { return other(); }\n'])
def test_a_failure_is_pure_python_that_says_why(text: str, site: Site) -> None:
    """One of the compiler, one of the linker: a symbol that nothing defines."""
    site.build()
    site.write('main.cpp', text)
    with pytest.raises(BuildError):
        site.build()
    assert (site.target / LIBRARY).exists()  # of an attempt by hand, the last library stays
    reason = site.build_if_possible()
    assert reason is not None and 'main.cpp' in reason
    assert len(reason.splitlines()) <= 25
    assert site.sidecar()['problem'] == reason
    assert not (site.target / LIBRARY).exists()
    with pytest.raises(BuildError, match=r'main\.cpp'):
        site.build_if_possible(MMVIM_FORCE_EXT='1')


@needs_compiler
def test_pure_python_on_demand(site: Site) -> None:
    assert site.build_if_possible(MMVIM_NO_EXT='0') is None
    assert site.build_if_possible(MMVIM_NO_EXT='1') == building.PURE_PYTHON
    assert not (site.target / LIBRARY).exists()
    with pytest.raises(BuildError, match='MMVIM_NO_EXT=1'):
        site.build_if_possible(MMVIM_NO_EXT='1', MMVIM_FORCE_EXT='1')


@pytest.mark.parametrize(
    ('environ', 'reason'),
    [
        ({'CXX': '/nowhere/c++'}, '/nowhere/c.. cannot be run'),
        ({'PATH': '/nowhere'}, 'no C.. compiler: install'),
        ({'MAX_JOBS': 'many'}, "MAX_JOBS='many' is no number of jobs"),
        ({'MAX_JOBS': '0'}, "MAX_JOBS='0' is no number of jobs"),
    ],
)
def test_what_the_machine_lacks(environ: dict[str, str], reason: str, site: Site) -> None:
    if 'MAX_JOBS' in environ and CXX is None:
        pytest.skip('no C++ compiler')
    with pytest.raises(BuildError, match=reason):
        site.build(**environ)
    assert not site.target.exists()


@needs_compiler
def test_no_sources(site: Site) -> None:
    for path in site.sources.rglob('*.cpp'):
        path.unlink()
    with pytest.raises(BuildError, match=r'no C\+\+ sources under'):
        site.build()


def test_no_torch_or_an_old_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    package = site.sources / 'torch'
    site.write('torch/version.py', "__version__ = '2.9.1'\ncuda = None\n")
    spec = importlib.util.spec_from_file_location('torch', package / '__init__.py')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: spec)
    with pytest.raises(BuildError, match=r'torch 2\.9\.1 is older than 2\.10'):
        site.build()
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(site.sources / 'cpu'))
    with pytest.raises(BuildError, match=r'torch is not installed.*--no-build-isolation'):
        site.build()


def test_torch_that_an_isolated_build_does_not_see(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for where the library will be installed."""
    site.write('torch/__init__.py', '')
    site.write('torch/version.py', "__version__ = '2.12.0+cpu'\ncuda = None\n")
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(sysconfig, 'get_path', dict(platlib=str(site.sources)).get)
    assert building._find_torch() == ('2.12.0+cpu', site.sources / 'torch', None)


@needs_compiler
def test_the_same_torch_in_another_environment(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects are used again, and the link is to the one that was found last."""
    first, before = site.build(), site.objects()
    found, other = building._find_torch(), tmp_path / 'torch'
    other.symlink_to(found.root)
    monkeypatch.setattr(building, '_find_torch', lambda: found._replace(root=other))
    assert site.build() == first and site.objects() == before
    (link,) = site.work.glob('*/torch')
    assert link.readlink() == other


def test_digest_knows_names_and_contents(site: Site) -> None:
    digests = {building.sources_digest(site.sources)}
    site.write('answer.h', '#define ANSWER 44\n')
    digests.add(building.sources_digest(site.sources))
    (site.sources / 'answer.h').rename(site.sources / 'reply.h')
    digests.add(building.sources_digest(site.sources))
    assert len(digests) == 3


CUDA_SOURCE = '__global__ void twice(float* x) { x[threadIdx.x] *= 2; }\n'


@pytest.fixture
def torch_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Have the build take the installed torch for one of a version of CUDA, or of none."""
    found = building._find_torch()

    def use(cuda: str | None) -> None:
        monkeypatch.setattr(building, '_find_torch', lambda: found._replace(cuda=cuda))

    return use


@needs_compiler
@pytest.mark.parametrize(
    ('cuda', 'environ', 'reason'),
    [
        (None, '', 'is not built for CUDA; MMVIM_CUDA=1 compiles the kernels anyway'),
        ('12.4', '0', NO_CUDA),
        (None, '0', NO_CUDA),
    ],
)
def test_cpu_kernels_alone(
    cuda: str | None, environ: str, reason: str, site: Site, torch_for: Callable[[str | None], None]
) -> None:
    """Beside a torch without CUDA, and on demand, nvcc is not even looked for."""
    torch_for(cuda)
    site.write('cuda/twice.cu', CUDA_SOURCE)
    facts = site.build(CUDA_HOME=site.fake_nvcc(), MMVIM_CUDA=environ)
    assert facts['cuda'] is None and reason in facts['cuda_problem']


@needs_compiler
@pytest.mark.parametrize('cuda', ['12.4', None])
def test_cuda_that_fails(
    cuda: str | None, site: Site, torch_for: Callable[[str | None], None]
) -> None:
    """Leaves the CPU kernels, unless CUDA kernels are demanded; then any torch will do."""
    torch_for(cuda)
    site.write('cuda/twice.cu', CUDA_SOURCE)
    home = site.fake_nvcc()
    with pytest.raises(BuildError, match=r'(?s)MMVIM_CUDA=1.*understands no such thing'):
        site.build(CUDA_HOME=home, MMVIM_CUDA='1')
    (log,) = site.work.rglob('nvcc.log')
    assert '-gencode=arch=compute_90,code=sm_90' in log.read_text()
    with pytest.raises(BuildError, match='MMVIM_CUDA=1: no nvcc'):
        site.build(CUDA_HOME='/nowhere', MMVIM_CUDA='1')
    if cuda is not None:
        facts = site.build(CUDA_HOME=home, MMVIM_CUDA='')
        assert facts['cuda'] is None and 'understands no such thing' in facts['cuda_problem']
        facts = site.build(CUDA_HOME='/nowhere', MMVIM_CUDA='')
        assert facts['cuda_problem'] == 'no nvcc: CUDA_HOME=/nowhere has no bin/nvcc'


@pytest.mark.parametrize(
    ('given', 'archs'),
    [
        ('', ('sm_80', 'compute_90', 'sm_90')),
        ('9.0;8.6', ('compute_90', 'sm_90', 'sm_86')),
        ('8.0+PTX 10.0a', ('compute_80', 'sm_80', 'compute_100a', 'sm_100a')),
        ('12.0+PTX', ('compute_120', 'sm_120')),
        ('7.0;7.5+PTX;8.6', ('compute_86', 'sm_86')),
    ],
)
def test_cuda_archs(given: str, archs: tuple[str, ...], site: Site) -> None:
    """As listed from 8.0 on, or what nvcc knows of the usual ones; always PTX of the newest."""
    environ = {'CUDA_HOME': site.fake_nvcc(), 'TORCH_CUDA_ARCH_LIST': given, 'MMVIM_CUDA': '1'}
    cuda = building._find_cuda(building._find_torch(), environ)
    assert cuda.archs == archs
    assert cuda.version == 'tools, release 12.4, V12.4.1'


def test_no_cuda_arch_that_has_kernels(site: Site) -> None:
    environ = {'CUDA_HOME': site.fake_nvcc(), 'TORCH_CUDA_ARCH_LIST': '7.0;7.5+PTX'}
    with pytest.raises(BuildError, match=r'=7\.0 7\.5\+PTX has nothing from 8\.0 on'):
        building._find_cuda(building._find_torch(), environ | {'MMVIM_CUDA': '1'})


def test_cuda_arch_misspelt(site: Site) -> None:
    environ = {'CUDA_HOME': site.fake_nvcc(), 'TORCH_CUDA_ARCH_LIST': '8.0;Hopper'}
    with pytest.raises(BuildError, match=r"has 'Hopper'; valid: numbers like 8\.0"):
        building._find_cuda(building._find_torch(), environ | {'MMVIM_CUDA': '1'})


@needs_compiler
@pytest.mark.skipif(NVCC is None, reason='no nvcc')
def test_cuda_objects(site: Site) -> None:
    site.write('cuda/twice.cu', CUDA_SOURCE)
    site.write('cuda/register.cpp', '#include <cuda_runtime_api.h>\n')
    facts = site.build(TORCH_CUDA_ARCH_LIST='9.0', MMVIM_CUDA='1')
    assert facts['cuda']['archs'] == ('compute_90', 'sm_90') and facts['cuda_problem'] is None
    assert {'twice.cu.o', 'register.cpp.o'} <= set(site.objects())
