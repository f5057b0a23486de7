"""One StepFlow server over HTTP, through all its restarts.

Promises:
- A call-back belongs to the execute whose answer carried it (`callbacks`).
- A component waiting for a flow lends its slot of `concurrency` to the calls of the flow (`executes`).
- A broken connection fails its call with UNREACHABLE, because the component may have run (`exchange`). The end of a
  process started here fails all calls.
- A remote server is used again after its return, and greeted again after its replacement (`connection`).

Only servers with our SDK can stop work. Elsewhere a cancelled call keeps its slot until the component has ended, and
call-backs are answered with errors.

Not here: the wire (`endpoint`), the start of a process (`process`), and the choice of a server for a call (`pool`).
"""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from typing import TYPE_CHECKING

from component_host.stepflow_bridge import protocol
from component_host.stepflow_bridge.http.callbacks import HttpCallbacks
from component_host.stepflow_bridge.http.config import CONCURRENCY_DEFAULT
from component_host.stepflow_bridge.http.connection import make_connection
from component_host.stepflow_bridge.http.endpoint import LostError, NotProtocolError
from component_host.stepflow_bridge.http.exchange import HttpExchanges
from component_host.stepflow_bridge.http.executes import HttpExecutes
from component_host.stepflow_bridge.http.handshake import HttpHandshake
from stepflow.errors import Code, Failure
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from component_host.backend import BackendContext, ComponentInfo, HostCall
    from component_host.stepflow_bridge.http.blob_api import BlobApi
    from component_host.stepflow_bridge.http.config import HttpServerConfig
    from component_host.stepflow_bridge.http.endpoint import HttpEndpoint
    from component_host.stepflow_bridge.pool import StepflowPool
    from component_host.stepflow_bridge.retirement import AbandonedExecutes
    from component_host.supervision.process import ServerProcess

log = get_logger("component_host.stepflow_http")


