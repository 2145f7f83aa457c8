"""Build of mmvim: the packages, the native library of ``mmvim_ops``, and ``mmvim/.mim``.

Everything static stands in pyproject.toml. Without a compiler, or with an old torch, the
installation is pure Python: ``python -m mmvim_ops`` says why.
"""

import runpy
import shutil
from pathlib import Path

from setuptools import Command, __version__, setup
from setuptools.command.build import build
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    raise SystemExit(
        f"setuptools {__version__} is too old: pip install 'setuptools>=70.1,<81'"
    ) from None

ROOT = Path(__file__).parent.resolve()
# What OpenMMLab's package manager (mim) looks up in an installed package.
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')
NATIVE = runpy.run_path(str(ROOT / 'ops' / 'build.py'))


class BuildWithMim(build_py):
    """Adds configs and tools under ``mmvim/.mim``: copies in a wheel, links if editable."""

    def run(self):
        super().run()
        if self.editable_mode:
            self._fill(ROOT / 'mmvim' / '.mim', link=True)
            self._point_mim_to_sources(Path(self.get_finalized_command('install').install_lib))
        else:
            self._fill(Path(self.build_lib) / 'mmvim' / '.mim', link=False)

    def _fill(self, target, link):
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        for name in MIM_CONTENT:
            source = ROOT / name
            if link:
                (target / name).symlink_to(source)
            elif source.is_dir():
                shutil.copytree(source, target / name, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(source, target / name)

    def _point_mim_to_sources(self, wheel):
        """Names the sources' folder as the first module of an editable distribution.

        An editable install has no folder ``mmvim`` in site-packages; mim then takes the first line
        of top_level.txt, below site-packages or, as here, absolute.
        """
        (modules,) = wheel.glob('*.dist-info/top_level.txt')
        modules.write_text(f'{ROOT / "mmvim"}\n{modules.read_text()}')

    def get_outputs(self, include_bytecode=True):
        outputs = super().get_outputs(include_bytecode)
        mim = Path(self.build_lib) / 'mmvim' / '.mim'
        if not self.editable_mode and mim.exists():
            outputs += [str(path) for path in mim.rglob('*') if path.is_file()]
        return outputs


class BuildNative(Command):
    """Compiles the native library into ``mmvim_ops``: in place if editable."""

    description = 'compile the native library of mmvim_ops'
    user_options = []
    editable_mode = False

    def initialize_options(self):
        self.build_lib = None

    def finalize_options(self):
        self.set_undefined_options('build', ('build_lib', 'build_lib'))

    def run(self):
        target = (
            ROOT / 'ops' / 'mmvim_ops' if self.editable_mode else Path(self.build_lib) / 'mmvim_ops'
        )
        problem = NATIVE['build_if_possible'](target)
        if problem is not None:
            self.warn(f'mmvim_ops is installed without its native library: {problem}')

    def get_source_files(self):
        return [str(path.relative_to(ROOT)) for path in NATIVE['source_files']()]

    def get_outputs(self):
        if self.editable_mode:
            return []
        folder = Path(self.build_lib) / 'mmvim_ops'
        paths = (folder / NATIVE['LIBRARY'], folder / NATIVE['SIDECAR'])
        return [str(path) for path in paths if path.exists()]

    def get_output_mapping(self):
        return {}


class Build(build):
    """The build with the native library."""

    sub_commands = [*build.sub_commands, ('build_native', None)]


class Wheel(bdist_wheel):
    """A wheel of one platform and every Python if it ships the library, of any without."""

    def run(self):
        self.run_command('build')
        build_lib = Path(self.get_finalized_command('build').build_lib)
        self.root_is_pure = not (build_lib / 'mmvim_ops' / NATIVE['LIBRARY']).exists()
        # What setuptools asks to choose between the folders of pure and of compiled packages.
        self.distribution.has_ext_modules = lambda: not self.root_is_pure
        super().run()

    def get_tag(self):
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ('py3', 'none', platform)


setup(
    cmdclass={
        'bdist_wheel': Wheel,
        'build': Build,
        'build_native': BuildNative,
        'build_py': BuildWithMim,
    }
)
