"""Faults of MCP servers over streamable HTTP, each with a scripted server: what ends one call and nothing else."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from support import wait_until_async
from support.http_script import Exchange, http_server
from support.mcp import Call, at, outcome_of, run, started
from support.scripted_mcp import ScriptedMcpServer

from stepflow.errors import Code, Failure


async def _hang_up(exchange: Exchange) -> None:
    exchange.hang_up()


async def _break_off(exchange: Exchange) -> None:
    await exchange.begin_stream()
    exchange.hang_up()


async def _end_early(exchange: Exchange) -> None:
    await exchange.begin_stream()
    exchange.writer.close()


async def _half_json(exchange: Exchange) -> None:
    exchange.writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"json')
    await exchange.writer.drain()
    exchange.hang_up()


async def _unavailable(exchange: Exchange) -> None:
    await exchange.send(503, b"<html>busy</html>", "text/html")


async def _server_error(exchange: Exchange) -> None:
    await exchange.send(500)


async def _expired(exchange: Exchange) -> None:
    await exchange.send(401)


async def _own_error(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.event(
        {"jsonrpc": "2.0", "id": exchange.message["id"], "error": {"code": -32000, "message": "its own"}}
    )
    exchange.writer.close()


async def _no_json(exchange: Exchange) -> None:
    await exchange.send(200, b'{"secret payload')


async def _no_json_in_a_stream(exchange: Exchange) -> None:
    await exchange.begin_stream()
    exchange.writer.write(b"data: {secret payload\n\n")
    exchange.writer.close()


async def _not_a_number(exchange: Exchange) -> None:
    content = b'{"content": [], "structuredContent": {"n": NaN}}'
    await exchange.send(200, b'{"jsonrpc": "2.0", "id": %d, "result": %s}' % (exchange.message["id"], content))


async def _too_large(exchange: Exchange) -> None:
    await exchange.begin_stream()
    with_room = 66 * 1024 * 1024
    exchange.writer.write(b"data: " + b"x" * with_room + b"\n\n")
    exchange.writer.close()


def _body(text: str, *, stream: bool = False) -> Any:
    """Return a handler that answers with a text in which `{id}` is the id of the request."""

    async def answer(exchange: Exchange) -> None:
        body = text.replace("{id}", str(exchange.message["id"])).encode()
        if stream:
            await exchange.begin_stream()
            exchange.writer.write(b"data: " + body + b"\n\n")
            await exchange.wait_for_hang_up()
        else:
            await exchange.send(200, body)

    return answer


_FINE = '{"jsonrpc": "2.0", "id": {id}, "result": {"content": [{"type": "text", "text": "fine"}]}}'
_UNREADABLE = {
    "neither": '{"jsonrpc": "2.0", "id": {id}}',
    "another message": '{"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": 1}}',
    "an error without an id": '{"jsonrpc": "2.0", "id": null, "error": {"code": -32050, "message": "no"}}',
    "error is a text": '{"jsonrpc": "2.0", "id": {id}, "error": "oh"}',
    "code is a text": '{"jsonrpc": "2.0", "id": {id}, "error": {"code": "-32050", "message": null}}',
    "null": "null",
    "an empty list": "[]",
}
_IN_ANOTHER_FORM = {
    "another id": _FINE.replace("{id}", "987654"),
    "no id": _FINE.replace('"id": {id}, ', ""),
    "id is a text": _FINE.replace("{id}", '"{id}"'),
    "with a method": _FINE.replace('"id"', '"method": "tools/call", "id"'),
    "no version": _FINE.replace('"jsonrpc": "2.0", ', ""),
    "an empty error": _FINE[:-1] + ', "error": null}',
    "a batch": '[{"jsonrpc": "2.0", "method": "notifications/x"}, ' + _FINE + "]",
    "over several lines": _FINE.replace('"result": {', '"result":\n{\n'),
}


async def _page(exchange: Exchange) -> None:
    await exchange.send(200, b"<html>Welcome!</html>", "text/html")


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (_hang_up, Code.UNREACHABLE),
        (_break_off, Code.UNREACHABLE),
        (_end_early, Code.UNREACHABLE),
        (_half_json, Code.UNREACHABLE),
        (_unavailable, Code.UNREACHABLE),
        (_server_error, Code.COMPONENT_FAILED),
        (_expired, Code.COMPONENT_FAILED),
        (_own_error, Code.COMPONENT_FAILED),
        (_no_json, Code.COMPONENT_FAILED),
        (_no_json_in_a_stream, Code.COMPONENT_FAILED),
        (_not_a_number, Code.COMPONENT_FAILED),
        (_too_large, Code.COMPONENT_FAILED),
        (_page, Code.COMPONENT_FAILED),
    ],
)
def test_a_fault_ends_its_call_and_nothing_else(fault: Any, code: Code) -> None:
    class Faulty(ScriptedMcpServer):
        async def call(self, exchange: Exchange) -> None:
            if exchange.message["params"]["arguments"].get("good"):
                await self.answer(exchange, "done")
            else:
                await fault(exchange)

    async def main() -> None:
        server = Faulty()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            failure = await outcome_of(backend, "do", {})
            assert await outcome_of(backend, "do", {"good": True}) == "done"
        assert isinstance(failure, Failure)
        assert failure.code == code
        assert "secret payload" not in failure.message + failure.data.decode()
        assert server.begun == 1, "the session goes on"
        assert len(server.executed) == 2, "what may have been executed is not repeated here"

    run(main())


@pytest.mark.parametrize("status", [429, 503, 500])
def test_the_pause_that_a_server_asks_for_reaches_the_retry(status: int) -> None:
    class Busy(ScriptedMcpServer):
        async def call(self, exchange: Exchange) -> None:
            await exchange.send(status, b"busy", "text/plain", Retry_After="7")

    async def main() -> None:
        async with http_server(Busy()) as port, started(at(port, "2025")) as backend:
            failure = await outcome_of(backend, "do", {})
        assert isinstance(failure, Failure)
        assert json.loads(failure.data)["retry_after_ms"] == 7_000

    run(main())


@pytest.mark.parametrize("form", _UNREADABLE)
def test_a_body_without_a_readable_answer_fails_its_call_instead_of_hanging_it(form: str) -> None:
    class Malformed(ScriptedMcpServer):
        call = staticmethod(_body(_UNREADABLE[form]))

    async def main() -> None:
        async with http_server(Malformed()) as port, started(at(port, "2025")) as backend:
            failure = await outcome_of(backend, "do", {})
        assert isinstance(failure, Failure)
        assert failure.code == Code.COMPONENT_FAILED

    run(main())


@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
@pytest.mark.parametrize("form", _IN_ANOTHER_FORM)
def test_an_answer_in_another_form_is_read_as_far_as_it_is_told(form: str, stream: bool) -> None:
    class Malformed(ScriptedMcpServer):
        call = staticmethod(_body(_IN_ANOTHER_FORM[form].replace("\n", "\ndata: " if stream else "\n"), stream=stream))

    async def main() -> None:
        async with http_server(Malformed()) as port, started(at(port, "2025")) as backend:
            assert await outcome_of(backend, "do", {}) == "fine"

    run(main())


def test_a_broken_stream_is_resumed_where_the_server_can() -> None:
    class Resumable(ScriptedMcpServer):
        async def __call__(self, exchange: Exchange) -> None:
            if exchange.method == "GET" and exchange.headers.get("last-event-id") == "7":
                await exchange.begin_stream()
                text = {"type": "text", "text": "resumed"}
                await exchange.event({"jsonrpc": "2.0", "id": 1, "result": {"content": [text]}}, id="8")
                exchange.writer.close()
            else:
                await super().__call__(exchange)

        async def call(self, exchange: Exchange) -> None:
            await exchange.begin_stream()
            progress = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": ""}}
            await exchange.event(progress, id="7", retry="10")
            exchange.hang_up()

    async def main() -> None:
        server = Resumable()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            assert await outcome_of(backend, "do", {}) == "resumed"
        assert len(server.executed) == 1

    run(main())


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["newline", "CRLF"])
def test_a_flood_of_progress_is_thinned_before_it_is_decoded(line_end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("component_host.progress_gate.PERIOD_S", 1.0)

    class Flooding(ScriptedMcpServer):
        last_report_seen = asyncio.Event()

        async def call(self, exchange: Exchange) -> None:
            token = exchange.message["params"]["_meta"]["progressToken"]
            await exchange.begin_stream()
            for number in range(1, 10_001):
                params = {"progressToken": token, "progress": number, "total": 10_000}
                lines = [
                    "event: message",
                    f"id: {number}",
                    "data: " + json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}),
                ]
                exchange.writer.write("".join(line + line_end for line in [*lines, ""]).encode())
                await exchange.writer.drain()
            await self.last_report_seen.wait()
            result = {"content": [{"type": "text", "text": "done"}]}
            await exchange.event({"jsonrpc": "2.0", "id": exchange.message["id"], "result": result})

    async def main() -> None:
        server = Flooding()
        server.last_report_seen = asyncio.Event()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            call = Call("do", {})
            backend.execute(call)
            await wait_until_async(lambda: call.reports[-1:] == [(10_000.0, 10_000.0, "")], "the last report is in")
            server.last_report_seen.set()
            assert await call.outcome == "done"
        assert len(call.reports) < 5_000

    run(main())


def test_a_server_that_does_not_take_a_cancellation_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("component_host.mcp_bridge.http_transport.NOTIFICATION_TIMEOUT_S", 0.2)

    class Deaf(ScriptedMcpServer):
        async def __call__(self, exchange: Exchange) -> None:
            if (exchange.message or {}).get("method") == "notifications/cancelled":
                await asyncio.Event().wait()
            await super().__call__(exchange)

        async def call(self, exchange: Exchange) -> None:
            if exchange.message["params"]["arguments"].get("slow"):
                await asyncio.Event().wait()
            await self.answer(exchange, "done")

    async def main() -> None:
        server = Deaf()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            slow = Call("do", {"slow": True})
            backend.execute(slow)
            await wait_until_async(lambda: server.executed, "the slow call runs")
            backend.cancel(slow)
            assert (await slow.outcome).code == Code.CANCELLED
            assert await outcome_of(backend, "do", {}) == "done"

    run(main())
