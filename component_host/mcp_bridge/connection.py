"""One negotiated connection to an MCP server: its listing, its calls in flight, and its change notifications.

- The task that opens the connection also closes it: the SDK's client hangs when another task leaves its context.
- Both eras are spoken: the `initialize` handshake of 2024-11-05 to 2025-11-25, and the stateless protocol of
  2026-07-28. Servers of the first era announce changes unasked, those of the second when subscribed to.
- What the server offers and answers is read as it was sent (`answers`). The SDK validates none of it.

Imports the SDK: import it late.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any, Protocol, cast

import mcp
import mcp_types
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from component_host.mcp_bridge.answers import AnswerTap
from component_host.mcp_bridge.link import CallTrace, Loss, call_trace
from component_host.mcp_bridge.listing import list_offers
from component_host.mcp_bridge.results import ResultChecks, refuses_session, speaks_of_session
from component_host.mcp_bridge.sign_of_life import SignOfLife
from stepflow.telemetry import get_logger
from stepflow.vital import keep_running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from component_host.backend import HostCall
    from component_host.mcp_bridge.link import McpLink, McpServerConfig, OfferKind
    from component_host.mcp_bridge.listing import Offer
    from component_host.mcp_bridge.odd_offers import OddOffers

SESSION_PROBE_S = 10.0
"""Time limit for a server to list its tools after an error that mentions the session."""

SESSION_ERROR_CHARS = 200
"""Longer errors about a session are cut in the reason of the loss."""

LISTEN_AGAIN_S = 1.0
"""Pause before a lost subscription is opened again."""

log = get_logger("component_host.mcp")


class McpConnectionOwner(Protocol):
    """What a connection needs of its supervisor."""

    name: str
    odd_offers: OddOffers

    def listing_changed(self, connection: McpConnection) -> None: ...


class McpConnection:
    """Use `open` on an exit stack, then `attend` until the server is lost, then `drain`."""

    def __init__(self, owner: McpConnectionOwner, config: McpServerConfig, link: McpLink) -> None:
        self.link = link
        self.offers: dict[str, Offer] = {}
        """By component id, as of the last listing."""
        self.checks = ResultChecks()
        self.modern = False
        """The server speaks the stateless protocol."""
        self._owner = owner
        self._config = config
        self._session_gone = False
        self._in_flight: set[int] = set()
        self._last_call = 0
        self._sign_of_life = SignOfLife(owner.name, link)
        self._any_cancelled = False
        self._idle = asyncio.Event()
        self._offers_stale = False
        self._wake = asyncio.Event()
        """Set when `attend` has something to do: a loss, a changed listing."""
        self._client: mcp.Client

    async def open(self, stack: contextlib.AsyncExitStack, mode: str) -> None:
        """Enter a client on the stack and list the server's offers, within the start timeout.

        Raises: TimeoutError; ValueError, the server speaks an era that the configuration excludes; any SDK error.
        """
        self._client = client = mcp.Client(
            AnswerTap(self.link),
            # A version pinned without asking is one whose capabilities are unknown.
            mode="legacy" if mode == "legacy" else "auto",
            message_handler=self._on_message,
            client_info=mcp_types.Implementation(name="stepflow-mesh", version=_version()),
            cache=None,
        )
        async with asyncio.timeout(self._config.start_timeout_s):
            await stack.enter_async_context(client)

            self.modern = client.protocol_version in MODERN_PROTOCOL_VERSIONS
            if mode == "modern" and not self.modern:
                raise ValueError(f"it speaks {client.protocol_version}, and the configuration says `mode: modern`")

            self.offers = await list_offers(client, self._config.result, self._owner.odd_offers)
        log.info("MCP server ready", plugin=self._owner.name, protocol=client.protocol_version, offers=len(self.offers))

    async def attend(self) -> None:
        """Refresh the listing when it changes; return when the server is lost."""
        listener = asyncio.create_task(
            keep_running(log, "the subscription to changes", self._listen, plugin=self._owner.name),
            name=f"mcp {self._owner.name} changes",
        )
        try:
            while not self.link.lost:
                if self._offers_stale:
                    self._offers_stale = False
                    await self._refresh()
                await self._wake.wait()
                self._wake.clear()
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
            await self._sign_of_life.stop()

    def wake(self) -> None:
        """Make `attend` look at the link again."""
        self._wake.set()

    async def drain(self) -> None:
        """Wait until no call is in flight."""
        while self._in_flight:
            self._idle.clear()
            await self._idle.wait()

    @property
    def idle(self) -> bool:
        """True if the server works on no call. A cancelled call may continue in the server without end."""
        return not (self._in_flight or self._any_cancelled)

    # --- calls --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def count_call(self) -> Iterator[CallTrace]:
        """Count a call as in flight and trace what the current task sends for it."""
        trace = CallTrace()
        call_trace.set(trace)
        self._last_call = number = self._last_call + 1
        self._in_flight.add(number)
        try:
            yield trace
        except asyncio.CancelledError:
            self._any_cancelled = True
            self._in_flight.discard(number)
            before = self._last_call
            self._sign_of_life.begin(self._client.list_tools, lambda: min(self._in_flight, default=math.inf) <= before)
            raise
        finally:
            self._in_flight.discard(number)
            if not self._in_flight:
                self._idle.set()

    async def request(
        self, kind: OfferKind, call: HostCall, arguments: dict[str, Any], trace: CallTrace
    ) -> dict[str, Any]:
        """Send the request that a call stands for; return the answer. Raises: any error of the SDK."""

        async def report(progress: float, total: float | None, message: str | None) -> None:
            call.progress(progress, total or 0.0, message or "")

        client, component, meta = self._client, call.request.component, _call_meta(call)
        match kind:
            case "prompt":
                await client.get_prompt(component.removeprefix("prompts/"), arguments, meta=meta)
            case "resources":
                await client.read_resource(arguments["uri"], meta=meta)
            case _:
                await client.call_tool(component, arguments, progress_callback=report, meta=meta)
        assert trace.answer is not None, "a result without an answer"
        return trace.answer

    async def session_loss(self, error: Exception) -> Loss | None:
        """Explain a call that failed because the server has forgotten the session; None: the error is its answer.

        Several servers tell it by a JSON-RPC error instead of HTTP 404, with codes of their own. An error about a
        session may also be a tool's, so the server is asked for its tools: in a session that it knows, it answers.
        """
        lose = self.link.lose_session
        if lose is None or not isinstance(error, mcp.MCPError) or not speaks_of_session(error):
            return None
        if not self._session_gone and not await self._session_is_unknown():
            return None

        self._session_gone = True
        why = f"does not know the session any more ({error.message[:SESSION_ERROR_CHARS]})"
        lose(why)
        return Loss(why, executed=not refuses_session(error))

    async def _session_is_unknown(self) -> bool:
        trace = CallTrace()
        before = call_trace.set(trace)
        try:
            async with asyncio.timeout(SESSION_PROBE_S):
                await self._client.list_tools()
        except mcp.MCPError as error:
            return trace.refused or speaks_of_session(error)
        except TimeoutError:
            return False
        finally:
            call_trace.reset(before)
        return False

    # --- changes of the listing ---------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Subscribe to changes at a server of the modern era; older ones announce them unasked."""
        capabilities = self._client.server_capabilities
        tools, prompts, resources = (
            capability is not None and bool(capability.list_changed)
            for capability in (capabilities.tools, capabilities.prompts, capabilities.resources)
        )
        while tools or prompts or resources:
            trace = CallTrace()
            call_trace.set(trace)
            try:
                async with self._client.listen(
                    tools_list_changed=tools, prompts_list_changed=prompts, resources_list_changed=resources
                ) as changes:
                    self._mark_stale()  # changes between the listing and the subscription went unheard
                    async for _ in changes:
                        self._mark_stale()
                return
            except ListenNotSupportedError:
                return
            except mcp.MCPError:
                if await self.link.loss(trace) is None:
                    return  # the server's answer: it does not serve subscriptions
            except SubscriptionLost:
                pass
            await asyncio.sleep(LISTEN_AGAIN_S)

    async def _on_message(self, message: mcp_types.ServerNotification | Exception) -> None:
        changes = (
            mcp_types.ToolListChangedNotification,
            mcp_types.PromptListChangedNotification,
            mcp_types.ResourceListChangedNotification,
        )
        if isinstance(message, changes):
            self._mark_stale()

    def _mark_stale(self) -> None:
        self._offers_stale = True
        self._wake.set()

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                self.offers = await list_offers(self._client, self._config.result, self._owner.odd_offers)
        except (mcp.MCPError, TimeoutError, ValueError) as error:  # ValueError: a listing that breaks the protocol
            await self.session_loss(error)
            if not self.link.lost:
                name = self._owner.name
                log.warning("MCP server could not be listed again", plugin=name, error=type(error).__name__)
            return
        self._owner.listing_changed(self)


def _call_meta(call: HostCall) -> mcp_types.RequestParamsMeta:
    """Return the `_meta` by which a server recognises a repeated attempt of a step."""
    meta: dict[str, Any] = {
        "stepflow.mesh/idempotencyKey": call.request.key,
        "stepflow.mesh/attempt": call.request.attempt,
    }
    if call.request.traceparent:
        meta["traceparent"] = call.request.traceparent
    return cast("mcp_types.RequestParamsMeta", meta)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("stepflow-mesh")
    except PackageNotFoundError:  # run from a source tree
        return "0"


__all__ = ["McpConnection", "McpConnectionOwner"]
