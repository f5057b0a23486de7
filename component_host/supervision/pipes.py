"""The pipes of a server process: buffered writes to stdin, the last lines of stderr.

- Writing never blocks: the lines of one turn of the event loop leave in one write; the rest waits for the pipe.
- While much waits for the pipe, it is full: large lines wait for room. A server that reads nothing for long is ended.
- stderr lines are kept without escape sequences, unprintable characters and secrets, and go to the log of the plugin.
- stderr lines belong to the run whose calls the server was executing: no other run is shown them.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from itertools import islice
from textwrap import dedent
from typing import TYPE_CHECKING

from component_host.logged_lines import without_escapes
from component_host.supervision.spec import secrets_of
from stepflow.redaction import KnownSecrets
from stepflow.telemetry import redact, without_hidden

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.supervision.spec import ProcessSpec
from stepflow.telemetry import Logger

READ_BYTES = 256 * 1024
"""Size of one read; a pipe holds 64 KiB unless enlarged."""

OUTGOING_BYTES_MAX = 16 * 1024 * 1024
"""Bytes that wait for the server to read them; above them, the pipe is full."""

UNREAD_S_MAX = 300.0
"""Longest time that a server reads nothing although its pipe is full."""

STDERR_LINES_MAX = 20
STDERR_LINES_KEPT_MAX = 200
"""Lines kept for a call: loggers of servers wrap tracebacks into many short lines."""
STDERR_LINE_CHARS_MAX = 800
STDERR_CALL_CHARS_MAX = 4 * 1024
"""Longest end of stderr in the failure of a call that was answered."""

STDERR_PARTIAL_BYTES_MAX = 64 * 1024
"""Length above which an unfinished line of stderr is cut."""

MIRRORED = b"\x02"
"""Begins a line that our SDK also sends with its call."""

SPLIT_SECRET_BYTES = 4 * 1024
"""Left out behind such a cut: the end of a secret might stand there."""

STDERR_LOGGED_MAX = 200
"""Lines of one read that are looked at; of more, the last ones."""


def read_available(fd: int) -> bytes | None:
    """Read the bytes in a pipe; None if there are none or it is closed here, empty at the end of the file."""
    if fd < 0:
        return None
    try:
        return os.read(fd, READ_BYTES)
    except BlockingIOError:
        return None


class StdinWriter:
    """Writes lines to a server's stdin.

    `on_broken` is called when the server has closed the other end, or reads nothing for too long; `on_room` when the
    pipe was full and is so no more.
    """

    def __init__(
        self, fd: int, on_broken: Callable[[], None], log: Logger, on_room: Callable[[], None] = lambda: None
    ) -> None:
        self.outgoing_bytes = 0
        """Bytes written and not yet accepted by the pipe."""
        self._fd = fd
        self._on_broken = on_broken
        self._on_room = on_room
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._lines: list[bytes] = []
        self._unsent: memoryview | None = None
        """Remainder that the pipe had no room for; written before any later line."""
        self._flush_due = False
        self.full = False
        """True while more than `OUTGOING_BYTES_MAX` wait for the server, and once it reads no more."""
        self._broken = False
        self._room = asyncio.Event()
        self._room.set()
        self._read_at_s = 0.0
        """When the server read something last, while the pipe is full."""
        self._unread_timer: asyncio.TimerHandle | None = None

    async def wait_for_room(self) -> None:
        """Return when the pipe is not full, or closed."""
        while self.full:
            await self._room.wait()

    def write(self, line: bytes) -> None:
        """Send one line, together with the other lines of this turn of the event loop. No-op once closed."""
        if self._fd < 0:
            return
        self._lines.append(line)
        self.outgoing_bytes += len(line)
        if self.outgoing_bytes > OUTGOING_BYTES_MAX and not self.full:
            self._become_full()

        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Close the pipe and drop unsent bytes. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._lines.clear()
            self._unsent = None
            self._broken = False
            self._accept(self.outgoing_bytes)

    def _flush(self) -> None:
        self._flush_due = False
        if self._lines and self._unsent is None:
            data = b"".join(self._lines)
            self._lines.clear()
            if not self._send(memoryview(data)):
                self._loop.add_writer(self._fd, self._send_rest)

    def _send_rest(self) -> None:
        assert self._unsent is not None
        if self._send(self._unsent):
            self._loop.remove_writer(self._fd)
            self._flush()

    def _send(self, data: memoryview) -> bool:
        """Write as much as the pipe takes and keep the rest in `_unsent`; return True if there is no rest."""
        try:
            written = os.write(self._fd, data)
        except BlockingIOError:
            written = 0
        except BrokenPipeError:
            self._log.debug("server closed its stdin")
            self._break()
            written = len(data)

        self._unsent = data[written:] if written < len(data) else None
        self._accept(written)
        return self._unsent is None

    def _break(self) -> None:
        """Stay full until the pipe is closed: calls sent now would be lost."""
        self._broken = self.full = True
        self._room.clear()
        self._on_broken()

    def _become_full(self) -> None:
        self.full = True
        self._room.clear()
        self._read_at_s = self._loop.time()
        self._unread_timer = self._loop.call_later(UNREAD_S_MAX, self._check_read)

    def _accept(self, written: int) -> None:
        """Note that the pipe has taken some bytes."""
        self.outgoing_bytes -= written
        if not self.full:
            return
        if written:
            self._read_at_s = self._loop.time()
        if self.outgoing_bytes <= OUTGOING_BYTES_MAX and not self._broken:
            if self._unread_timer is not None:
                self._unread_timer.cancel()
            self.full = False
            self._room.set()
            self._loop.call_soon(self._on_room)  # behind the calls that wait for room already

    def _check_read(self) -> None:
        left_s = self._read_at_s + UNREAD_S_MAX - self._loop.time()
        if left_s > 0:
            self._unread_timer = self._loop.call_later(left_s, self._check_read)
            return
        self._log.warning("server does not read what it was sent; ending it", unread_bytes=self.outgoing_bytes)
        self._break()


NO_RUN = ""
"""No call has been sent: the lines are about the start of the server."""

SEVERAL_RUNS = "*"
"""Calls of several runs were in flight at once: the lines could belong to any of them."""

WITHHELD = "(withheld: the server was executing calls of several runs; the log of the host has it)"


class StderrTail:
    """The last lines of a server's stderr, without secrets, and the run that they belong to."""

    def __init__(self, spec: ProcessSpec) -> None:
        self._hidden = tuple(prefix.encode() for prefix in spec.stderr_hidden)
        self._secrets = KnownSecrets(secrets_of(spec))
        self._plugin_log = spec.log
        if spec.log is not None:
            spec.log.hide(secrets_of(spec))
        self._lines: deque[str] = deque(maxlen=STDERR_LINES_KEPT_MAX)
        self._partial = b""
        self._left_out = 0
        """Bytes of the present line still to be left out."""
        self.lines_kept = 0
        """Number of lines kept so far, dropped ones included."""
        self.run = NO_RUN
        """The run that the lines belong to, or `NO_RUN`, or `SEVERAL_RUNS`."""

    def text_of_start(self) -> str:
        """Return the lines if no run's call was ever sent, for texts that everybody may read."""
        return self._text() if self.run == NO_RUN else ""

    def text_of_run(self) -> str:
        """Return the lines for the run whose calls are in flight."""
        if self.run == SEVERAL_RUNS:
            return WITHHELD if self._lines else ""
        return self._text()

    def text_since(self, lines_kept: int) -> str:
        """Return the lines kept since there were `lines_kept`, the last ones if they are many."""
        new = self.lines_kept - lines_kept
        lines = [*islice(self._lines, max(0, len(self._lines) - new), None), self._shown(self._partial)]
        text = dedent("\n".join(line.rstrip() for line in lines if line))
        return text if len(text) <= STDERR_CALL_CHARS_MAX else f"…{text[1 - STDERR_CALL_CHARS_MAX :]}"

    def _text(self) -> str:
        return "\n".join(islice(self._lines, max(0, len(self._lines) - STDERR_LINES_MAX), None))

    def feed(self, chunk: bytes) -> None:
        if self._left_out:
            line_end = chunk.find(b"\n")
            rest = len(chunk) if line_end < 0 else line_end
            left_out = min(self._left_out, rest)
            self._left_out = 0 if line_end == left_out else self._left_out - left_out
            chunk = chunk[left_out:]

        *lines, partial = (self._partial + chunk).split(b"\n")
        if len(partial) > STDERR_PARTIAL_BYTES_MAX:
            lines.append(partial)
            partial = b""
            self._left_out = max(SPLIT_SECRET_BYTES, 4 * self._secrets.chars_max)

        self._partial = partial
        self._keep(lines)

    def finish(self) -> None:
        """Keep the last line although it has no line end."""
        if self._partial:
            self._keep([self._partial])

    def clear(self) -> None:
        self._lines.clear()
        self._partial = b""
        self._left_out = 0

    def without_secrets(self, text: str) -> str:
        return self._secrets.text(text)

    def _keep(self, lines: list[bytes]) -> None:
        wanted = [line for line in lines if line.strip() and not line.startswith(self._hidden)]
        last = wanted[-STDERR_LOGGED_MAX:]
        self._lines.extend(self._shown(line) for line in last)
        self.lines_kept += len(last)
        if self._plugin_log is None:
            return

        # Lines that come with their call, too, are in the log already.
        logged = [self._decoded(line) for line in last if not line.startswith(MIRRORED)]
        if logged:
            dropped = sum(not line.startswith(MIRRORED) for line in wanted[: -len(last)])
            self._plugin_log.add_stderr(logged, dropped)

    def _shown(self, line: bytes) -> str:
        """Return a line as it may be shown; empty if it is blank or hidden."""
        if not line.strip() or line.startswith(self._hidden):
            return ""

        # Secrets before the cut, which could leave the beginning of one.
        text = redact(self._decoded(line)[:STDERR_LINE_CHARS_MAX])
        return "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text)

    def _decoded(self, line: bytes) -> str:
        """Return a line whole, without secrets of the server."""
        text = without_escapes(line.removeprefix(MIRRORED).decode("utf-8", "replace"))
        return without_hidden(self.without_secrets(text))


__all__ = ["StderrTail", "StdinWriter", "read_available"]
