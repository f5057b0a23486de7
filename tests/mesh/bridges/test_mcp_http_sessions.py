"""Sessions of MCP over streamable HTTP: lost, moved and replaced ones, with a scripted server."""

from __future__ import annotations

import asyncio

import pytest
from support import wait_until_async
from support.http_script import Exchange, http_server
from support.mcp import Call, at, outcome_of, run, started
from support.scripted_mcp import ScriptedMcpServer

from stepflow.errors import Code


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, -32000, "Bad Request: No valid session ID provided"),
        (400, -32000, "Bad Request: No valid session ID provided"),
        (410, -32000, "gone"),
        (200, -32001, "Session not found"),
        (200, -32600, "Unknown session id 'session-1' for 'tools/call'; client should reinitialize"),
        (200, -32002, "session_expired"),
        (500, -32603, "Invalid session"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
def test_a_call_of_a_forgotten_session_is_made_once_in_a_new_one(
    status: int, code: int, message: str, stream: bool
) -> None:
    class Forgetting(ScriptedMcpServer):
        async def refuse(self, exchange: Exchange) -> None:
            if stream and status == 200:
                await exchange.begin_stream()
                error = {"code": code, "message": message}
                await exchange.event({"jsonrpc": "2.0", "id": exchange.message.get("id"), "error": error})
                exchange.writer.close()
            else:
                await exchange.error(status, code, message)

    async def main() -> None:
        server = Forgetting()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            assert await outcome_of(backend, "do", {}) == "done"
            server.sessions.clear()
            assert await asyncio.gather(*(outcome_of(backend, "do", {}) for _ in range(5))) == ["done"] * 5
        assert server.executed == ["session-1", *["session-2"] * 5]

    run(main())


def test_a_tools_own_error_about_a_session_is_its_answer() -> None:
    class Browser(ScriptedMcpServer):
        async def call(self, exchange: Exchange) -> None:
            await exchange.error(200, -32001, "browser session not found")

    async def main() -> None:
        server = Browser()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            failure = await outcome_of(backend, "do", {})
        assert failure.message == "browser session not found"
        assert failure.code == Code.TIMEOUT  # -32001, as ever
        assert (server.begun, len(server.executed)) == (1, 1)

    run(main())


def test_a_call_that_ended_with_its_session_is_left_to_the_engine() -> None:
    class Ending(ScriptedMcpServer):
        async def call(self, exchange: Exchange) -> None:
            if exchange.message["params"]["arguments"].get("last"):
                self.sessions.clear()
                await exchange.error(200, -32001, "Session terminated")
            else:
                await super().call(exchange)

    async def main() -> None:
        server = Ending()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            failure = await outcome_of(backend, "do", {"last": True})
            assert await outcome_of(backend, "do", {}) == "done"
        assert failure.code == Code.UNREACHABLE
        assert "session" in failure.message
        assert server.executed == ["session-1", "session-2"], "it may have been executed, so it is not repeated here"

    run(main())


def test_a_redirect_within_the_origin_is_followed_and_hides_no_lost_session() -> None:
    class Moved(ScriptedMcpServer):
        async def __call__(self, exchange: Exchange) -> None:
            if exchange.path == "/mcp" and exchange.method == "POST":
                await exchange.send(307, Location="/mcp/")
            else:
                await super().__call__(exchange)

    async def main() -> None:
        server = Moved()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            assert await outcome_of(backend, "do", {}) == "done"
            server.sessions.clear()
            assert await outcome_of(backend, "do", {}) == "done"
        assert server.executed == ["session-1", "session-2"]

    run(main())


def test_a_call_in_flight_is_answered_although_its_connection_was_replaced() -> None:
    class Slow(ScriptedMcpServer):
        release = asyncio.Event()

        async def call(self, exchange: Exchange) -> None:
            if exchange.message["params"]["arguments"].get("slow"):
                await self.release.wait()
            await self.answer(exchange, exchange.headers["mcp-session-id"])

    async def main() -> None:
        server = Slow()
        server.release = asyncio.Event()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            slow = Call("do", {"slow": True})
            backend.execute(slow)
            await wait_until_async(lambda: server.executed, "the slow call runs")
            server.sessions.clear()
            assert await outcome_of(backend, "do", {}) == "session-2"
            server.release.set()
            assert await slow.outcome == "session-1"

    run(main())


def test_a_server_that_forgets_every_session_fails_the_call_in_the_end() -> None:
    class Forgetful(ScriptedMcpServer):
        async def call(self, exchange: Exchange) -> None:
            await exchange.error(404, -32000, "no such session")

    async def main() -> None:
        server = Forgetful()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            failure = await outcome_of(backend, "do", {})
        assert failure.code == Code.UNREACHABLE
        assert "again and again" in failure.message
        assert len(server.executed) == 3

    run(main())
