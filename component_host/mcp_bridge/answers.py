"""Answers of a server, taken out of the streams before the SDK's models validate them.

The models refuse a whole listing for one tool that differs from the specification, and a result for one block. What
steps can call, and what they get, is therefore read from the answers themselves (`listing`, `results`). The SDK gets a
sound stand-in: it correlates, negotiates, cancels, and asks back, but validates nothing of a user's.

Imports the SDK: import it late.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import mcp_types
from mcp.shared.dispatcher import coerce_request_id
from mcp.shared.jsonrpc_dispatcher import cancelled_request_id_from_params

from component_host.mcp_bridge.link import CallTrace, call_trace

if TYPE_CHECKING:
    from types import TracebackType

    from mcp.client._transport import ReadStream, TransportStreams, WriteStream
    from mcp.shared.message import SessionMessage

    from component_host.mcp_bridge.link import McpLink

HEADER_KEYWORD = "x-mcp-header"
"""Keyword of input schemas that the SDK reads: these arguments travel as headers too."""


class Asked(NamedTuple):
    """A request in flight."""

    method: str
    trace: CallTrace | None


class AnswerTap(AbstractAsyncContextManager["TransportStreams"]):
    """A transport for the SDK around a link. `CallTrace.answer` gets the result of each request with a trace."""

    def __init__(self, link: McpLink) -> None:
        self._link = link
        self._asked: dict[int | str, Asked] = {}

    async def __aenter__(self) -> TransportStreams:
        read, write = await self._link.__aenter__()
        return _TappedReads(read, self), _TappedWrites(write, self)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._link.__aexit__(exc_type, exc, traceback)

    def note_sent(self, message: mcp_types.JSONRPCMessage) -> None:
        """Remember a request until its answer or its cancellation. In the task of the sender."""
        match message:
            case mcp_types.JSONRPCRequest(method=method) if method in _STAND_INS:
                self._asked[coerce_request_id(message.id)] = Asked(method, call_trace.get())
            case mcp_types.JSONRPCNotification(method="notifications/cancelled"):
                request_id = cancelled_request_id_from_params(message.params)
                if request_id is not None:
                    self._asked.pop(coerce_request_id(request_id), None)

    def take_answer(self, message: mcp_types.JSONRPCMessage) -> None:
        """Keep a result for its request and put the stand-in in its place."""
        if not isinstance(message, mcp_types.JSONRPCResponse | mcp_types.JSONRPCError) or message.id is None:
            return
        asked = self._asked.pop(coerce_request_id(message.id), None)
        if asked is None or isinstance(message, mcp_types.JSONRPCError):
            return

        result = message.result
        if asked.trace is not None:
            asked.trace.answer = result
        if result.get("resultType") != "input_required":  # else the SDK asks back, and sends the request again
            message.result = _STAND_INS[asked.method](result)


class _TappedReads:
    """The stream from the server. Implements the SDK's `ReadStream`."""

    def __init__(self, inner: ReadStream[SessionMessage | Exception], tap: AnswerTap) -> None:
        self._inner = inner
        self._tap = tap

    @property
    def last_context(self) -> Any:
        """Of the sender of the last message, where the transport has it."""
        return getattr(self._inner, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        return self._tapped(await self._inner.receive())

    async def aclose(self) -> None:
        await self._inner.aclose()

    def __aiter__(self) -> _TappedReads:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        return self._tapped(await self._inner.__anext__())

    async def __aenter__(self) -> _TappedReads:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._inner.__aexit__(exc_type, exc, traceback)

    def _tapped(self, item: SessionMessage | Exception) -> SessionMessage | Exception:
        if not isinstance(item, Exception):
            self._tap.take_answer(item.message)
        return item


class _TappedWrites:
    """The stream to the server. Implements the SDK's `WriteStream`."""

    def __init__(self, inner: WriteStream[SessionMessage], tap: AnswerTap) -> None:
        self._inner = inner
        self._tap = tap

    async def send(self, item: SessionMessage, /) -> None:
        self._tap.note_sent(item.message)
        await self._inner.send(item)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> _TappedWrites:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._inner.__aexit__(exc_type, exc, traceback)


# --- stand-ins ---------------------------------------------------------------------------------------------------

_MODERN = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
"""Members that the stateless protocol requires; dropped by the SDK on older connections."""


def _call(_: dict[str, Any]) -> dict[str, Any]:
    return {**_MODERN, "content": [], "isError": True}  # an error: the SDK does not validate it


def _prompt(_: dict[str, Any]) -> dict[str, Any]:
    return {**_MODERN, "messages": []}


def _resource(_: dict[str, Any]) -> dict[str, Any]:
    return {**_MODERN, "contents": []}


def _tools(result: dict[str, Any]) -> dict[str, Any]:
    tools = result.get("tools")
    named = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return _page("tools", [_tool(tool) for tool in named if isinstance(tool.get("name"), str)], result)


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool with its input schema only where the SDK needs it."""
    schema = tool.get("inputSchema")
    if not isinstance(schema, dict) or HEADER_KEYWORD not in str(schema):
        schema = {}
    members = {key: value for key, value in schema.items() if key != "$schema"}
    return {"name": tool["name"], "inputSchema": {**members, "type": "object"}}


def _prompts(result: dict[str, Any]) -> dict[str, Any]:
    return _page("prompts", [], result)


def _resources(result: dict[str, Any]) -> dict[str, Any]:
    return _page("resources", [], result)


def _templates(result: dict[str, Any]) -> dict[str, Any]:
    return _page("resourceTemplates", [], result)


def _page(member: str, items: list[Any], result: dict[str, Any]) -> dict[str, Any]:
    cursor = result.get("nextCursor")
    following = {"nextCursor": cursor} if isinstance(cursor, str) else {}
    return {**_MODERN, member: items, **following}


def _handshake(result: dict[str, Any]) -> dict[str, Any]:
    """Return the negotiated version and the capabilities, as far as they can be read."""
    told, info = result.get("capabilities"), result.get("serverInfo")
    capabilities = {
        name: {"listChanged": isinstance(value, dict) and value.get("listChanged") is True}
        for name, value in (told.items() if isinstance(told, dict) else ())
        if name in ("tools", "prompts", "resources") and value not in (None, False)
    }
    name, version = (
        (text if isinstance(text := info.get(member), str) else "") if isinstance(info, dict) else ""
        for member in ("name", "version")
    )
    return {
        "protocolVersion": result.get("protocolVersion"),
        "capabilities": capabilities,
        "serverInfo": {"name": name, "version": version},
    }


_STAND_INS = {
    "initialize": _handshake,
    "tools/list": _tools,
    "prompts/list": _prompts,
    "resources/list": _resources,
    "resources/templates/list": _templates,
    "tools/call": _call,
    "prompts/get": _prompt,
    "resources/read": _resource,
}

__all__ = ["AnswerTap"]
