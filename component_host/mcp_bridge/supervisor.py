"""Keeps one connection to an MCP server: launch, negotiation, loss, back-off, the next connection.

- Each connection has a task of its own, which opens and closes it.
- Calls that arrive while no connection stands wait for the next one. They fail when launches keep failing.
- A connection lost without its server (`McpLink.drains`) stays open until its last call in flight has ended, while the
  next one is already made.
- After `close` no process and no task is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from typing import TYPE_CHECKING

from component_host.backend import with_stderr
from component_host.mcp_bridge.odd_offers import OddOffers
from component_host.supervision.spec import ProcessSpec
from stepflow.errors import StepflowError, Unavailable
from stepflow.proxies import named_proxy, through
from stepflow.redaction import url_without_credentials
from stepflow.retry import Backoff, base_delay_ms
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.backend import BackendContext, ServerHealth
    from component_host.mcp_bridge.connection import McpConnection
    from component_host.mcp_bridge.link import McpLink, McpServerConfig

RESTART_BACKOFF = Backoff(kind="exponential", min_delay_ms=100, max_delay_ms=30_000, factor=2)

RECONNECT_BACKOFF = Backoff(kind="exponential", min_delay_ms=100, max_delay_ms=5_000, factor=2)
"""For servers that others start: connecting is cheap."""

HEALTHY_S = 10.0
"""A server that lived this long starts its back-off afresh when it is lost."""

LAUNCHES_FAILED_MAX = 3
"""Failed launches in a row after which calls no longer wait for the next one. For a server that others restart, calls
wait for the whole start timeout first."""

SERVER_EXITED = "SERVER_EXITED"

log = get_logger("component_host.mcp")


class McpSupervisor:
    """Supervises one server. `start`, `connected` for each call, `close`."""

    def __init__(
        self,
        context: BackendContext,
        config: McpServerConfig,
        health: ServerHealth,
        on_listing: Callable[[McpConnection], None],
    ) -> None:
        self.name = context.name
        self.listing_changed = on_listing
        self.odd_offers = OddOffers(context.name)
        self._context = context
        self._config = config
        self._health = health
        self._mode = config.mode
        self._task: asyncio.Task[None] | None = None
        self._connection: McpConnection | None = None
        self._next_connection: asyncio.Future[McpConnection]
        self._launches_failed = 0
        self._lost_at_s = 0.0
        """When the last connection was lost, by the event loop's clock."""

    @property
    def running(self) -> bool:
        return self._task is not None

    async def start(self) -> None:
        """Make the first connection. Raises: StepflowError, with the server's stderr in its text."""
        loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()
        self._next_connection = loop.create_future()
        self._task = loop.create_task(self._supervise(started), name=f"mcp {self.name}")

        await asyncio.wait([started, self._task], return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            if not self._task.cancelled():
                self._task.result()  # a defect: the host words it
            raise closed_error(self.name)
        started.result()

    async def close(self) -> None:
        """End the server. Safe to repeat."""
        if self._task is not None:
            self._task.cancel()  # each connection is closed by the task that opened it
            await asyncio.gather(self._task, return_exceptions=True)

    async def connected(self) -> McpConnection:
        """Return a connection not known to be lost. Raises: StepflowError, after several failed launches."""
        if self._connection is not None:
            return self._connection
        return await asyncio.shield(self._next_connection)

    # --- one connection after the other -------------------------------------------------------------------------------

    async def _supervise(self, started: asyncio.Future[None]) -> None:
        """Keep a connection until `close`; end at once if the first one fails."""
        loop = asyncio.get_running_loop()
        backoff = RESTART_BACKOFF if self._config.command else RECONNECT_BACKOFF
        short_lives = 0
        serving: set[asyncio.Task[None]] = set()
        try:
            while True:
                # 1. Make a connection, and wait until the next one may be made.
                connecting_at_s = loop.time()
                lost: asyncio.Future[None] = loop.create_future()
                task = loop.create_task(self._serve(started, lost), name=f"mcp {self.name} connection")
                serving.add(task)
                task.add_done_callback(serving.discard)
                await asyncio.wait([task, lost], return_when=asyncio.FIRST_COMPLETED)

                # 2. A launch that failed: try the other era, report the first one, count the others.
                error = task.exception() if task.done() and not task.cancelled() else None
                if isinstance(error, StepflowError):
                    if self._mode == "auto" and error.reason == SERVER_EXITED:
                        self._mode = "legacy"  # some servers exit at a first message other than `initialize`
                        continue
                    self._mode = self._config.mode
                    if not started.done():
                        started.set_exception(error)
                        return
                    self._note_failed_launch(error)
                elif error is not None:
                    if not started.done():
                        raise error
                    log_defect(log, "MCP connection failed by a defect", error, plugin=self.name)

                # 3. Back off by the number of short lives in a row.
                short_lives = 1 if loop.time() - connecting_at_s >= HEALTHY_S else short_lives + 1
                await asyncio.sleep(base_delay_ms(backoff, short_lives) / 1000)
        finally:
            for task in list(serving):
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, started: asyncio.Future[None], lost: asyncio.Future[None]) -> None:
        """Make a connection and attend to it until it is lost; `lost` is set as soon as the next one may be made.

        Raises: StepflowError, the connection could not be made.
        """
        from component_host.mcp_bridge.connection import McpConnection

        link = self._new_link()
        published = False
        try:
            async with contextlib.AsyncExitStack() as stack:
                connection = McpConnection(self, self._config, link)
                await connection.open(stack, self._mode)
                if self._mode == "auto" and not connection.modern:
                    self._mode = "legacy"  # the next connection need not ask again

                self._publish(connection)
                published = True
                if not started.done():
                    started.set_result(None)
                try:
                    await connection.attend()
                finally:
                    self._withdraw(link)

                how = link.describe_end()
                log.warning("MCP server lost", plugin=self.name, how=how)
                self._health.lost(self, with_stderr(how, link.stderr_tail()))
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

    def _new_link(self) -> McpLink:
        """Describe the launch or the connection. The only place that knows the transports."""
        config, context = self._config, self._context
        spec = ProcessSpec.of(context, config)
        if not config.url:
            from component_host.mcp_bridge.stdio import McpStdioServer

            stdio = McpStdioServer(spec, on_loss=lambda: self._handle_loss(stdio))
            return stdio

        from component_host.mcp_bridge.http import HttpTarget, McpHttpServer

        target = HttpTarget(self.name, config.url, config.headers)
        http = McpHttpServer(
            target, spec if config.command else None, on_loss=lambda: self._handle_loss(http), environ=context.environ
        )
        return http

    def _publish(self, connection: McpConnection) -> None:
        """Let waiting calls have the connection."""
        self._connection = connection
        self._launches_failed = 0
        self._health.serves(self)
        self.listing_changed(connection)
        self._next_connection.set_result(connection)

    def _withdraw(self, link: McpLink) -> None:
        """Make calls wait for the next connection. Safe to repeat."""
        if self._connection is not None and self._connection.link is link:
            self._connection = None
            loop = asyncio.get_running_loop()
            self._next_connection, self._lost_at_s = loop.create_future(), loop.time()

    def _handle_loss(self, link: McpLink) -> None:
        connection = self._connection
        self._withdraw(link)  # at once: no server has seen a call made from here on, so the call may wait
        if connection is not None:
            connection.wake()

    # --- failed launches ----------------------------------------------------------------------------------------------

    def _note_failed_launch(self, error: StepflowError) -> None:
        self._launches_failed += 1
        log.warning("MCP server does not come up again", plugin=self.name, error=error.message)
        self._health.lost(self, error.message)

        away_s = asyncio.get_running_loop().time() - self._lost_at_s
        patient = not self._config.command and away_s < self._config.start_timeout_s
        if self._launches_failed >= LAUNCHES_FAILED_MAX and not patient:
            waiting, self._next_connection = self._next_connection, asyncio.get_running_loop().create_future()
            waiting.set_exception(error)
            waiting.exception()  # marks it as retrieved: no call may be waiting

    def _launch_error(self, link: McpLink, error: Exception) -> StepflowError:
        """Explain why a server did not come up, with its own last words."""
        if isinstance(error, StepflowError):
            return error

        config = self._config
        shown = self._context.shown_config(config)
        what = f"plugin {self.name!r}: the MCP server {shown.command or url_without_credentials(shown.url)!r}"
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


def closed_error(name: str) -> StepflowError:
    return Unavailable("PLUGIN_CLOSED", f"plugin {name!r} was closed while it started")


def import_sdk(*, over_http: bool) -> None:
    """Import the modules of the bridge that need the SDK."""
    logging.getLogger("mcp").setLevel(logging.CRITICAL)  # its warnings quote messages, that is, payloads
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)  # below, they write URLs and headers

    transport = "component_host.mcp_bridge.http" if over_http else "component_host.mcp_bridge.stdio"
    for name in (transport, "component_host.mcp_bridge.connection"):
        importlib.import_module(name)


def _first_leaf(error: BaseException) -> BaseException:
    """Return the cause inside a task group's exception group."""
    while isinstance(error, BaseExceptionGroup):
        error = (error.subgroup(Exception) or error).exceptions[0]
    return error


def _words(error: Exception) -> str:
    from pydantic import ValidationError

    from component_host.mcp_bridge.results import describe_bad_answer

    return describe_bad_answer(error) if isinstance(error, ValidationError) else str(error) or type(error).__name__


__all__ = ["McpSupervisor", "closed_error", "import_sdk"]
