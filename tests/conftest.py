"""Of all tests: the processes that they start have the signals of an ordinary terminal."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Undo `nohup`, which an outer shell may have set: children inherit ignored signals."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
