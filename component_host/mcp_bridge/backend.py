"""The backend for MCP servers: each tool of a server is a component, and so are its prompts and its resources.

Owns the connection to one server: a supervisor connects, negotiates (both eras: the `initialize` handshake of
2024-11-05 to 2025-11-25, and the stateless protocol of 2026-07-28), lists what there is, and connects anew after a
loss.

- Each connection has a task, which enters and leaves the SDK's client; calls come from their own tasks. (The client's
  exit from another task than its entry hangs.)
- A call that meets a lost connection fails as UNREACHABLE with the last of the server's stderr. If it is known that
  the server did not execute it, it waits for the next connection like a call that comes while there is none, and is
  made again. Waiting calls fail when connecting keeps failing.
- A connection that is lost without its server (`Link.drains`) stands until its last call in flight has ended, beside
  the next one.
- After `close` there is no process and no task left.

Not here: pipes (`mcp_stdio`), HTTP (`mcp_http`); what is listed and how (`mcp_listing`); what results and errors mean
(`mcp_results`); timeouts (the host's). The SDK takes most of a second to import, so everything that needs it is
imported in `start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit, urlunsplit

from component_host.backend import Health, Listing, with_stderr
from component_host.late_imports import import_in_thread
from component_host.mcp_bridge.link import Trace, call_trace
from component_host.supervision.process import ProcessSpec
from stepflow import codec
from stepflow.errors import Code, Failure, StepflowError, Unavailable
from stepflow.proxies import named_proxy, through
from stepflow.retry import Backoff, base_delay_ms
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import mcp
    import mcp_types

    from component_host.backend import BackendContext, HostCall
    from component_host.mcp_bridge.link import Link
    from component_host.mcp_bridge.listing import Kind, Offer
    from component_host.mcp_bridge.results import Result

RESTART_BACKOFF = Backoff(kind="exponential", min_delay_ms=100, max_delay_ms=30_000, factor=2)

RECONNECT_BACKOFF = Backoff(kind="exponential", min_delay_ms=100, max_delay_ms=5_000, factor=2)
"""For servers that somebody else starts: to look is cheap."""

HEALTHY_S = 10.0
"""A server that lived this long starts its back-off afresh when it is lost."""

LAUNCHES_FAILED_MAX = 3
"""Launches that may fail in a row before calls no longer wait for the next one. For a server that somebody else starts
again, they wait for as long as a start may take."""

CONNECTIONS_PER_CALL_MAX = 3
"""A call that loses as many connections before it is executed fails."""

LISTEN_AGAIN_S = 1.0

SERVER_EXITED = "SERVER_EXITED"

log = get_logger("component_host.mcp")


@dataclass(frozen=True, slots=True)
class McpServerConfig:
    """How to reach one server: a command, or a URL, or a command that serves a URL. Variables are substituted."""

    command: str = ""
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    inherit_env: bool = False
    url: str = field(default="", repr=False)
    """Of a server over streamable HTTP; empty: stdio. See `mcp_http` for `{port}`."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    result: Literal["structured", "content"] = "structured"
    """What a step gets: the structured content or text of a result, or always its list of content blocks."""
    start_timeout_s: float = 30.0
    """From launch to listed tools."""
    mode: Literal["auto", "legacy", "modern"] = "auto"
    """The era to speak. `auto` asks the server, which takes a server that is slow to start 10 s longer."""


@dataclass(slots=True, eq=False)
class _Connection:
    """A server that has answered."""

    client: mcp.Client
    link: Link
    offers: dict[str, Offer]
    """By component id, as of the last listing."""
    calls: int = 0
    """In flight."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last call in flight has ended."""

    @contextlib.contextmanager
    def one_more_call(self) -> Iterator[Trace]:
        trace = Trace()
        call_trace.set(trace)  # in the context of the call's own task
        self.calls += 1
        try:
            yield trace
        finally:
            self.calls -= 1
            if not self.calls:
                self.idle.set()

    async def drain(self) -> None:
        while self.calls:
            self.idle.clear()
            await self.idle.wait()


