"""The backend for MCP servers: calls of the host in, results and failures out.

- Each call has a task. Cancelling the task makes the SDK tell the server, which may stop the work.
- A call that meets a lost connection fails as UNREACHABLE with the tail of the server's stderr. If the server is known
  not to have executed it, the call waits for the next connection instead and is made again.
- After `close` no process and no task is left.

Not here: how a connection is kept (`supervisor`), what results and errors mean (`results`), timeouts (the host's).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from component_host.backend import BackendListing, ServerHealth
from component_host.late_imports import import_in_thread
from component_host.mcp_bridge.supervisor import McpSupervisor, closed_error, import_sdk
from stepflow import codec
from stepflow.errors import Code, Failure, StepflowError
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from component_host.backend import BackendContext, HostCall
    from component_host.mcp_bridge.connection import McpConnection
    from component_host.mcp_bridge.link import McpServerConfig

CONNECTIONS_PER_CALL_MAX = 3
"""A call that loses as many connections before it is executed fails."""

log = get_logger("component_host.mcp")


class McpBackend:
    """One MCP server as a backend of the host. See `backend.Backend` for the contract."""

    def __init__(self, context: BackendContext, config: McpServerConfig) -> None:
        self.name = context.name
        self.health = ServerHealth(context.listing_changed)
        self._context = context
        self._config = config
        self._listing = BackendListing()
        self._calls: set[asyncio.Task[None]] = set()
        self._supervisor = McpSupervisor(context, config, self.health, self._set_listing)
        self._closing = False

    async def start(self) -> None:
        """Launch or reach the server, negotiate and list what it offers.

        Raises:
            Invalid: the command does not exist or cannot be executed; the URL or a header is malformed.
            Unavailable: the server exits, is unreachable, does not answer in time or does not speak MCP; its stderr is
                in the text.
        """
        assert not self._supervisor.running, "a backend is started once"
        # In a thread: the other servers of this host start meanwhile.
        await import_in_thread(import_sdk, over_http=bool(self._config.url))
        if self._closing:
            raise closed_error(self.name)
        try:
            await self._supervisor.start()
        except BaseException:
            await self.close()
            raise

    def listing(self) -> BackendListing:
        return self._listing

    def _set_listing(self, connection: McpConnection) -> None:
        listing = BackendListing(tuple(offer.info for offer in connection.offers.values()))
        if listing != self._listing:
            self._listing = listing
            self._context.listing_changed()

    async def close(self) -> None:
        self._closing = True
        calls = list(self._calls)
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._supervisor.close()

    # --- calls --------------------------------------------------------------------------------------------------------

    def execute(self, call: HostCall) -> None:
        if self._closing or not self._supervisor.running:
            call.fail(Failure(Code.UNREACHABLE, f"plugin {self.name!r} is not running"))
            return
        task = asyncio.get_running_loop().create_task(self._call(call), name=f"mcp {self.name} call")
        call.backend_state = task
        self._calls.add(task)
        task.add_done_callback(partial(self._call_done, call))

    def cancel(self, call: HostCall) -> None:
        """Stop waiting for a call; the SDK tells the server."""
        if isinstance(call.backend_state, asyncio.Task):
            call.backend_state.cancel()

    def _call_done(self, call: HostCall, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if task.cancelled():  # not in the task: one cancelled before its first step never runs
            closed = Failure(Code.UNREACHABLE, f"plugin {self.name!r} was stopped during the call")
            call.fail(closed if self._closing else Failure(Code.CANCELLED, "the call was cancelled"))

    async def _call(self, call: HostCall) -> None:
        """Make a call, over as many connections as it may lose before it is executed. Always settles it."""
        try:
            arguments = codec.decode(call.input)
            for _ in range(CONNECTIONS_PER_CALL_MAX):
                if await self._call_over(await self._supervisor.connected(), call, arguments):
                    return
            call.fail(Failure(Code.UNREACHABLE, f"the MCP server of plugin {self.name!r} is lost again and again"))
        except StepflowError as error:
            call.fail(Failure(Code.UNREACHABLE, error.message))
        except Exception as error:
            log.exception("MCP call failed inside the host", plugin=self.name)
            call.fail(Failure(Code.WORKER_ERROR, f"the MCP bridge failed: {type(error).__name__}"))

    async def _call_over(self, connection: McpConnection, call: HostCall, arguments: Any) -> bool:
        """Make a call over one connection; False if it was lost before the server can have executed it."""
        from component_host.mcp_bridge import results

        # 1. Check what can be sent at all.
        component = call.request.component
        offer = connection.offers.get(component)
        kind, info, result_schema = offer or ("tool", None, None)  # the server may serve tools that it does not list
        if problem := results.input_problem(kind, arguments):
            call.fail(Failure(Code.INVALID_INPUT, problem))
            return True

        # 2. Send the request. An error is the server's answer, or the call was lost.
        connection.link.serve_run(call.request.root_run_id, idle=connection.idle)
        with connection.count_call() as trace:
            try:
                answer = await connection.request(kind, call, arguments, trace)
            except Exception as error:
                loss = await connection.link.loss(trace) or await connection.session_loss(error)
                if loss is None:
                    failure = results.failure_of_error(error, component, info, arguments)
                    failure = results.with_stderr_of_call(failure, connection.link.process)
                    call.fail(results.with_pause(failure, trace.retry_after_ms))
                    return True
                if loss.executed:
                    message = f"the MCP server of plugin {self.name!r} {loss.message}"
                    failure = results.unreachable(message, connection.link.stderr_of_run())
                    call.fail(results.with_pause(failure, trace.retry_after_ms))
                return loss.executed

        # 3. Translate the result.
        tool = results.ToolCall(component, info, arguments, connection.checks, result_schema)
        outcome = results.outcome(kind, answer, self._config.result, tool)
        if isinstance(outcome, Failure):
            call.fail(results.with_stderr_of_call(outcome, connection.link.process))
        else:
            call.succeed(outcome)
        return True


__all__ = ["McpBackend"]
