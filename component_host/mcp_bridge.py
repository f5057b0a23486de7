"""The backend for MCP servers: each tool of a server is a component.

Owns the connection to one server: a supervisor task launches it, negotiates (both eras: the `initialize` handshake of
2024-11-05 to 2025-11-25, and the stateless protocol of 2026-07-28), lists the tools, and launches anew when it is lost.

- The supervisor enters and leaves the SDK's client; calls come from their own tasks. (The client's exit from another
  task than its entry hangs.)
- A call that meets a lost connection fails as UNREACHABLE with the last of the server's stderr. A call that comes while
  the server is being launched again waits; it fails when launches keep failing.
- A tool `add` is the component with the id `add` and the path `/add`.
- After `close` there is no process and no task left.

Not here: the process and its pipes (`mcp_stdio`); what results and errors mean (`mcp_results`); timeouts (the host's).
The SDK takes most of a second to import, so everything that needs it is imported in `start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from component_host.backend import ComponentInfo, Listing
from component_host.process import ProcessSpec
from stepflow import codec
from stepflow.errors import Code, Failure, StepflowError, Unavailable
from stepflow.retry import Backoff, base_delay_ms
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import mcp
    import mcp_types

    from component_host.backend import BackendContext, HostCall
    from component_host.mcp_stdio import StdioServer

RESTART_BACKOFF = Backoff(kind="exponential", min_delay_ms=100, max_delay_ms=30_000, factor=2)

HEALTHY_S = 10.0
"""A server that lived this long starts its back-off afresh when it is lost."""

LAUNCHES_FAILED_MAX = 3
"""Launches that may fail in a row before calls no longer wait for the next one."""

TOOLS_MAX = 10_000
PAGES_MAX = 1_000
"""A server whose listing never ends is cut off here."""

LISTEN_AGAIN_S = 1.0

SERVER_EXITED = "SERVER_EXITED"

CONTENT_SCHEMA = {"type": "array", "items": {"type": "object"}}

log = get_logger("component_host.mcp")


@dataclass(frozen=True, slots=True)
class McpServerConfig:
    """How to reach one server. `command`, `args` and `env` have their variables substituted already."""

    command: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    inherit_env: bool = False
    result: Literal["structured", "content"] = "structured"
    """What a step gets: the structured content or text of a result, or always its list of content blocks."""
    start_timeout_s: float = 30.0
    """From launch to listed tools."""
    mode: Literal["auto", "legacy", "modern"] = "auto"
    """The era to speak. `auto` asks the server, which takes a server that is slow to start 10 s longer."""


@dataclass(frozen=True, slots=True)
class _Connection:
    """A server that has answered."""

    client: mcp.Client
    server: StdioServer
    tools: dict[str, ComponentInfo]
    """By name, as of the last listing; changed in place when the server changes it."""


class McpBackend:
    """One MCP server as a backend of the host. See `backend.Backend` for the contract."""

    def __init__(self, context: BackendContext, config: McpServerConfig) -> None:
        self.name = context.name
        self._context = context
        self._config = config
        self._mode = config.mode
        self._listing = Listing()
        self._calls: set[asyncio.Task[None]] = set()
        self._supervisor: asyncio.Task[None] | None = None
        self._connection: _Connection | None = None
        self._launches_failed = 0
        self._tools_stale = False
        self._closing = False
        self._wake = asyncio.Event()
        """Set when the supervisor has something to do: a loss, a changed listing."""

    async def start(self) -> None:
        """Launch the server, negotiate and list its tools.

        Raises:
            Invalid: the command does not exist or cannot be executed.
            Unavailable: the server exits, does not answer in time or does not speak MCP; its stderr is in the text.
        """
        assert self._supervisor is None, "a backend is started once"
        # Beside the event loop, which must go on: other servers of the same host start meanwhile.
        await asyncio.to_thread(_import_sdk)
        if self._closing:
            raise self._closed_error()
        loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()
        self._ready: asyncio.Future[_Connection] = loop.create_future()
        self._supervisor = loop.create_task(self._supervise(started), name=f"mcp {self.name}")
        try:
            await asyncio.wait([started, self._supervisor], return_when=asyncio.FIRST_COMPLETED)
            if not started.done():
                raise self._closed_error()
            started.result()
        except BaseException:
            await self.close()
            raise

    def listing(self) -> Listing:
        return self._listing

    def execute(self, call: HostCall) -> None:
        if self._closing or self._supervisor is None:
            call.fail(Failure(Code.UNREACHABLE, f"plugin {self.name!r} is not running"))
            return
        task = asyncio.get_running_loop().create_task(self._call(call), name=f"mcp {self.name} call")
        call.backend_state = task
        self._calls.add(task)
        task.add_done_callback(partial(self._forget, call))

    def cancel(self, call: HostCall) -> None:
        """Stop waiting; the SDK tells the server, which may stop the work."""
        if isinstance(call.backend_state, asyncio.Task):
            call.backend_state.cancel()

    async def close(self) -> None:
        self._closing = True
        calls = list(self._calls)
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        if self._supervisor is not None:
            self._supervisor.cancel()  # leaves the client in the task that entered it, and ends the server
            await asyncio.gather(self._supervisor, return_exceptions=True)

    # Calls

    async def _call(self, call: HostCall) -> None:
        try:
            arguments = codec.decode(call.input)
            if not isinstance(arguments, dict):
                call.fail(Failure(Code.INVALID_INPUT, "the input of an MCP tool is an object of its arguments"))
                return
            await self._call_tool(call, await self._connected(), call.request.component, arguments)
        except StepflowError as error:
            call.fail(Failure(Code.UNREACHABLE, error.message))
        except Exception as error:  # a call is settled, whatever happens
            log.exception("MCP call failed inside the host", plugin=self.name)
            call.fail(Failure(Code.WORKER_ERROR, f"the MCP bridge failed: {type(error).__name__}"))

    def _forget(self, call: HostCall, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if task.cancelled():  # here and not in the task, which never ran if it was cancelled in its first moment
            closed = Failure(Code.UNREACHABLE, f"plugin {self.name!r} was stopped during the call")
            call.fail(closed if self._closing else Failure(Code.CANCELLED, "the call was cancelled"))

    async def _call_tool(self, call: HostCall, connection: _Connection, name: str, arguments: dict[str, Any]) -> None:
        from component_host import mcp_results

        async def report(progress: float, total: float | None, message: str | None) -> None:
            call.progress(progress, total or 0.0, message or "")

        try:
            result = await connection.client.call_tool(name, arguments, progress_callback=report, meta=_call_meta(call))
        except Exception as error:
            server = connection.server
            if server.lost:
                message = f"the MCP server of plugin {self.name!r} {server.describe_end()} during the call"
                call.fail(mcp_results.unreachable(message, server.stderr_tail()))
            else:
                call.fail(mcp_results.failure_of_error(error, name, connection.tools.get(name)))
            return
        if result.is_error:
            call.fail(mcp_results.failure_of_result(result, connection.tools.get(name), arguments))
        else:
            call.succeed(mcp_results.output(result, self._config.result))

    async def _connected(self) -> _Connection:
        """Return a connection that is not known to be lost. Raises: StepflowError, after several failed launches."""
        if self._connection is not None:
            return self._connection
        return await asyncio.shield(self._ready)

    def _closed_error(self) -> StepflowError:
        return Unavailable("PLUGIN_CLOSED", f"plugin {self.name!r} was closed while it started")

    # Supervision: everything below runs in the supervisor's task

    async def _supervise(self, started: asyncio.Future[None]) -> None:
        """Keep a server running until `close`; end at once if the first one cannot be started."""
        loop = asyncio.get_running_loop()
        short_lives = 0
        while True:
            launched_at = loop.time()
            try:
                await self._serve(started)
            except StepflowError as error:
                if self._mode == "auto" and error.reason == SERVER_EXITED:
                    # Some servers exit at a first message that is not `initialize`.
                    self._mode = "legacy"
                    continue
                self._mode = self._config.mode
                if not started.done():
                    started.set_exception(error)
                    return
                self._note_failed_launch(error)
            short_lives = 1 if loop.time() - launched_at >= HEALTHY_S else short_lives + 1
            await asyncio.sleep(base_delay_ms(RESTART_BACKOFF, short_lives) / 1000)

    async def _serve(self, started: asyncio.Future[None]) -> None:
        """Launch a server and attend to it until it is lost.

        Raises:
            StepflowError: it did not come up.
        """
        server = self._new_server()
        published = False
        try:
            async with contextlib.AsyncExitStack() as stack:
                connection = await self._connect(stack, server)
                self._publish(connection)
                published = True
                if not started.done():
                    started.set_result(None)
                try:
                    await self._attend(connection)
                finally:
                    self._withdraw()
        except (Exception, BaseExceptionGroup) as error:
            leaf = _first_leaf(error)
            if not isinstance(leaf, Exception):
                raise
            if not published:
                raise self._launch_error(server, leaf) from None
            log.debug("MCP connection ended with an error", plugin=self.name, error=type(leaf).__name__)
        log.warning("MCP server lost", plugin=self.name, how=server.describe_end())

    def _new_server(self) -> StdioServer:
        """Describe the launch. The one place that knows the transport."""
        from component_host.mcp_stdio import StdioServer

        config, context = self._config, self._context
        spec = ProcessSpec(
            plugin=self.name,
            command=config.command,
            args=config.args,
            env=config.env,
            inherit_env=config.inherit_env,
            working_directory=context.working_directory,
            environ=context.environ,
            limits=context.limits,
        )
        return StdioServer(spec, on_loss=self._handle_loss)

    async def _connect(self, stack: contextlib.AsyncExitStack, server: StdioServer) -> _Connection:
        """Enter a client on the stack and list the tools, within the start's timeout."""
        import mcp
        import mcp_types
        from mcp_types.version import LATEST_MODERN_VERSION, MODERN_PROTOCOL_VERSIONS

        client = mcp.Client(
            server,
            mode=LATEST_MODERN_VERSION if self._mode == "modern" else self._mode,
            message_handler=self._on_message,
            client_info=mcp_types.Implementation(name="stepflow-mesh", version=_version()),
            cache=None,
        )
        async with asyncio.timeout(self._config.start_timeout_s):
            await stack.enter_async_context(client)
            tools = await _list_tools(client)
        if self._mode == "auto" and client.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            self._mode = "legacy"  # a relaunch need not ask again
        log.info("MCP server ready", plugin=self.name, protocol=client.protocol_version, tools=len(tools))
        return _Connection(client, server, self._components(tools))

    async def _attend(self, connection: _Connection) -> None:
        """Do what comes up, until the server is lost."""
        listener = asyncio.create_task(self._listen(connection), name=f"mcp {self.name} changes")
        try:
            while not connection.server.lost:
                if self._tools_stale:
                    self._tools_stale = False
                    await self._refresh(connection)
                await self._wake.wait()
                self._wake.clear()
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    async def _listen(self, connection: _Connection) -> None:
        """Ask a server of the modern era to tell of changes; older ones do it unasked."""
        from mcp import MCPError
        from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost

        tools = connection.client.server_capabilities.tools
        if tools is None or not tools.list_changed:
            return
        while True:
            try:
                async with connection.client.listen(tools_list_changed=True) as changes:
                    self._note_stale_tools()  # what changed since the listing went unheard
                    async for _ in changes:
                        self._note_stale_tools()
                return
            except (ListenNotSupportedError, MCPError):
                return
            except SubscriptionLost:
                await asyncio.sleep(LISTEN_AGAIN_S)

    async def _on_message(self, message: mcp_types.ServerNotification | Exception) -> None:
        import mcp_types

        if isinstance(message, mcp_types.ToolListChangedNotification):
            self._note_stale_tools()

    def _note_stale_tools(self) -> None:
        self._tools_stale = True
        self._wake.set()

    async def _refresh(self, connection: _Connection) -> None:
        from mcp import MCPError

        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                tools = await _list_tools(connection.client)
        except (MCPError, TimeoutError, ValueError) as error:  # ValueError: a listing that breaks the protocol
            log.warning("MCP tools could not be listed again", plugin=self.name, error=type(error).__name__)
            return
        components = self._components(tools)
        connection.tools.clear()
        connection.tools.update(components)
        self._set_listing(components)

    def _publish(self, connection: _Connection) -> None:
        self._connection = connection
        self._launches_failed = 0
        self._set_listing(connection.tools)
        self._ready.set_result(connection)

    def _withdraw(self) -> None:
        """Make calls wait for the next connection. Safe to repeat."""
        if self._connection is not None:
            self._connection = None
            self._ready = asyncio.get_running_loop().create_future()

    def _handle_loss(self) -> None:
        self._withdraw()  # at once: a call made from here on has not been seen by any server, so it may wait
        self._wake.set()

    def _note_failed_launch(self, error: StepflowError) -> None:
        self._launches_failed += 1
        log.warning("MCP server does not come up again", plugin=self.name, error=error.message)
        if self._launches_failed >= LAUNCHES_FAILED_MAX:
            waiting, self._ready = self._ready, asyncio.get_running_loop().create_future()
            waiting.set_exception(error)
            waiting.exception()  # nobody may be waiting

    def _components(self, tools: Mapping[str, mcp_types.Tool]) -> dict[str, ComponentInfo]:
        return {name: self._component(tool) for name, tool in tools.items()}

    def _component(self, tool: mcp_types.Tool) -> ComponentInfo:
        as_content = self._config.result == "content"
        return ComponentInfo(
            component=tool.name,
            path=f"/{tool.name}",
            description=tool.description or tool.title,
            input_schema=tool.input_schema,
            output_schema=CONTENT_SCHEMA if as_content else tool.output_schema,
        )

    def _set_listing(self, components: Mapping[str, ComponentInfo]) -> None:
        listing = Listing(tuple(components.values()))
        if listing != self._listing:
            self._listing = listing
            self._context.listing_changed()

    def _launch_error(self, server: StdioServer, error: Exception) -> StepflowError:
        """Word why a server did not come up, with what it said itself."""
        if isinstance(error, StepflowError):
            return error
        what = f"plugin {self.name!r}: the MCP server {self._config.command!r}"
        tail, stray = server.stderr_tail(), server.describe_stray_output()
        said = "".join([f"; {stray}" if stray else "", f"; its stderr ends with:\n{tail}" if tail else ""])
        if isinstance(error, TimeoutError):
            limit = f"{self._config.start_timeout_s:g} s"
            return Unavailable("SERVER_START_TIMEOUT", f"{what} did not answer within {limit}{said}")
        if server.lost:
            return Unavailable(SERVER_EXITED, f"{what} {server.describe_end()} before it was ready{said}")
        return Unavailable("SERVER_REFUSED", f"{what} does not speak MCP as this client does: {_words(error)}{said}")


