"""Of all tests: the processes that they start have the signals of an ordinary terminal."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Undo `nohup` and `&` of an outer shell, which ignore signals: children inherit that."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
