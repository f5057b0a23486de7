"""Lines from a server's stdout: chunks in, decoded messages out, with a bound on the length of a line.

Limits: a line over `REPLY_BYTES_MAX` is dropped except for its head, from which the request id is read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from component_host.stepflow_bridge import protocol
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPLY_BYTES_MAX = PAYLOAD_BYTES_MAX + 1024 * 1024
"""Longest line kept: any payload and its envelope. The call behind a longer reply fails."""

NOISE_CHARS_MAX = 200

log = get_logger("component_host.stepflow")


class StdoutReader:
    """Splits the stdout of one process into messages.

    `on_line` gets each message, `on_oversized` the request id of each reply over `REPLY_BYTES_MAX`.
    """

    def __init__(
        self, plugin: str, on_line: Callable[[protocol.Line], None], on_oversized: Callable[[int], None]
    ) -> None:
        self.first_noise = ""
        """The first line outside the protocol, for error texts."""
        self._plugin = plugin
        self._on_line = on_line
        self._on_oversized = on_oversized
        self._partial: list[bytes] = []
        self._partial_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Decode the lines completed by a chunk; keep the rest."""
        end = chunk.rfind(b"\n")
        if end < 0:
            self._keep_partial(chunk)
            return

        text = chunk[:end]
        if self._partial:
            self._partial.append(text)
            text = b"".join(self._partial)
            self._partial.clear()
            if self._partial_bytes > REPLY_BYTES_MAX:
                text = self._skip_oversized(text)
            self._partial_bytes = 0
        if end + 1 < len(chunk):
            self._keep_partial(chunk[end + 1 :])

        lines, noise = _decode(text)
        for line in lines:
            if line.jsonrpc == "2.0":
                self._on_line(line)
        if noise:
            self._note_noise(noise)

    def _keep_partial(self, chunk: bytes) -> None:
        self._partial_bytes += len(chunk)
        if self._partial_bytes <= REPLY_BYTES_MAX:
            self._partial.append(chunk)
        elif len(self._partial) > 1:
            del self._partial[1:]  # the head has the request id

    def _skip_oversized(self, text: bytes) -> bytes:
        """Report an oversized reply; return the whole lines after it."""
        request_id = _id_in_head(text[:256])
        if request_id is not None:
            self._on_oversized(request_id)
        return text.partition(b"\n")[2]

    def _note_noise(self, noise: Sequence[bytes]) -> None:
        if not self.first_noise:
            self.first_noise = noise[0][:NOISE_CHARS_MAX].decode("utf-8", "replace")
        log.debug("stdout has lines outside the protocol", plugin=self._plugin, lines=len(noise))


def _decode(text: bytes) -> tuple[list[protocol.Line], list[bytes]]:
    """Decode whole lines into messages and noise (output of user code).

    A message after printed text without a newline is found. A malformed reply becomes an error reply, so its caller
    does not wait in vain.
    """
    try:
        return protocol.decode_lines(text), []
    except protocol.DECODE_ERRORS:
        pass

    lines: list[protocol.Line] = []
    noise: list[bytes] = []
    for piece in text.split(b"\n"):
        line = _salvage(piece)
        if line is not None:
            lines.append(line)
        elif piece.strip():
            noise.append(piece)
    return lines, noise


def _salvage(piece: bytes) -> protocol.Line | None:
    for start in (0, piece.find(b'{"jsonrpc"', 1), piece.find(b'{"id"', 1)):
        if start < 0:
            continue
        try:
            return protocol.decode_line(piece[start:])
        except protocol.DECODE_ERRORS:
            pass

        # JSON of another form: a reply or request that at least names its id is answered or failed.
        try:
            tree = msgspec.json.decode(piece[start:])
        except protocol.DECODE_ERRORS:
            continue
        if isinstance(tree, dict) and tree.get("jsonrpc") == "2.0" and isinstance(tree.get("id"), (int, str)):
            if isinstance(tree.get("method"), str):
                return protocol.Line("2.0", tree["id"], tree["method"])
            error = protocol.ErrorIn(protocol.INTERNAL, "the server's reply does not follow the protocol")
            return protocol.Line("2.0", tree["id"], error=error)
    return None


_HEAD_ID = re.compile(rb'"id"\s*:\s*(\d{1,18})\b')


def _id_in_head(head: bytes) -> int | None:
    """Find the request id in the head of an oversized reply."""
    match = _HEAD_ID.search(head)
    return int(match[1]) if match else None