def _import_sdk() -> None:
    """Import what the first calls need; `jsonschema` is what the SDK checks results with."""
    logging.getLogger("mcp").setLevel(logging.CRITICAL)  # its warnings quote messages, that is, payloads
    for name in ("component_host.mcp_results", "component_host.mcp_stdio", "mcp", "jsonschema.validators"):
        importlib.import_module(name)


async def _list_tools(client: mcp.Client) -> dict[str, mcp_types.Tool]:
    """Return all pages of the server's tools by name. Raises: MCPError, ValueError."""
    from mcp import MCPError
    from mcp_types import METHOD_NOT_FOUND

    tools: dict[str, mcp_types.Tool] = {}
    cursor: str | None = None
    for _ in range(PAGES_MAX):
        try:
            page = await client.list_tools(cursor=cursor)
        except MCPError as error:
            if error.code == METHOD_NOT_FOUND:  # a server of prompts or resources only
                break
            raise
        for tool in page.tools:
            if "{" in tool.name or "}" in tool.name:
                log.warning("MCP tool left out: braces in its name would make it a path pattern", tool=tool.name)
            else:
                tools.setdefault(tool.name, tool)
        cursor = page.next_cursor
        if cursor is None or len(tools) >= TOOLS_MAX:
            break
    return tools


def _call_meta(call: HostCall) -> mcp_types.RequestParamsMeta:
    """Tell the server which attempt of which step this is, so that it can recognise a repeat."""
    meta: dict[str, Any] = {
        "stepflow.mesh/idempotencyKey": call.request.key,
        "stepflow.mesh/attempt": call.request.attempt,
    }
    if call.request.traceparent:
        meta["traceparent"] = call.request.traceparent
    return cast("mcp_types.RequestParamsMeta", meta)


def _first_leaf(error: BaseException) -> BaseException:
    """Return what a task group's exception group is about."""
    while isinstance(error, BaseExceptionGroup):
        error = (error.subgroup(Exception) or error).exceptions[0]
    return error


def _words(error: Exception) -> str:
    from pydantic import ValidationError

    from component_host.mcp_results import describe_bad_answer

    return describe_bad_answer(error) if isinstance(error, ValidationError) else str(error) or type(error).__name__


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("stepflow-mesh")
    except PackageNotFoundError:  # run from a source tree
        return "0"
