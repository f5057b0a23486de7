"""`ServedRequest`: one POST, from the message to the answer, with the events in between."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from stepflow.component.http.runs_translator import RunsTranslator
from stepflow.component.process import debugging
from stepflow.component.registry import REGISTRY
from stepflow.component.server import ComponentServer
from stepflow.component.shapes import encode
from stepflow.component.wire import EXECUTION_FAILED_LATER, UNREADABLE, TraceIds, params_of

if TYPE_CHECKING:
    from stepflow.component.http.host_blobs import HostBlobs
    from stepflow.component.threads import Threads
    from stepflow.component.wire import Message


class ServedRequest:
    """One POST: the protocol server that answers, the events collected for the response, and the answer."""

    def __init__(
        self, message: Message, id_prefix: str, threads: Threads, blobs: HostBlobs, *, capabilities: str
    ) -> None:
        """`capabilities` are those of the host, named in the headers."""
        self.events: list[bytes] = []
        self.answer = b""
        self.changed = asyncio.Event()
        """Set by a new event or the answer."""

        self._call_id = message.id
        self._blobs = blobs
        self._tasks: set[asyncio.Task[None]] = set()
        self.server = ComponentServer(
            REGISTRY,
            self._take_answer,
            send_event=self._take_event,
            threads=threads,
            request_id_prefix=id_prefix,
            translate=RunsTranslator(_run_id_of(message)).translate,
            wants_progress="progress" in capabilities,
            wants_queue_notices="queue" in capabilities,
            wants_logs="log" in capabilities,
            failed_code=EXECUTION_FAILED_LATER,
            show_tracebacks=debugging(),
        )

    def cancel(self) -> None:
        """Cancel the call of a disconnected client."""
        notification = {"jsonrpc": "2.0", "method": "components/cancel", "params": {"id": self._call_id}}
        self.server.receive(encode(notification))

    def take_lines(self) -> list[bytes]:
        """Return the unsent events, followed by the answer if there is one."""
        events, self.events = self.events, []
        return [*events, self.answer] if self.answer else events

    def _take_answer(self, line: bytes) -> None:
        self.answer = line
        self.changed.set()

    def _take_event(self, line: bytes) -> None:
        """Send a request of the component to the blob API, or as an event of the response."""
        if self._blobs.available:
            request = msgspec.json.decode(line)
            if request["method"].startswith("blobs/"):
                task = asyncio.ensure_future(self._fetch_blob(request))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                return

        self.events.append(line)
        self.changed.set()

    async def _fetch_blob(self, request: dict[str, Any]) -> None:
        line = await self._blobs.reply_line(request["id"], request["method"], request["params"])
        if self.server.awaits(request["id"]):
            self.server.receive(line)


class _RunIdParams(msgspec.Struct):
    """The members of `params` that name the run."""

    observability: TraceIds | None = None
    run_id: str | None = None


def _run_id_of(message: Message) -> str | None:
    try:
        ids = params_of(message.params, _RunIdParams)
    except UNREADABLE:
        return None

    return ids.run_id or (ids.observability.run_id if ids.observability is not None else None)
