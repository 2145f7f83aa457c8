"""Build of mmvim: the packages, the native library of ``mmvim_ops``, and ``mmvim/.mim``.

Everything static stands in pyproject.toml. Without a compiler, or with an old torch, the
installation is pure Python: ``python -m mmvim_ops`` says why.
"""

import runpy
import shutil
from pathlib import Path

from setuptools import __version__, setup
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


class BuildPackages(build_py):
    """Adds the native library, and configs and tools under ``mmvim/.mim``.

    An editable installation gets the library among the sources, and links under ``.mim``.
    """

    def run(self):
        super().run()
        if self.editable_mode:
            self._fill_mim(ROOT / 'mmvim' / '.mim')
            self._point_to_sources(Path(self.get_finalized_command('install').install_lib))
        else:
            self._fill_mim(Path(self.build_lib) / 'mmvim' / '.mim')
        target = ROOT / 'ops' if self.editable_mode else Path(self.build_lib)
        problem = NATIVE['build_if_possible'](target / 'mmvim_ops')
        if problem is not None:
            self.warn(f'mmvim_ops is installed without its native library: {problem}')

    def _fill_mim(self, target):
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        for name in MIM_CONTENT:
            source = ROOT / name
            if self.editable_mode:
                (target / name).symlink_to(source)
            elif source.is_dir():
                shutil.copytree(source, target / name, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(source, target / name)

    def _point_to_sources(self, wheel):
        """Has mim and Python find the sources of an editable distribution.

        An editable install has no folder ``mmvim`` in site-packages; mim then takes the first line
        of top_level.txt, below site-packages or, as here, absolute. setuptools' finder comes after
        the path, where a clone called mmvim, seen from the folder above it, passes for an empty
        namespace package; a folder of the path that has the package itself goes before that.
        """
        (modules,) = wheel.glob('*.dist-info/top_level.txt')
        modules.write_text(f'{ROOT / "mmvim"}\n{modules.read_text()}')
        (wheel / 'mmvim-sources.pth').write_text(f'{ROOT}\n')

    def get_outputs(self, include_bytecode=True):
        outputs = super().get_outputs(include_bytecode)
        if not self.editable_mode:
            built = Path(self.build_lib)
            added = (*built.glob('mmvim/.mim/**/*'), *built.glob('mmvim_ops/libmmvim_ops.*'))
            outputs += [str(path) for path in added if path.is_file()]
        return outputs


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


setup(cmdclass={'bdist_wheel': Wheel, 'build_py': BuildPackages})
