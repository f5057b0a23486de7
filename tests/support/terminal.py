"""A terminal of a chosen size, in which tests run a command and look at the screen."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING

import pyte

from support import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

WAIT_S = 60.0


class Terminal:
    """Runs `stepflow ARGS` on a pseudo-terminal. `text` is what a person sees, with the lines scrolled away."""

    def __init__(self, args: Sequence[str], cwd: Path, columns: int, lines: int = 40, **environ: str) -> None:
        self._screen = pyte.HistoryScreen(columns, lines, history=1_000, ratio=0.5)
        self._stream = pyte.ByteStream(self._screen)
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        env |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environ}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stepflow.cli", *args],
            cwd=cwd,
            env=env,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    @property
    def text(self) -> str:
        above = ["".join(line[x].data for x in range(self._screen.columns)) for line in self._screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self._screen.display]).rstrip() + "\n"

    def wait_for(self, seen: Callable[[str], bool], description: str) -> str:
        """Read until the screen shows something; return the text."""
        deadline = time.monotonic() + WAIT_S
        while not seen(self.text):
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"not within {WAIT_S:g} s: {description}; the terminal shows:\n{self.text}"
            assert self._read(left_s), f"the command has ended before: {description}; the terminal shows:\n{self.text}"
        return self.text

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, str]:
        """Read until the command ends; return its exit code and the text."""
        while self._read(WAIT_S):
            pass
        return self.process.wait(timeout=WAIT_S), self.text

    def _read(self, timeout_s: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], timeout_s)
        assert ready, f"nothing within {timeout_s:g} s; the terminal shows:\n{self.text}"
        try:
            chunk = os.read(self._ours, 65_536)
        except OSError as error:
            if error.errno != errno.EIO:  # how Linux says that the other end is closed
                raise
            return False
        self._stream.feed(chunk)
        return bool(chunk)


_LOADED = ("the run is queued", "the run is driven again", "starting ", "started after ")
"""Beginnings of lines that a loaded machine may add."""

_RUN_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_ID_END = re.compile(r"…[0-9a-f-]{8,35}")
_TIME = re.compile(r"( *)(\d[\d.,]* (?:ms|s|min)(?: \d+ s)?)(?= |$|[,:;)])", re.MULTILINE)
_CLOCK = re.compile(r"\d\d:\d\d:\d\d")
_ADDRESS = re.compile(r"(?:127\.0\.0\.1|localhost):\d{4,5}")


def lasting(text: str) -> str:
    """Replace what differs from run to run (ids, times, ports) by texts of the same width."""

    def time_of(found: re.Match[str]) -> str:
        return "T".rjust(len(found[0])) if len(found[1]) > 1 else f"{found[1]}T"

    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(_LOADED))
    text = _RUN_ID.sub(lambda found: "RUN".ljust(len(found[0]), "-"), text)
    text = _ID_END.sub(lambda found: "…RUN".ljust(len(found[0]), "-"), text)
    text = _ADDRESS.sub("SERVER", _CLOCK.sub("hh:mm:ss", text))
    return "\n".join(line.rstrip() for line in _TIME.sub(time_of, text).splitlines()) + "\n"
