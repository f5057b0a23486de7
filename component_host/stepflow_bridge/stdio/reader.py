"""Lines from a server's stdout: chunks in, decoded messages out, with a bound on the length of a line.

- The usual chunk, of one message on each line, is decoded at once. In others the messages are searched (`json_lines`).
- A reply that cannot be read becomes an error reply with its id, so that its call does not wait in vain.
- Of a line over `REPLY_BYTES_MAX` both ends are kept, from which the request id is read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from component_host.json_lines import ENDS_BYTES, UNFINISHED_S, MessageFinder, id_in
from component_host.stepflow_bridge import protocol
from component_host.stepflow_bridge.loose_lines import read_lines, unreadable_reply
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self._finder = MessageFinder(REPLY_BYTES_MAX)
        self._timer: asyncio.TimerHandle | None = None
        """For the rest of a message over several lines."""

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
        self._decode(text)

    def close(self) -> None:
        """Stop waiting for the rest of a message. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _decode(self, text: bytes) -> None:
        """Decode whole lines."""
        if not self._finder.unfinished:
            try:
                lines = protocol.decode_lines(text)
            except protocol.DECODE_ERRORS:
                pass
            else:
                for line in lines:
                    if line.jsonrpc or protocol.is_message(line):
                        self._on_line(line)
                return

        for piece in text.split(b"\n"):
            for found, is_json in self._finder.feed(piece):
                self._read(found, is_json=is_json)
        self._await_rest()

    def _read(self, text: bytes, *, is_json: bool) -> None:
        if is_json:
            lines = read_lines(text)
        else:
            reply = unreadable_reply(text, "the server's reply is not valid JSON")
            lines = [] if reply is None else [reply]

        for line in lines:
            self._on_line(line)
        if not lines:
            self._note_noise(text)

    def _await_rest(self) -> None:
        """Give the rest of a message over several lines some time."""
        if not self._finder.unfinished:
            self.close()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(UNFINISHED_S, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        for text, is_json in self._finder.give_up():
            self._read(text, is_json=is_json)

    def _keep_partial(self, chunk: bytes) -> None:
        self._partial_bytes += len(chunk)
        self._partial.append(chunk)
        if self._partial_bytes > REPLY_BYTES_MAX:
            whole = b"".join(self._partial)
            self._partial = [whole[:ENDS_BYTES], whole[-ENDS_BYTES:]]

    def _skip_oversized(self, text: bytes) -> bytes:
        """Report an oversized reply; return the whole lines after it."""
        line, _, rest = text.partition(b"\n")
        request_id = id_in(line)
        if isinstance(request_id, int):
            self._on_oversized(request_id)
        return rest

    def _note_noise(self, text: bytes) -> None:
        if not self.first_noise:
            self.first_noise = text[:NOISE_CHARS_MAX].decode("utf-8", "replace")
        log.debug("stdout has text outside the protocol", plugin=self._plugin)
