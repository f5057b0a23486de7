"""Ctrl-C while a process imports its modules: it ends at once with exit code 130 and without a traceback.

Imported first by the modules that are started as programs. This module and its packages import nothing that takes long,
such as `typing`. Limit: in the first moments of Python itself, Ctrl-C shows a traceback.
"""

import os
import signal

EXIT_INTERRUPTED = 130
"""128 + SIGINT, the convention of shells."""


class QuietInterrupts:
    """For the duration of the block, SIGINT ends the process, unless it is ignored or handled already."""

    def __enter__(self) -> None:
        quieten()

    def __exit__(self, *_: object) -> None:
        if signal.getsignal(signal.SIGINT) is _end:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def quieten() -> None:
    """Let SIGINT end the process, until another handler is set. Does nothing in a thread."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        try:  # noqa: SIM105  # contextlib takes longer than all of this module
            signal.signal(signal.SIGINT, _end)
        except ValueError:
            pass


def _end(_number: int, _frame: object) -> None:
    os._exit(EXIT_INTERRUPTED)


__all__ = ["EXIT_INTERRUPTED", "QuietInterrupts", "quieten"]
