"""The benchmark scripts import their shared modules from the folder they lie in."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / 'tools' / 'analysis_tools'))
