"""Measurements. `make bench` runs them and prints figures of one run side by side; ratios are what counts."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # `support` starts servers and etcd for both
