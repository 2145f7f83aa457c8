"""Install a wheel into a fresh environment and use it from there, away from the sources.

Run by ``make wheel``: ``python tests/check_wheel.py dist/mmvim-*.whl``. The environment borrows
the stack of the one that runs the script.
"""

import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECK = """
import sys
from pathlib import Path
import mmvim, mmvim_ops, torch
from mmengine.config import Config
package = Path(mmvim.__file__).parent
assert str(package).startswith(sys.prefix), package
assert Path(mmvim_ops.__file__).is_relative_to(sys.prefix)
configs = sorted((package / '.mim' / 'configs').glob('*/*_*.py'))
assert configs
for config in configs:
    Config.fromfile(config)
model = mmvim.models.VisionMamba('nano')
assert model(torch.zeros(1, 3, 32, 48))[0].shape == (1, 64, 2, 3)
print(f'the wheel works: {len(configs)} configs under .mim')
"""


def main() -> None:
    """Check the one wheel named on the command line."""
    (wheel,) = sys.argv[1:]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ('configs', 'tools'):
        shipped = {
            name.removeprefix('mmvim/.mim/')
            for name in names
            if name.startswith(f'mmvim/.mim/{folder}/')
        }
        tracked = subprocess.run(
            ['git', 'ls-files', folder], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        missing = set(tracked) - shipped
        assert tracked and not missing, f'the wheel lacks {sorted(missing)}'
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / 'bin' / 'python'
        site = next((Path(folder) / 'lib').glob('python3*/site-packages'))
        # Only the stack's packages: an editable install of mmvim is no file of this folder.
        (site / 'stack.pth').write_text(sysconfig.get_paths()['purelib'] + '\n')
        subprocess.run([python, '-m', 'pip', 'install', '-q', '--no-deps', wheel], check=True)
        subprocess.run([python, '-c', CHECK], cwd=folder, check=True)


if __name__ == '__main__':
    main()
