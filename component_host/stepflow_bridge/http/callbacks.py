"""Call-backs of one HTTP server: served in the name of the execute whose answer carried them.

Each call-back is answered exactly once, also after the end of its call: components wait without a time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING

from component_host.stepflow_bridge import protocol
from component_host.stepflow_bridge.callbacks import WAITING_METHODS, answer
from component_host.stepflow_bridge.http.endpoint import LostError, NotProtocolError
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from component_host.backend import HostCall
    from component_host.stepflow_bridge.http.endpoint import HttpEndpoint
    from component_host.stepflow_bridge.http.executes import HttpExecutes

CALLBACKS_MAX = 1_000
"""Requests of one server served at a time."""

ANSWER_TRIES = 3
ANSWER_TIMEOUT_S = 30.0
ABANDON_WAIT_S = 1.0
"""For error answers to call-backs open at the end."""

_REPLY_BYTES_MAX = PAYLOAD_BYTES_MAX + 1024 * 1024

log = get_logger("component_host.stepflow_http")


class HttpCallbacks:
    """A task for each call-back, and short tasks for notifications and refusals."""

    def __init__(self, plugin: str, executes: HttpExecutes) -> None:
        self._plugin = plugin
        self._executes = executes
        self._tasks: dict[asyncio.Task[None], int] = {}
        """With the number of the execute behind each."""
        self._notices: set[asyncio.Task[None]] = set()

    def handle_message(self, endpoint: HttpEndpoint, number: int, line: protocol.Line, instance: str) -> None:
        """Handle a notification or a call-back on the answer to an execute."""
        if line.id is None:
            self._executes.take_notice(number, line)
            return

        call = self._executes.call_of(number)
        if call is None:
            self._refuse(endpoint, line.id, instance, "the execute that asks was cancelled")
        elif len(self._tasks) >= CALLBACKS_MAX:
            self._refuse(endpoint, line.id, instance, f"{CALLBACKS_MAX} requests of this server are being served")
        else:
            task = asyncio.create_task(self._serve(endpoint, number, call, line, instance))
            self._tasks[task] = number
            task.add_done_callback(partial(self._handle_end, endpoint, line.id, instance))

    def _handle_end(
        self, endpoint: HttpEndpoint, request_id: int | str, instance: str, task: asyncio.Task[None]
    ) -> None:
        del self._tasks[task]
        if task.cancelled():  # before its first step: without this answer the component waits without end
            self._refuse(endpoint, request_id, instance, "the execute that asks was cancelled")

    async def _serve(
        self, endpoint: HttpEndpoint, number: int, call: HostCall, line: protocol.Line, instance: str
    ) -> None:
        assert line.id is not None
        assert line.method is not None

        lends = line.method in WAITING_METHODS
        try:
            with self._executes.lent_slot(number) if lends else contextlib.nullcontext():
                reply = await answer(call, line.id, line.method, line.params, _REPLY_BYTES_MAX)
        except asyncio.CancelledError:
            reply = protocol.error_line(line.id, protocol.GENERAL, "the execute that asks was cancelled")

        await self._send_reply(endpoint, reply, instance)

    def _refuse(self, endpoint: HttpEndpoint, request_id: int | str, instance: str, reason: str) -> None:
        reply = protocol.error_line(request_id, protocol.GENERAL, reason)
        self._run_soon(self._send_reply(endpoint, reply, instance))

    async def _send_reply(self, endpoint: HttpEndpoint, reply: bytes, instance: str) -> None:
        """Deliver a reply. A repetition is harmless: the server drops the second copy."""
        for _ in range(ANSWER_TRIES):
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await endpoint.tell(reply, instance)
                return

            except NotProtocolError as error:
                log.debug("the server did not take an answer", plugin=self._plugin, error=str(error))
                return
            except (LostError, TimeoutError) as error:
                log.debug("an answer did not arrive", plugin=self._plugin, error=str(error))

    def send_cancel(self, endpoint: HttpEndpoint, request_id: str) -> None:
        """Tell the server to stop an execute, best effort."""
        self._run_soon(
            self._send_notification(endpoint, protocol.Notification("components/cancel", {"id": request_id}))
        )

    async def _send_notification(self, endpoint: HttpEndpoint, notification: protocol.Notification) -> None:
        with contextlib.suppress(LostError, NotProtocolError):
            await endpoint.tell(protocol.line_of(notification))

    def _run_soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)

    def cancel_callbacks_of(self, number: int) -> None:
        """Cancel the call-backs of one execute; each is answered with an error."""
        for task, owner in list(self._tasks.items()):
            if owner == number:
                task.cancel()

    def cancel_callbacks(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Cancel all call-backs, and wait at most `ABANDON_WAIT_S` for their answers."""
        self.cancel_callbacks()

        answers = [*self._tasks, *self._notices]
        if answers:
            await asyncio.wait(answers, timeout=ABANDON_WAIT_S)
        for task in self._notices:
            task.cancel()