class McpBackend:
    """One MCP server as a backend of the host. See `backend.Backend` for the contract."""

    def __init__(self, context: BackendContext, config: McpServerConfig) -> None:
        self.name = context.name
        self.health = Health(context.listing_changed)
        self._context = context
        self._config = config
        self._mode = config.mode
        self._listing = Listing()
        self._calls: set[asyncio.Task[None]] = set()
        self._supervisor: asyncio.Task[None] | None = None
        self._connection: _Connection | None = None
        self._launches_failed = 0
        self._lost_at = 0.0
        """When the last connection was lost, by the event loop's clock."""
        self._offers_stale = False
        self._closing = False
        self._wake = asyncio.Event()
        """Set when the supervisor has something to do: a loss, a changed listing."""

    async def start(self) -> None:
        """Launch or reach the server, negotiate and list what it offers.

        Raises:
            Invalid: the command does not exist or cannot be executed; the URL or a header makes no sense.
            Unavailable: the server exits, cannot be reached, does not answer in time or does not speak MCP; its stderr
                is in the text.
        """
        assert self._supervisor is None, "a backend is started once"
        # Not on the event loop: other servers of the same host start meanwhile, MCP servers among them.
        await import_in_thread(_import_sdk, over_http=bool(self._config.url))
        if self._closing:
            raise self._closed_error()
        loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()
        self._ready: asyncio.Future[_Connection] = loop.create_future()
        self._supervisor = loop.create_task(self._supervise(started), name=f"mcp {self.name}")
        try:
            await asyncio.wait([started, self._supervisor], return_when=asyncio.FIRST_COMPLETED)
            if not started.done():
                if not self._supervisor.cancelled():
                    self._supervisor.result()  # a defect: the host words it
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
            for _ in range(CONNECTIONS_PER_CALL_MAX):
                if await self._call_over(await self._connected(), call, arguments):
                    return
            call.fail(Failure(Code.UNREACHABLE, f"the MCP server of plugin {self.name!r} is lost again and again"))
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

    async def _call_over(self, connection: _Connection, call: HostCall, arguments: Any) -> bool:
        """Make a call over one connection; False if it was lost before the server can have executed anything."""
        from component_host.mcp_bridge import results

        component = call.request.component
        offer = connection.offers.get(component)
        kind, info = offer or ("tool", None)  # only the server knows whether it has what it does not list
        if problem := results.input_problem(kind, arguments):
            call.fail(Failure(Code.INVALID_INPUT, problem))
            return True
        with connection.one_more_call() as trace:
            try:
                result = await _request(connection.client, kind, call, arguments)
            except Exception as error:
                loss = await connection.link.loss(trace)
                if loss is None:
                    call.fail(results.failure_of_error(error, component, info, arguments))
                    return True
                if loss.executed:
                    message = f"the MCP server of plugin {self.name!r} {loss.message}"
                    call.fail(results.unreachable(message, connection.link.stderr_tail()))
                return loss.executed
        outcome = results.outcome(result, self._config.result, info, arguments)
        if isinstance(outcome, Failure):
            call.fail(outcome)
        else:
            call.succeed(outcome)
        return True

    async def _connected(self) -> _Connection:
        """Return a connection that is not known to be lost. Raises: StepflowError, after several failed launches."""
        if self._connection is not None:
            return self._connection
        return await asyncio.shield(self._ready)

    def _closed_error(self) -> StepflowError:
        return Unavailable("PLUGIN_CLOSED", f"plugin {self.name!r} was closed while it started")

    # Supervision

    async def _supervise(self, started: asyncio.Future[None]) -> None:
        """Keep a connection until `close`; end at once if the first one cannot be made."""
        loop = asyncio.get_running_loop()
        short_lives = 0
        serving: set[asyncio.Task[None]] = set()
        try:
            while True:
                connecting_at = loop.time()
                lost: asyncio.Future[None] = loop.create_future()
                task = loop.create_task(self._serve(started, lost), name=f"mcp {self.name} connection")
                serving.add(task)
                task.add_done_callback(serving.discard)
                await asyncio.wait([task, lost], return_when=asyncio.FIRST_COMPLETED)
                error = task.exception() if task.done() and not task.cancelled() else None
                if isinstance(error, StepflowError):
                    if self._mode == "auto" and error.reason == SERVER_EXITED:
                        # Some servers exit at a first message that is not `initialize`.
                        self._mode = "legacy"
                        continue
                    self._mode = self._config.mode
                    if not started.done():
                        started.set_exception(error)
                        return
                    self._note_failed_launch(error)
                elif error is not None:
                    raise error
                short_lives = 1 if loop.time() - connecting_at >= HEALTHY_S else short_lives + 1
                backoff = RESTART_BACKOFF if self._config.command else RECONNECT_BACKOFF
                await asyncio.sleep(base_delay_ms(backoff, short_lives) / 1000)
        finally:
            for task in list(serving):
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, started: asyncio.Future[None], lost: asyncio.Future[None]) -> None:
        """Make a connection and attend to it until it is lost; `lost` is set as soon as the next one may be made.

        Raises:
            StepflowError: it was not made.
        """
        link = self._new_link()
        published = False
        try:
            async with contextlib.AsyncExitStack() as stack:
                connection = await self._connect(stack, link)
                self._publish(connection)
                published = True
                if not started.done():
                    started.set_result(None)
                try:
                    await self._attend(connection)
                finally:
                    self._withdraw(link)
                how = link.describe_end()
                log.warning("MCP server lost", plugin=self.name, how=how)
                self.health.lost(self, with_stderr(how, link.stderr_tail()))
                if link.drains:
                    lost.set_result(None)
                    await connection.drain()
        except (Exception, BaseExceptionGroup) as error:
            leaf = _first_leaf(error)
            if not isinstance(leaf, Exception):
                raise
            if not published:
                raise self._launch_error(link, leaf) from None
            log.debug("MCP connection ended with an error", plugin=self.name, error=type(leaf).__name__)

    def _new_link(self) -> Link:
        """Describe the launch or the connection. The one place that knows the transport."""
        config, context = self._config, self._context
        spec = ProcessSpec.of(context, config)
        if not config.url:
            from component_host.mcp_bridge.stdio import StdioServer

            stdio = StdioServer(spec, on_loss=lambda: self._handle_loss(stdio))
            return stdio
        from component_host.mcp_bridge.http import HttpServer, HttpTarget

        target = HttpTarget(self.name, config.url, config.headers)
        http = HttpServer(
            target, spec if config.command else None, on_loss=lambda: self._handle_loss(http), environ=context.environ
        )
        return http

    async def _connect(self, stack: contextlib.AsyncExitStack, link: Link) -> _Connection:
        """Enter a client on the stack and list what there is, within the start's timeout."""
        import mcp
        import mcp_types
        from mcp_types.version import MODERN_PROTOCOL_VERSIONS

        from component_host.mcp_bridge.listing import list_offers
        from component_host.mcp_bridge.results import BoundedResultCheck

        client = mcp.Client(
            link,
            # A version pinned without asking is one whose capabilities nobody knows.
            mode="legacy" if self._mode == "legacy" else "auto",
            message_handler=self._on_message,
            client_info=mcp_types.Implementation(name="stepflow-mesh", version=_version()),
            cache=None,
        )
        async with asyncio.timeout(self._config.start_timeout_s):
            await stack.enter_async_context(client)
            BoundedResultCheck().install(client.session)  # before the listing: no schema gets to the SDK's own
            modern = client.protocol_version in MODERN_PROTOCOL_VERSIONS
            if self._mode == "modern" and not modern:
                raise ValueError(f"it speaks {client.protocol_version}, and the configuration says `mode: modern`")
            offers = await list_offers(client, self._config.result)
        if self._mode == "auto" and not modern:
            self._mode = "legacy"  # the next connection need not ask again
        log.info("MCP server ready", plugin=self.name, protocol=client.protocol_version, offers=len(offers))
        return _Connection(client, link, offers)

    async def _attend(self, connection: _Connection) -> None:
        """Do what comes up, until the server is lost."""
        listener = asyncio.create_task(self._listen(connection), name=f"mcp {self.name} changes")
        try:
            while not connection.link.lost:
                if self._offers_stale:
                    self._offers_stale = False
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

        capabilities = connection.client.server_capabilities
        tools, prompts, resources = (
            capability is not None and bool(capability.list_changed)
            for capability in (capabilities.tools, capabilities.prompts, capabilities.resources)
        )
        while tools or prompts or resources:
            trace = Trace()
            call_trace.set(trace)
            try:
                async with connection.client.listen(
                    tools_list_changed=tools, prompts_list_changed=prompts, resources_list_changed=resources
                ) as changes:
                    self._note_stale_offers()  # what changed since the listing went unheard
                    async for _ in changes:
                        self._note_stale_offers()
                return
            except ListenNotSupportedError:
                return
            except MCPError:
                if await connection.link.loss(trace) is None:
                    return  # the server's answer: it does not serve it
            except SubscriptionLost:
                pass
            await asyncio.sleep(LISTEN_AGAIN_S)

    async def _on_message(self, message: mcp_types.ServerNotification | Exception) -> None:
        import mcp_types

        changes = (
            mcp_types.ToolListChangedNotification,
            mcp_types.PromptListChangedNotification,
            mcp_types.ResourceListChangedNotification,
        )
        if isinstance(message, changes):
            self._note_stale_offers()

    def _note_stale_offers(self) -> None:
        self._offers_stale = True
        self._wake.set()

    async def _refresh(self, connection: _Connection) -> None:
        from mcp import MCPError

        from component_host.mcp_bridge.listing import list_offers

        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                connection.offers = await list_offers(connection.client, self._config.result)
        except (MCPError, TimeoutError, ValueError) as error:  # ValueError: a listing that breaks the protocol
            if not connection.link.lost:
                log.warning("MCP server could not be listed again", plugin=self.name, error=type(error).__name__)
            return
        self._set_listing(connection)

    def _publish(self, connection: _Connection) -> None:
        self._connection = connection
        self._launches_failed = 0
        self.health.serves(self)
        self._set_listing(connection)
        self._ready.set_result(connection)

    def _withdraw(self, link: Link) -> None:
        """Make calls wait for the next connection. Safe to repeat."""
        if self._connection is not None and self._connection.link is link:
            self._connection = None
            loop = asyncio.get_running_loop()
            self._ready, self._lost_at = loop.create_future(), loop.time()

    def _handle_loss(self, link: Link) -> None:
        self._withdraw(link)  # at once: a call made from here on has not been seen by any server, so it may wait
        self._wake.set()

    def _note_failed_launch(self, error: StepflowError) -> None:
        self._launches_failed += 1
        log.warning("MCP server does not come up again", plugin=self.name, error=error.message)
        self.health.lost(self, error.message)
        away_s = asyncio.get_running_loop().time() - self._lost_at
        patient = not self._config.command and away_s < self._config.start_timeout_s
        if self._launches_failed >= LAUNCHES_FAILED_MAX and not patient:
            waiting, self._ready = self._ready, asyncio.get_running_loop().create_future()
            waiting.set_exception(error)
            waiting.exception()  # nobody may be waiting

    def _set_listing(self, connection: _Connection) -> None:
        listing = Listing(tuple(offer.info for offer in connection.offers.values()))
        if listing != self._listing:
            self._listing = listing
            self._context.listing_changed()

    def _launch_error(self, link: Link, error: Exception) -> StepflowError:
        """Word why a server did not come up, with what it said itself."""
        if isinstance(error, StepflowError):
            return error
        config = self._config
        what = f"plugin {self.name!r}: the MCP server {config.command or _without_secrets(config.url)!r}"
        tail, stray = link.stderr_tail(), link.describe_stray_output()
        said = "".join([f"; {stray}" if stray else "", f"; its stderr ends with:\n{tail}" if tail else ""])
        if isinstance(error, TimeoutError):
            limit = f"{config.start_timeout_s:g} s"
            way = "" if config.command else through(named_proxy(config.url, self._context.environ))
            return Unavailable("SERVER_START_TIMEOUT", f"{what} did not answer within {limit}{way}{said}")
        if link.lost:
            reason = SERVER_EXITED if config.command else "SERVER_UNREACHABLE"
            return Unavailable(reason, f"{what} {link.describe_end()} before it was ready{said}")
        return Unavailable("SERVER_REFUSED", f"{what} does not speak MCP as this client does: {_words(error)}{said}")


