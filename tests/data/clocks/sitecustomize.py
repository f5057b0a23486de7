"""Moves the wall clock of a process; Python imports this at start if its folder is on the path.

The file named by WALL_CLOCK_FILE holds milliseconds to add. It is read with each look at the clock, so a test can set
the clock of a running process. Elapsed time is not touched, as by `clock_settime`.

`time.time` is left alone: gRPC makes deadlines from it, which its native code compares with the clock of the system.
"""

import os
import time

_time_ns = time.time_ns


def _added_ns() -> int:
    try:
        with open(os.environ["WALL_CLOCK_FILE"], encoding="ascii") as file:  # noqa: PTH123  # imported before pathlib
            return int(file.read() or 0) * 1_000_000
    except (OSError, KeyError):
        return 0


time.time_ns = lambda: _time_ns() + _added_ns()
