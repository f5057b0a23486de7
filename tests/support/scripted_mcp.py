"""An MCP server over streamable HTTP whose answers a test decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.http_script import Exchange


class ScriptedMcpServer:
    """A server of the handshake era with sessions; `call` answers the calls of tools."""

    def __init__(self) -> None:
        self.sessions: set[str] = set()
        self.begun = 0
        self.executed: list[str] = []
        self.authorizations: set[str] = set()

    async def __call__(self, exchange: Exchange) -> None:
        self.authorizations.add(exchange.headers.get("authorization", ""))
        message = exchange.message or {}
        method = message.get("method")
        if exchange.method == "GET":
            await exchange.send(405)
        elif exchange.method == "DELETE":
            await exchange.send(204)
        elif method == "initialize":
            self.begun += 1
            self.sessions.add(session := f"session-{self.begun}")
            info = {"name": "scripted", "version": "1"}
            result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}
            await exchange.result(result, Mcp_Session_Id=session)
        elif exchange.headers.get("mcp-session-id") not in self.sessions:
            await self.refuse(exchange)
        elif "id" not in message:
            await exchange.send(202)
        elif method == "tools/list":
            await exchange.result({"tools": [{"name": "do", "inputSchema": {"type": "object"}}]})
        else:
            self.executed.append(exchange.headers["mcp-session-id"])
            await self.call(exchange)

    async def refuse(self, exchange: Exchange) -> None:
        """Answer a request of an unknown session."""
        await exchange.error(404, -32000, "Bad Request: No valid session ID provided")

    async def call(self, exchange: Exchange) -> None:
        await self.answer(exchange, "done")

    async def answer(self, exchange: Exchange, text: str) -> None:
        await exchange.result({"content": [{"type": "text", "text": text}]})
