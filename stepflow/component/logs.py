"""The log of a call: what its component prints and logs, sent to the host with the call's id.

- A line belongs to the call whose code wrote it: the context variable `CURRENT` follows async code, `asyncio.to_thread`
  and the threads of sync components. Lines of other threads and of child processes go to stderr, as do all lines for a
  host that takes none.
- Each line is also written to stderr, with `MIRRORED` in front: the last words of a process that crashes are not lost,
  and a server that was started by hand shows them. Hosts take the line from one of the two.
- At most one notification per call and `LOG_INTERVAL_S`, with the latest `LINES_MAX` lines: of a flood, older lines
  are dropped and counted. The last lines of a call precede its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

from stepflow.component.shapes import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepflow.component.loop_inbox import LoopInbox
    from stepflow.component.wire import Id

LOG_INTERVAL_S = 0.25

LINES_MAX = 100
"""Unsent lines of a call; beyond, the oldest is dropped."""

LINE_CHARS_MAX = 4_000
"""A longer line is cut. Hosts show half of it: they remove secrets first, and the cut may have left part of one."""

MIRRORED = "\x02"
"""Begins a line of stderr that is also sent with its call. Terminals do not show it."""

CURRENT: ContextVar[CapturedCall | None] = ContextVar("stepflow_call", default=None)

_LEVELS = ((logging.ERROR, "error"), (logging.WARNING, "warning"), (logging.INFO, "info"))


class CapturedCall(Protocol):
    """A call, as seen here."""

    id: Id
    ended: bool
    log_lines: CallLog | None

    @property
    def takes_logs(self) -> bool: ...
    def log_text(self, level: str, text: str) -> bool: ...
    def log_printed(self, stream: str, text: str) -> bool: ...


class CallLog:
    """The unsent lines of one call: time in milliseconds since 1970, level (empty for printed text), text.

    `add_text` and `add_printed` may be called from any thread, `take_lines` on the loop's thread.
    """

    __slots__ = ("_dropped", "_lines", "_lock", "_noted", "_partial", "sent_at")

    def __init__(self) -> None:
        self.sent_at = 0.0
        self._lines: deque[tuple[int, str, str]] = deque(maxlen=LINES_MAX)
        self._dropped = 0
        self._noted = False
        """The loop knows that there are unsent lines."""
        self._partial: dict[str, str] = {}
        """By stream: printed text without a line end so far."""
        self._lock = threading.Lock()

    def add_text(self, level: str, text: str) -> bool:
        """Add the lines of a text; return True if the loop must be told."""
        at_ms = time.time_ns() // 1_000_000
        with self._lock:
            for line in text.splitlines():
                self._add(at_ms, level, line)
            return self._note()

    def add_printed(self, stream: str, text: str) -> bool:
        """Add printed text, which becomes a line with its line end; return True if the loop must be told."""
        with self._lock:
            *lines, rest = (self._partial.pop(stream, "") + text).split("\n")
            if rest:
                self._partial[stream] = rest[: LINE_CHARS_MAX + 1]
            at_ms = time.time_ns() // 1_000_000
            for line in lines:
                self._add(at_ms, "", line)
            return self._note()

    def take_lines(self, *, ended: bool) -> tuple[list[tuple[int, str, str]], int]:
        """Remove and return the lines, and the number of those dropped before. `ended`: unfinished lines, too."""
        with self._lock:
            if ended:
                for rest in self._partial.values():
                    self._add(time.time_ns() // 1_000_000, "", rest)
                self._partial.clear()

            lines, dropped = list(self._lines), self._dropped
            self._lines.clear()
            self._dropped, self._noted = 0, False
            return lines, dropped

    def _add(self, at_ms: int, level: str, line: str) -> None:
        if len(self._lines) == LINES_MAX:
            self._dropped += 1
        shown = (line if len(line) <= LINE_CHARS_MAX else f"{line[:LINE_CHARS_MAX]}…").rstrip("\r")
        self._lines.append((at_ms, level, shown))
        _mirror(f"{level.upper()} {shown}" if level else shown)

    def _note(self) -> bool:
        if self._noted or not self._lines:
            return False
        self._noted = True
        return True


class LogReports:
    """Sends the lines of all calls of a server, with one timer. `wanted` is the host's choice."""

    def __init__(self, inbox: LoopInbox, send: Callable[[bytes], None], *, wanted: bool) -> None:
        self.wanted = wanted
        self._inbox = inbox
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._due: dict[Id, CapturedCall] = {}
        self._timer: asyncio.TimerHandle | None = None

    def log_text(self, call: CapturedCall, level: str, text: str) -> bool:
        """Add a text to the log of a call; return False if the host gets none. From any thread."""
        if not self.wanted or call.ended:
            return False
        if _log_of(call).add_text(level, text):
            self._inbox.run(lambda: self._note_lines(call))
        return True

    def log_printed(self, call: CapturedCall, stream: str, text: str) -> bool:
        """Add printed text to the log of a call; return False if the host gets none. From any thread."""
        if not self.wanted or call.ended:
            return False
        if _log_of(call).add_printed(stream, text):
            self._inbox.run(lambda: self._note_lines(call))
        return True

    def flush(self, call: CapturedCall) -> None:
        """Send the last lines of a call about to be answered."""
        if call.log_lines is not None:
            self._send_lines(call, ended=True)
            self._due.pop(call.id, None)

    def _note_lines(self, call: CapturedCall) -> None:
        """Send the lines now, or with the timer."""
        if call.ended:
            return
        assert call.log_lines is not None
        if self._loop.time() - call.log_lines.sent_at >= LOG_INTERVAL_S:
            self._send_lines(call)
            return

        self._due[call.id] = call
        if self._timer is None:
            self._timer = self._loop.call_later(LOG_INTERVAL_S, self._send_due)

    def _send_due(self) -> None:
        self._timer = None
        due = list(self._due.values())
        self._due.clear()
        for call in due:
            self._send_lines(call)

    def _send_lines(self, call: CapturedCall, *, ended: bool = False) -> None:
        log = call.log_lines
        assert log is not None
        lines, dropped = log.take_lines(ended=ended)
        if not lines:
            return

        log.sent_at = self._loop.time()
        params = {"id": call.id, "lines": lines, "dropped": dropped}
        try:
            line = encode({"jsonrpc": "2.0", "method": "components/log", "params": params})
        except UnicodeEncodeError:  # lone surrogates, of undecodable file names
            params["lines"] = [(at_ms, level, _encodable(text)) for at_ms, level, text in lines]
            line = encode({"jsonrpc": "2.0", "method": "components/log", "params": params})
        self._send(line + b"\n")


