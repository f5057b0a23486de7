"""What an MCP server prints on stdout: chunks in, messages for the SDK out.

- Every answer ends its request: one that is not JSON, too deep or too large becomes an error with the request's id.
- An answer that shares its line, or takes several, is found (`json_lines`), and its envelope repaired (`envelopes`).
- Progress is thinned, and unused notifications are skipped, before they are decoded.
- Lines that are not JSON-RPC messages are skipped; the first one is kept for error texts.

Imports the SDK: import it late.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from component_host.json_lines import UNFINISHED_S, LineSplitter, MessageFinder
from component_host.mcp_bridge.envelopes import answered_id, bad_answer, read_messages
from component_host.mcp_bridge.link import MESSAGE_BYTES_MAX
from component_host.mcp_bridge.notices import notice_key, progress_key
from component_host.progress_gate import ProgressGate
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    import mcp_types

log = get_logger("component_host.mcp")

_UNREADABLE = "the server's answer is not valid JSON"
_TOO_LARGE = f"the server's reply is larger than {MESSAGE_BYTES_MAX:,} bytes"


class McpStdoutReader:
    """Reads the stdout of one process; `on_message` gets each message."""

    def __init__(self, plugin: str, on_message: Callable[[mcp_types.JSONRPCMessage], None]) -> None:
        self._plugin = plugin
        self._on_message = on_message
        self._lines = LineSplitter(MESSAGE_BYTES_MAX)
        self._finder = MessageFinder(MESSAGE_BYTES_MAX)
        self._unfinished_timer: asyncio.TimerHandle | None = None
        self._progress: ProgressGate[bytes] = ProgressGate()
        self._progress_timer: asyncio.TimerHandle | None = None
        self._stray_lines = 0
        self._stray_line = ""

    def feed(self, chunk: bytes) -> None:
        now = asyncio.get_running_loop().time()
        for line, complete in self._lines.split(chunk):
            if not complete:
                self._take_text(line, _TOO_LARGE, is_json=False)
                continue

            key = None if self._finder.unfinished else notice_key(line)
            if key is None:
                for text, is_json in self._finder.feed(line):
                    self._take_text(text, _UNREADABLE, is_json=is_json)
            elif key is not False and self._progress.offer(key, line, now):
                self._take_text(line, _UNREADABLE, is_json=True)

        self._await_rest()
        self._await_progress()

    def _await_rest(self) -> None:
        """Give the rest of a message over several lines some time."""
        if self._finder.unfinished and self._unfinished_timer is None:
            loop = asyncio.get_running_loop()
            self._unfinished_timer = loop.call_later(UNFINISHED_S, self._give_up_unfinished)
        elif self._unfinished_timer is not None and not self._finder.unfinished:
            self._unfinished_timer.cancel()
            self._unfinished_timer = None

    def _give_up_unfinished(self) -> None:
        self._unfinished_timer = None
        for text, _ in self._finder.give_up():
            self._take_text(text, _UNREADABLE, is_json=False)

    def _await_progress(self) -> None:
        """Hand waiting reports on when they are due."""
        loop = asyncio.get_running_loop()
        wait_s = self._progress.wait_s(loop.time())
        if wait_s is not None and self._progress_timer is None:
            self._progress_timer = loop.call_later(wait_s, self._release_progress)

    def _release_progress(self) -> None:
        self._progress_timer = None
        for line in self._progress.take_due(asyncio.get_running_loop().time()):
            self._take_text(line, _UNREADABLE, is_json=True)
        self._await_progress()

    def close(self) -> None:
        """Drop what waits. Idempotent."""
        for timer in (self._unfinished_timer, self._progress_timer):
            if timer is not None:
                timer.cancel()

    def _take_text(self, text: bytes, problem: str, *, is_json: bool) -> None:
        """Hand a message on. Text that is none ends the call whose id it has."""
        if is_json:
            messages = read_messages(text)
        else:
            answer = bad_answer(text, problem)
            messages = [] if answer is None else [answer]
        if not messages:
            self._note_stray(text)
        for message in messages:
            answered = answered_id(message)
            if answered is not None and (last := self._progress.take(progress_key(answered))):
                self._take_text(last, _UNREADABLE, is_json=True)
            self._on_message(message)

    def _note_stray(self, line: bytes) -> None:
        if not line.strip():
            return
        if not self._stray_lines:
            self._stray_line = line[:100].decode(errors="replace")
            log.warning("the MCP server prints on stdout, which is reserved for messages", plugin=self._plugin)
        self._stray_lines += 1

    def describe_stray_output(self) -> str:
        """Return what was printed besides messages; empty if nothing was."""
        if not self._stray_lines:
            return ""
        return f"{self._stray_lines} lines on its stdout were not JSON-RPC messages, the first: {self._stray_line!r}"


__all__ = ["McpStdoutReader"]
