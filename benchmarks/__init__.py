"""Benchmarks, run by `make bench`. Compare the ratios within one run: absolute figures depend on the machine."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # `support` starts servers and etcd
