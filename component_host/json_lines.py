"""JSON messages in the lines that a server prints, also where the lines are not one message each.

A message is found on a line of its own, over several lines (pretty-printed), after printed text, and next to others on
one line: servers with threads, or with code that prints, write all of these. Text without a message may still begin or
end with the id of a reply: `id_in` reads it, so that its call can end.

Pure. Not here: the meaning of the messages.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDS_BYTES = 256
"""Bytes kept of each end of a line above the limit, and searched for an id."""

BATCH_MAX = 1_000
"""Messages of one batch; further ones are skipped."""

STARTS_MAX = 16
"""Places on one line where a message may begin; bounds the search of a hostile line."""

UNFINISHED_S = 5.0
"""Longest wait for the rest of a message over several lines, which printers write at once. Then its call ends."""

_START = re.compile(rb'(?:\[\s*)?\{\s*"(?:jsonrpc|id|method|result|error|params)"\s*:')
_BEGIN = re.compile(rb'\{\s*(?:"|\Z)|\[\s*(?:\{|\Z)')
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_SCANNER = json.JSONDecoder()

_ID = rb'"id"\s*:\s*(?:(\d{1,18})|"([^"\\]{1,64})")'
_VERSION = rb'"jsonrpc"\s*:\s*"[^"\\]{0,8}"'
_ID_FIRST = re.compile(rb"\A[\s\[]*\{\s*(?:" + _VERSION + rb"\s*,\s*)?" + _ID + rb"\s*[,}]")
_ID_LAST = re.compile(_ID + rb"\s*(?:,\s*" + _VERSION + rb"\s*)?\}[\s\]]*\Z")

_HEAD = re.compile(rb"\{\s*" + _VERSION + rb"\s*,\s*" + _ID + rb"\s*[,}]")
_TAIL = re.compile(rb"(?:" + _VERSION + rb"\s*,\s*" + _ID + rb"|" + _ID + rb"\s*,\s*" + _VERSION + rb")\s*\}\Z")
"""Both ends of a message on a line of its own."""


class LineSplitter:
    """Splits chunks into lines. Of a line above the limit only both ends are kept."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._pending = bytearray()
        self._head = b""

    def split(self, chunk: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yield (line without newline, complete) for each line that ends in `chunk`."""
        first, *others = chunk.split(b"\n")
        self._pending += first
        for other in others:
            yield self._head + bytes(self._pending), not self._head
            self._head = b""
            self._pending = bytearray(other)
        if len(self._pending) > self._bytes_max:
            self._head = self._head or bytes(self._pending[:ENDS_BYTES])
            del self._pending[:-ENDS_BYTES]


class MessageFinder:
    """Finds the JSON texts in lines, in order. `bytes_max` bounds a text over several lines."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._lines: list[bytes] = []
        """Lines of a text over several lines that has begun."""
        self._bytes = 0
        self._depth = 0

    @property
    def unfinished(self) -> bool:
        """True while a text over several lines has begun and not ended."""
        return bool(self._lines)

    def feed(self, line: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yield (text, JSON) for what ends with `line`: a JSON object or array, or other text."""
        line = line.strip()
        if not line:
            return

        if self._lines:
            if not self._is_next_message(line):
                yield from self._continue(line)
                return
            yield from self.give_up()  # another message in between: what was begun is no message

        if _is_json(line):
            yield line, True
        elif found := _search(line):
            yield from found
        elif _BEGIN.match(line) and (depth := _depth(line) or 0) > 0:
            self._lines, self._bytes, self._depth = [line], len(line), depth
        else:
            yield line, False

    def give_up(self) -> Iterator[tuple[bytes, bool]]:
        """Yield the text that has begun and not ended."""
        if self._lines:
            text = b"\n".join(self._lines)
            self._lines = []
            yield text, False

    def _is_next_message(self, line: bytes) -> bool:
        """Return True if the line begins a message of its own, readable or not: its call must be able to end."""
        if _is_message(line):
            return True
        if self._lines[0].startswith(b"[") or not line.startswith(b"{"):  # in a batch, each line may begin so
            return False
        return _HEAD.match(line) is not None or _TAIL.search(line[-ENDS_BYTES:]) is not None

    def _continue(self, line: bytes) -> Iterator[tuple[bytes, bool]]:
        depth = _depth(line)
        self._lines.append(line)
        self._bytes += len(line) + 1
        if depth is None or self._bytes > self._bytes_max:
            yield from self.give_up()
            return

        self._depth += depth
        if self._depth <= 0:
            text = b"\n".join(self._lines)
            self._lines = []
            yield text, _is_json(text)


def id_in(text: bytes) -> int | str | None:
    """Return the id at either end of a text that is no message; None if there is none.

    SDKs write the id first (Python) or last (TypeScript).
    """
    found = _ID_FIRST.search(text[:ENDS_BYTES]) or _ID_LAST.search(text[-ENDS_BYTES:])
    if found is None:
        return None
    return int(found[1]) if found[1] else found[2].decode("utf-8", "replace")


def as_id(value: Any) -> int | str | None:
    """Return a decoded value as the id of a request, a double without a fraction as its integer; None if it is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


class _Members(msgspec.Struct):
    jsonrpc: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    method: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeError, RecursionError)
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_envelope = msgspec.json.Decoder(_Members).decode


def _is_json(text: bytes) -> bool:
    """Return True for a whole JSON object or array."""
    if not text.startswith((b"{", b"[")):
        return False
    try:
        _decode_raw(text)
    except _DECODE_ERRORS:
        return False
    return True


def _is_message(line: bytes) -> bool:
    """Return True for a line that is a whole message, not a part of one."""
    if not (line.startswith(b"{") and line.endswith(b"}")):
        return False
    try:
        found = _decode_envelope(line)
    except _DECODE_ERRORS:
        return False
    return found.jsonrpc is not msgspec.UNSET and (
        found.method is not msgspec.UNSET or found.result is not msgspec.UNSET or found.error is not msgspec.UNSET
    )


def _search(line: bytes) -> list[tuple[bytes, bool]]:
    """Find messages after printed text, or one after the other; empty if there is none."""
    found: list[tuple[bytes, bool]] = []
    at = 0
    for _ in range(STARTS_MAX):
        start = _START.search(line, at)
        if start is None:
            break
        end = _end_of(line, start.start())
        if end is None:
            at = start.start() + 1
            continue
        if line[at : start.start()].strip():
            found.append((line[at : start.start()], False))
        found.append((line[start.start() : end], True))
        at = end
    if found and line[at:].strip():
        found.append((line[at:], False))
    return found if any(is_json for _, is_json in found) else []


def _end_of(line: bytes, start: int) -> int | None:
    """Return the end of the JSON text that begins at `start`; None if it is none. Reads NaN, which Python prints."""
    try:
        text = line[start:].decode()
        _, end = _SCANNER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return start + (end if text.isascii() else len(text[:end].encode()))


def _depth(line: bytes) -> int | None:
    """Return the brackets that the line opens beyond those it closes; None for half a string, which JSON has not."""
    rest = _STRING.sub(b"", line)
    if b'"' in rest:
        return None
    return rest.count(b"{") + rest.count(b"[") - rest.count(b"}") - rest.count(b"]")


__all__ = ["BATCH_MAX", "ENDS_BYTES", "UNFINISHED_S", "LineSplitter", "MessageFinder", "as_id", "id_in"]
