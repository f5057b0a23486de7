"""The parts of the stdio bridge that need no process: call-backs and the executes behind them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from support.host_side import Call

from component_host.stepflow_bridge import protocol
from component_host.stepflow_bridge.stdio.callbacks import StdioCallbacks
from component_host.stepflow_bridge.stdio.executes import StdioExecutes

if TYPE_CHECKING:
    from component_host.supervision.process import ServerProcess


class FakeStdin:
    """A pipe with room."""

    outgoing_bytes = 0

    async def wait_for_room(self) -> None:
        pass


class FakeProcess:
    """Keeps the lines written to it."""

    def __init__(self) -> None:
        self.stdin = FakeStdin()
        self.lines: list[Any] = []

    def write(self, line: bytes) -> None:
        self.lines.append(json.loads(line))


def ignore(_: ServerProcess) -> None:
    pass


def test_a_callback_cancelled_before_its_first_step_is_answered() -> None:
    async def test() -> None:
        process: Any = FakeProcess()
        executes = StdioExecutes("kit", protocol.SpanIds(1), None, lambda: None)
        executes.open_slots()
        executes.add_call(1, Call("ask", {}))
        callbacks = StdioCallbacks(executes, lambda: None, ignore)
        line = protocol.Line("2.0", "r1", "blobs/get")
        callbacks.serve_callback(process, "r1", "blobs/get", line)
        callbacks.cancel_callbacks_of(1)  # no turn of the event loop since
        await callbacks.stop()
        await asyncio.sleep(0)
        assert [(line["id"], line["error"]["message"]) for line in process.lines] == [
            ("r1", "the execute that asks was cancelled")
        ]
        assert list(callbacks.asking) == []

    asyncio.run(test())