def _import_sdk(*, over_http: bool) -> None:
    """Import what the first calls need; `jsonschema` is what the SDK checks results with."""
    logging.getLogger("mcp").setLevel(logging.CRITICAL)  # its warnings quote messages, that is, payloads
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)  # below, they write URLs and headers
    transport = "component_host.mcp_bridge.http" if over_http else "component_host.mcp_bridge.stdio"
    for name in (
        transport,
        "component_host.mcp_bridge.listing",
        "component_host.mcp_bridge.results",
        "jsonschema.validators",
    ):
        importlib.import_module(name)


async def _request(client: mcp.Client, kind: Kind, call: HostCall, arguments: dict[str, Any]) -> Result:
    """Make the request that a call is. Raises: whatever the SDK does."""

    async def report(progress: float, total: float | None, message: str | None) -> None:
        call.progress(progress, total or 0.0, message or "")

    component, meta = call.request.component, _call_meta(call)
    match kind:
        case "prompt":
            return await client.get_prompt(component.removeprefix("prompts/"), arguments, meta=meta)
        case "resources":
            return await client.read_resource(arguments["uri"], meta=meta)
        case _:
            return await client.call_tool(component, arguments, progress_callback=report, meta=meta)


def _call_meta(call: HostCall) -> mcp_types.RequestParamsMeta:
    """Tell the server which attempt of which step this is, so that it can recognise a repeat."""
    meta: dict[str, Any] = {
        "stepflow.mesh/idempotencyKey": call.request.key,
        "stepflow.mesh/attempt": call.request.attempt,
    }
    if call.request.traceparent:
        meta["traceparent"] = call.request.traceparent
    return cast("mcp_types.RequestParamsMeta", meta)


def _without_secrets(url: str) -> str:
    """Return a URL as it may stand in a text: without password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _first_leaf(error: BaseException) -> BaseException:
    """Return what a task group's exception group is about."""
    while isinstance(error, BaseExceptionGroup):
        error = (error.subgroup(Exception) or error).exceptions[0]
    return error


def _words(error: Exception) -> str:
    from pydantic import ValidationError

    from component_host.mcp_bridge.results import describe_bad_answer

    return describe_bad_answer(error) if isinstance(error, ValidationError) else str(error) or type(error).__name__


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("stepflow-mesh")
    except PackageNotFoundError:  # run from a source tree
        return "0"
