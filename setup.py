"""Build of mmvim: the packages ``mmvim`` and ``mmvim_ops``, and the configs under ``mmvim/.mim``.

Everything static stands in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
# What OpenMMLab's package manager (mim) looks up in an installed package.
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Adds configs and tools under ``mmvim/.mim``: copies in a wheel, links if editable."""

    def run(self):
        super().run()
        if self.editable_mode:
            self._fill(ROOT / 'mmvim' / '.mim', link=True)
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

    def get_outputs(self, include_bytecode=True):
        outputs = super().get_outputs(include_bytecode)
        mim = Path(self.build_lib) / 'mmvim' / '.mim'
        if not self.editable_mode and mim.exists():
            outputs += [str(path) for path in mim.rglob('*') if path.is_file()]
        return outputs


setup(cmdclass={'build_py': BuildWithMim})
