"""Protection of a process against other processes of the same user: of component servers, above all.

A component server runs as the user of its host. Unless the host is *undumpable*, the server can read the environment
and the memory of the host under `/proc`, with the keys in them, and attach a debugger. A new program is dumpable again,
so the servers themselves are not affected.

Linux only. Not protected: files that the user may read, and parents of the host that hold the same environment.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

SWITCH = "STEPFLOW_UNDUMPABLE"
"""Environment variable; `1` makes every process of stepflow undumpable. The image sets it."""

_PR_SET_DUMPABLE = 4


def apply_switch(environ: Mapping[str, str] = os.environ) -> None:
    """Make this process undumpable if the switch says so. Before any component server starts.

    Raises: Invalid UNDUMPABLE_INVALID, an unknown value, or a system without this protection.
    """
    value = environ.get(SWITCH, "")
    if value in ("", "0"):
        return
    if value != "1":
        raise Invalid("UNDUMPABLE_INVALID", f"`{SWITCH}` is 1 or 0, not {value[:80]!r}")

    import ctypes  # only with the switch: 10 ms

    try:
        refused = ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    except (AttributeError, OSError):
        refused = -1
    if refused:
        raise Invalid("UNDUMPABLE_INVALID", f"this system cannot make a process undumpable; unset `{SWITCH}`")


__all__ = ["SWITCH", "apply_switch"]