def _mirror(line: str) -> None:
    """Write a line to the real stderr. Best effort: it may be closed."""
    stream = sys.stderr
    if isinstance(stream, CapturedStream):
        stream = stream.stream
    with contextlib.suppress(OSError, ValueError, AttributeError):
        stream.write(f"{MIRRORED}{line}\n")
        stream.flush()


def _log_of(call: CapturedCall) -> CallLog:
    if call.log_lines is None:
        call.log_lines = CallLog()
    return call.log_lines


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


class CallHandler(logging.Handler):
    """Sends records to the host as lines of the current call; without such a call or host, to stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._plain = logging.Formatter("%(levelname)s %(name)s: %(message)s")
        self._formatter = logging.Formatter("%(name)s: %(message)s")
        self._own_formatter = logging.Formatter("%(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            call = CURRENT.get()
            if call is not None and call.takes_logs:
                own = record.name == "stepflow.component"
                text = (self._own_formatter if own else self._formatter).format(record)
                call.log_text(_level_of(record.levelno), text)
            else:
                sys.stderr.write(self._plain.format(record) + "\n")
                sys.stderr.flush()
        except Exception:  # as every handler: logging never fails its caller
            self.handleError(record)


def _level_of(number: int) -> str:
    return next((name for least, name in _LEVELS if number >= least), "debug")


class CapturedStream:
    """stdout or stderr: text written by the code of a call goes to the call's log, other text to the real stream."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self.stream = stream
        self._name = name

    def write(self, text: str) -> int:
        call = CURRENT.get()
        if call is not None and call.takes_logs and call.log_printed(self._name, text):
            return len(text)
        return self.stream.write(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def captured_output() -> Iterator[None]:
    """Give the texts that components write to `sys.stdout` and `sys.stderr` to the logs of their calls.

    Handlers of `logging` that the author has set up follow.
    """
    before = sys.stdout, sys.stderr
    if before[0] is None or before[1] is None:  # closed by the parent process
        yield
        return

    sys.stdout = cast("TextIO", CapturedStream(before[0], "stdout"))
    sys.stderr = cast("TextIO", CapturedStream(before[1], "stderr"))
    _redirect_handlers(dict(zip(before, (sys.stdout, sys.stderr), strict=True)))
    try:
        yield
    finally:
        _redirect_handlers(dict(zip((sys.stdout, sys.stderr), before, strict=True)))
        sys.stdout, sys.stderr = before


def _redirect_handlers(streams: dict[TextIO, TextIO]) -> None:
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
                handler.setStream(streams[handler.stream])
