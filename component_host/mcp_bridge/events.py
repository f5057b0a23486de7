"""Server-sent events of a server, filtered for the SDK.

- Progress is thinned and unused notifications are skipped, before the SDK decodes them.
- Answers that differ in their envelope are repaired (`envelopes`).
- The id of a skipped event is kept, without its data: a broken stream is resumed from there.

Imports the SDK: import it late.
"""

from __future__ import annotations

from component_host.mcp_bridge.envelopes import repaired_answer
from component_host.mcp_bridge.link import MESSAGE_BYTES_MAX
from component_host.mcp_bridge.notices import notice_key
from component_host.progress_gate import ProgressGate


class EventFilter:
    """Thins the events of one stream. See `progress_gate.Thinning`.

    `request_id`: of the request that the stream answers; None if it answers none.
    """

    def __init__(self, request_id: int | str | None) -> None:
        self._request_id = request_id
        self._gate: ProgressGate[bytes] = ProgressGate()
        self._parts: list[bytes] = []
        """Parts of an event that has begun."""
        self._size = 0
        self._after_cr = False
        self._skipped = b""
        """Id and retry time of the last skipped event."""

    def feed(self, chunk: bytes, now: float) -> bytes:
        """Return what the SDK gets of a chunk: whole events."""
        chunk = self._with_newlines(chunk)

        # 1. An event ends with an empty line. The end may lie across two chunks.
        tail = self._parts[-1][-1:] if self._parts else b""
        if tail == b"\n" and chunk.startswith(b"\n"):
            chunk, self._parts = b"".join((*self._parts, chunk)), []
        end = chunk.rfind(b"\n\n")
        if end < 0:
            self._keep(chunk)
            return self._overflow()

        # 2. Decide about each event.
        whole, rest = b"".join((*self._parts, chunk[:end])), chunk[end + 2 :]
        self._parts, self._size = [], 0
        passed: list[bytes] = []
        for event in whole.split(b"\n\n"):
            passed += self._decide(event, now)
        if rest:
            self._keep(rest)
        passed += self._gate.take_due(now)
        if self._skipped:
            passed.append(self._skipped)
            self._skipped = b""
        return b"".join(each + b"\n\n" for each in passed) + self._overflow()

    def wait_s(self, now: float) -> float | None:
        return self._gate.wait_s(now)

    def take_due(self, now: float) -> bytes:
        return b"".join(each + b"\n\n" for each in self._gate.take_due(now))

    def finish(self) -> bytes:
        """Return the rest at the end of the stream."""
        waiting = self._gate.take_all()
        rest, self._parts = b"".join(self._parts), []
        return b"".join(each + b"\n\n" for each in waiting) + rest

    def _with_newlines(self, chunk: bytes) -> bytes:
        """Make all line ends newlines; a CRLF may lie across two chunks."""
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return chunk

    def _keep(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)

    def _overflow(self) -> bytes:
        """Hand on an event above the limit: the SDK refuses it."""
        if self._size <= MESSAGE_BYTES_MAX:
            return b""
        self._size = 0
        parts, self._parts = self._parts, []
        return b"".join(parts)

    def _decide(self, event: bytes, now: float) -> list[bytes]:
        """Return the event, repaired if needed, with the reports that wait for it; or nothing."""
        data = _data_of(event)
        if not data:
            return [event]

        key = notice_key(data)
        if key is None:
            if self._request_id is not None and (answer := repaired_answer(data, self._request_id)) is not None:
                event = b"\n".join([*_other_lines(event), b"data: " + answer])
            return [*self._gate.take_all(), event]
        if key is not False and self._gate.offer(key, event, now):
            return [event]
        if kept := _other_lines(event):
            self._skipped = b"\n".join(kept)
        return []


def _data_of(event: bytes) -> bytes:
    """Return the data of an event of the type `message`; empty for others."""
    if event.startswith(b"data:") and b"\n" not in event:
        return event[5:].strip()
    lines = event.split(b"\n")
    if any(line.startswith(b"event:") and line[6:].strip() != b"message" for line in lines):
        return b""
    return b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))


def _other_lines(event: bytes) -> list[bytes]:
    return [line for line in event.split(b"\n") if line.startswith((b"id:", b"retry:"))]


__all__ = ["EventFilter"]