class StepflowHttpServer:
    """A server over HTTP. Implements `pool.StepflowServer` and `connection.ConnectionOwner`."""

    def __init__(self, context: BackendContext, config: HttpServerConfig, pool: StepflowPool, api: BlobApi) -> None:
        self.components: list[ComponentInfo] = []
        self.lists_all = False
        self.stopping = False
        self.exit_reason = ""

        self._plugin = context.name
        self._pool = pool
        self._request_timeout_s = config.request_timeout_s
        self._spans = protocol.SpanIds(secrets.randbits(63))
        self._id_prefix = secrets.token_hex(8)  # several hosts may speak to one server
        self._last_number = 0
        self._cancels = False
        self._check: asyncio.Task[None] | None = None

        self._connection = make_connection(context, config, api.secret, self)
        threshold = config.blob_threshold
        self._handshake = HttpHandshake(context.name, api, threshold, self._id_prefix)
        self._executes = HttpExecutes(config.concurrency or CONCURRENCY_DEFAULT, partial(pool.fill_server, self))
        self._callbacks = HttpCallbacks(context.name, self._executes)
        self._exchanges = HttpExchanges(
            context.name,
            self._executes,
            self._connection,
            api,
            self._callbacks.handle_message,
            blob_threshold=threshold,
        )

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start or reach the server, and shake hands. Raises as `StepflowPool.start`."""
        self.stopping = False
        try:
            await self._connection.open()
        except BaseException:
            await self._connection.close()
            raise

        if not self._connection.gone.is_set():  # it may have ended since the handshake
            self._executes.open_slots()
        log.debug("server ready", plugin=self._plugin, components=len(self.components))

    async def stop(self) -> None:
        """Answer open call-backs, and end the process; calls in flight fail. Idempotent."""
        self._executes.close_slots()
        if self._check is not None:
            self._check.cancel()
        self._connection.stop_watch()
        await self._callbacks.stop()
        self._fail_calls(Failure(Code.UNREACHABLE, f"plugin {self._plugin!r} was stopped"))
        await self._connection.close()

    async def ended(self) -> None:
        await self._connection.gone.wait()

    async def greet(self, endpoint: HttpEndpoint, instance: str = "") -> None:
        introduction = await self._handshake.greet(endpoint, instance)
        self.components = introduction.components
        self.lists_all = introduction.lists_all
        self._cancels = introduction.cancels

    def handle_new_instance(self) -> None:
        self._pool.update_listing(self)

    def handle_loss(self, reason: str, failure: Failure | None) -> None:
        self._executes.close_slots()
        self.exit_reason = reason
        if failure is not None:
            self._fail_calls(failure)

    def _fail_calls(self, failure: Failure) -> None:
        self._exchanges.cancel_exchanges()
        self._callbacks.cancel_callbacks()
        self._executes.fail_calls(failure)

    @property
    def process_id(self) -> int:
        process = self._connection.process
        return 0 if process is None else process.pid

    def stderr_tail(self) -> str:
        process = self._connection.process
        return "" if process is None else process.stderr_tail()

    # --- calls --------------------------------------------------------------------------------------------------

    @property
    def room(self) -> float:
        return self._executes.room

    @property
    def in_flight(self) -> int:
        return len(self._executes)

    @property
    def concurrency(self) -> float:
        return self._executes.concurrency

    @property
    def abandoned(self) -> AbandonedExecutes:
        return self._executes.abandoned

    @property
    def executing(self) -> bool:
        return any(not call.queued for call in self._executes.calls())

    def retire(self) -> None:
        self._executes.close_slots()

    def end_process(self) -> None:
        process = self._connection.process
        assert process is not None
        self.stopping = True
        self._kill(process)

    def drop_executes(self, request_ids: Sequence[int]) -> None:
        for number in request_ids:
            self._exchanges.cancel_exchange(number)
            self._executes.finish_call(number, None)

    def calls(self) -> list[HostCall]:
        """Return the calls in flight."""
        return self._executes.calls()

    def takes_call(self, call: HostCall) -> bool:  # noqa: ARG002  # any execute that waits for a flow has lent its slot
        return self._executes.room > 0

    def send_execute(self, call: HostCall) -> None:
        """Send an execute. Only while `room` is above 0."""
        endpoint = self._connection.endpoint
        assert endpoint is not None
        assert self.room > 0

        number = self._last_number = self._last_number + 1
        body = protocol.execute_line(call, number, self._spans, self._request_id(number))

        process = self._connection.process
        if process is not None:
            process.serve_run(call.request.root_run_id, idle=not len(self._executes))
        call.backend_state = (self, number)
        self._executes.add_call(number, call)
        self._exchanges.begin_exchange(endpoint, number, body)

    def abandon_execute(self, number: int) -> None:
        """Stop an execute if the server can, and forget its call."""
        if self._executes.call_of(number) is None:
            return
        self._executes.abandon_call(number)
        self._callbacks.cancel_callbacks_of(number)

        endpoint, process = self._connection.endpoint, self._connection.process
        if endpoint is None:
            return  # the connection was closed: the exchange ends by itself
        if self._cancels:
            self._callbacks.send_cancel(endpoint, self._request_id(number))
        if process is None:
            return  # a remote server cannot be restarted from here
        if self._executes.stuck and not self._cancels:
            # Abandoned work fills the server and the protocol cannot stop it: only a new process has room.
            self.end_process()
        elif self._check is None or self._check.done():
            self._check = asyncio.create_task(self._check_alive(endpoint, process), name=f"check {self._plugin}")

    def _request_id(self, number: int) -> str:
        return f"{self._id_prefix}-{number}"

    def _kill(self, process: ServerProcess) -> None:
        """Kill a process; calls wait for the next process from here on."""
        if process is self._connection.process:
            self._executes.close_slots()
        process.kill()

    async def _check_alive(self, endpoint: HttpEndpoint, process: ServerProcess) -> None:
        """Kill a process that has stopped answering: code that blocks its event loop blocks all its calls."""
        try:
            async with asyncio.timeout(self._request_timeout_s):
                await endpoint.health()
        except TimeoutError:
            log.warning("server does not answer; ending it", plugin=self._plugin)
            self._kill(process)
        except (LostError, NotProtocolError):
            return
