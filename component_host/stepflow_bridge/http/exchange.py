"""The exchange of one execute: the POST, the messages of its answer, and the outcome of the call.

A broken connection fails the call with UNREACHABLE, because the component may have run.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing
from typing import TYPE_CHECKING

from msgspec import UNSET, Raw

from component_host.stepflow_bridge import protocol
from component_host.stepflow_bridge.failures import settle_call
from component_host.stepflow_bridge.http.blob_refs import with_blobs
from component_host.stepflow_bridge.http.endpoint import LostError, NotProtocolError, TooLargeError
from stepflow.codec import PAYLOAD_BYTES_MAX, encode
from stepflow.errors import Code, Failure, StepflowError
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.backend import HostCall
    from component_host.stepflow_bridge.http.blob_api import BlobApi
    from component_host.stepflow_bridge.http.connection import HttpConnection
    from component_host.stepflow_bridge.http.endpoint import HttpEndpoint
    from component_host.stepflow_bridge.http.executes import HttpExecutes

EXIT_WAIT_S = 1.0
"""Wait for the exit of the process after a broken connection; the exit code belongs into the failure."""

TAIL_WAIT_S = 1.0
"""Wait for the end of a stream after the final message. 0.10 and 0.11 never send one."""

_PROXY_STATUSES = (502, 503, 504)
"""Sent by a proxy whose server is away."""

log = get_logger("component_host.stepflow_http")


class HttpExchanges:
    """A task for each execute. `on_message` gets the messages before the result: call-backs and progress."""

    def __init__(
        self,
        plugin: str,
        executes: HttpExecutes,
        connection: HttpConnection,
        api: BlobApi,
        on_message: Callable[[HttpEndpoint, int, protocol.Line, str], None],
        *,
        blob_threshold: int,
    ) -> None:
        self._plugin = plugin
        self._executes = executes
        self._connection = connection
        self._api = api
        self._on_message = on_message
        self._blob_threshold = blob_threshold
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def begin_exchange(self, endpoint: HttpEndpoint, number: int, body: bytes) -> None:
        self._tasks[number] = asyncio.create_task(self._exchange(endpoint, number, body))

    def cancel_exchanges(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    def cancel_exchange(self, number: int) -> None:
        """Break off one exchange."""
        task = self._tasks.pop(number, None)
        if task is not None:
            task.cancel()

    async def _exchange(self, endpoint: HttpEndpoint, number: int, body: bytes) -> None:
        try:
            async with aclosing(endpoint.exchange(body)) as messages:
                async for line, instance in messages:
                    if line.is_reply:
                        await self._settle(number, line)
                        break
                    self._on_message(endpoint, number, line, instance)
                else:
                    raise LostError("the answer ended before the result")

                # Read to its end, the connection can be used again.
                with contextlib.suppress(LostError, NotProtocolError, TimeoutError):
                    async with asyncio.timeout(TAIL_WAIT_S):
                        async for _ in messages:
                            pass

        except LostError as error:
            await self._handle_loss(number, error)
        except TooLargeError:
            message = f"the result is larger than the limit of {PAYLOAD_BYTES_MAX:,} bytes"
            self._finish(number, Failure(Code.COMPONENT_FAILED, message))
        except NotProtocolError as error:
            code = Code.UNREACHABLE if error.status in _PROXY_STATUSES else Code.WORKER_ERROR
            pause_ms = error.retry_after_ms
            data = b"" if pause_ms is None else encode({"retry_after_ms": pause_ms})
            self._finish(number, Failure(code, f"server {self._plugin!r} {error}", data))
        except Exception as error:  # a defect must not leave the call open
            log_defect(log, "an exchange failed", error, plugin=self._plugin)
            text = (
                f"internal error: {type(error).__name__} inside the component host (this is a bug; see the host's log)"
            )
            self._finish(number, Failure(Code.WORKER_ERROR, text))

    async def _handle_loss(self, number: int, error: LostError) -> None:
        process = self._connection.process
        if process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_WAIT_S):
                    await process.ended()  # the exit ends the call, with its code, and cancels this task
        message = f"the connection to server {self._plugin!r} broke before the result: {error}"
        self._finish(number, Failure(Code.UNREACHABLE, message))

    async def _settle(self, number: int, line: protocol.Line) -> None:
        call = self._executes.call_of(number)
        failure = None
        if call is not None:
            try:
                line = await self._with_blobs(call, line)
            except StepflowError as error:
                message = f"a blob in the result cannot be read: {error.message}"
                failure = Failure(Code.COMPONENT_FAILED, message)

            if line.error is not UNSET:
                self._api.redact(line.error)
            if failure is None:
                settle_call(call, line, self._plugin, self._connection.process)
        self._finish(number, failure)

    async def _with_blobs(self, call: HostCall, line: protocol.Line) -> protocol.Line:
        """Replace the references to blobs in a result. Raises: StepflowError."""
        result = line.result
        if not self._blob_threshold or result is UNSET or not isinstance(result.output, Raw):
            return line
        output = await with_blobs(bytes(result.output), call.blobs)
        return protocol.Line(result=protocol.Output(output=Raw(output)))

    def _finish(self, number: int, failure: Failure | None) -> None:
        self._tasks.pop(number, None)
        self._executes.finish_call(number, failure)
