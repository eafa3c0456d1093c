"""The matrix: what holds over all adapters. `matrix_wires.py` knows how each one is asked."""

import sys
from pathlib import Path

# Test folders are no packages; the modules that tests of this folder share are found beside them.
sys.path.insert(0, str(Path(__file__).parent))
