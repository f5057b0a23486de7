"""MCP servers that differ from the specification: what they offer and answer is used as far as a step can use it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import wait_until_async
from support.http_script import Exchange, http_server
from support.mcp import SERVERS, Call, at, outcome_of, run, started

from component_host.mcp_bridge.link import McpServerConfig
from stepflow.errors import Code, Failure

SOUND = {"name": "sound", "inputSchema": {"type": "object"}}

CALLABLE: dict[str, Any] = {
    "empty": {"inputSchema": {}},
    "only_schema": {"inputSchema": {"$schema": "https://json-schema.org/draft/2020-12/schema"}},
    "any_of": {"inputSchema": {"anyOf": [{"type": "object", "required": ["a"]}, {"type": "string"}]}},
    "type_list": {"inputSchema": {"type": ["object", "null"]}},
    "null": {"inputSchema": None},
    "absent": {},
    "text": {"inputSchema": "object"},
    "anything": {"inputSchema": True},
    "required_in_properties": {"inputSchema": {"type": "object", "properties": {"a": {}, "required": ["a"]}}},
    "schema_is_a_number": {"inputSchema": {"type": "object", "$schema": 4}},
    "output_array": {"inputSchema": {"type": "object"}, "outputSchema": {"type": "array"}},
    "output_text": {"inputSchema": {"type": "object"}, "outputSchema": "string"},
    "described_by_a_number": {"inputSchema": {"type": "object"}, "description": 5},
    "odd_annotations": {"inputSchema": {"type": "object"}, "annotations": [1], "icons": {}, "_meta": 3},
}
NOT_CALLABLE: dict[str, Any] = {
    "takes_a_text": {"inputSchema": {"type": "string"}},
    "takes_a_text_or_null": {"inputSchema": {"type": ["string", "null"]}},
    "takes_no_object": {"inputSchema": {"anyOf": [{"type": "string"}, {"type": "array"}]}},
    "takes_nothing": {"inputSchema": False},
}
WITHOUT_WARNING = {"required_in_properties", "schema_is_a_number", "odd_annotations"}


def tools_of(table: dict[str, Any]) -> list[Any]:
    return [{"name": name, **members} for name, members in table.items()]


def over_stdio(tools: Any, handshake: Any = None) -> McpServerConfig:
    told = json.dumps({"tools": tools, "handshake": handshake})
    return McpServerConfig("python", [str(SERVERS / "lines_2024.py"), "odd", told], mode="legacy")


class OddServer:
    """A server over HTTP that lists `tools`."""

    def __init__(self, tools: Any) -> None:
        self.tools = tools

    async def __call__(self, exchange: Exchange) -> None:
        message = exchange.message or {}
        if exchange.method != "POST":
            await exchange.send(405)
        elif "id" not in message:
            await exchange.send(202)
        elif message["method"] == "initialize":
            info = {"name": "odd", "version": "1"}
            told = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}
            await exchange.result(told)
        elif message["method"] == "tools/list":
            await exchange.result({"tools": self.tools})
        else:
            await exchange.result({"content": [{"type": "text", "text": message["params"]["name"]}]})


ODD = [None, 7, {"inputSchema": {}}, {"name": ""}, {"name": 5}, *tools_of(CALLABLE), *tools_of(NOT_CALLABLE), SOUND]


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_odd_tools_are_offered_where_a_step_can_call_them(transport: str) -> None:
    async def check(config: McpServerConfig) -> None:
        async with started(config) as backend:
            assert [info.component for info in backend.listing().components] == [*CALLABLE, "sound"]
            for name in [*CALLABLE, "sound"]:
                assert await outcome_of(backend, name, {}) == name

    async def main() -> None:
        if transport == "stdio":
            await check(over_stdio(ODD))
        else:
            async with http_server(OddServer(ODD)) as port:
                await check(at(port, "2025"))

    run(main())


def test_each_odd_tool_is_warned_of_once_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []

    class Log:
        def warning(self, _: str, *, component: str, **others: Any) -> None:
            warned.append(component)

    monkeypatch.setattr("component_host.mcp_bridge.odd_offers.log", Log())

    async def main() -> None:
        async with started(over_stdio(ODD)) as backend:
            for _ in range(3):
                await outcome_of(backend, "sound", {})  # the server announces a change, and is listed again
            lost = await outcome_of(backend, "sound", {"crash": True})
            assert lost.code == Code.UNREACHABLE
            assert await outcome_of(backend, "sound", {}) == "sound"  # another connection, another listing

    run(main())
    assert sorted(warned) == sorted(
        [*(CALLABLE.keys() - WITHOUT_WARNING), *NOT_CALLABLE, *(f"tools {number}" for number in range(1, 6))]
    )


@pytest.mark.parametrize("tools", [[], None], ids=["none", "null"])
def test_a_server_without_tools_starts(tools: Any) -> None:
    async def main() -> None:
        async with started(over_stdio(tools)) as backend:
            assert backend.listing().components == ()

    run(main())


@pytest.mark.parametrize(
    "handshake",
    [
        {"protocolVersion": "2025-06-18", "capabilities": {"tools": True, "logging": 3, "prompts": None}},
        {"protocolVersion": "2025-06-18", "capabilities": {"tools": {"listChanged": "yes"}}, "serverInfo": "odd"},
        {"protocolVersion": "2025-06-18", "serverInfo": {"name": 5}, "instructions": ["read", "me"]},
    ],
)
def test_an_odd_handshake_loses_no_server(handshake: Any) -> None:
    async def main() -> None:
        async with started(over_stdio([SOUND], handshake)) as backend:
            assert await outcome_of(backend, "sound", {}) == "sound"

    run(main())


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        ({"content": [], "structuredContent": [1, 2]}, [1, 2]),
        ({"structuredContent": {"a": 1}}, {"a": 1}),
        ({"content": [{"type": "hologram", "data": 1}]}, [{"type": "hologram", "data": 1}]),
        ({"content": [{"type": "text", "text": "a", "annotations": 5}], "isError": None}, "a"),
        ({"content": [{"type": "resource_link", "uri": "x"}]}, [{"type": "resource_link", "uri": "x"}]),
    ],
)
def test_an_odd_result_is_the_output_as_it_was_sent(answer: Any, output: Any) -> None:
    async def main() -> None:
        async with started(over_stdio([SOUND])) as backend:
            assert await outcome_of(backend, "sound", {"answer": answer}) == output

    run(main())


@pytest.mark.parametrize("answer", [{}, {"content": None}, {"content": "text"}, {"content": ["text"]}])
def test_a_result_without_an_output_is_a_failure(answer: Any) -> None:
    async def main() -> None:
        async with started(over_stdio([SOUND])) as backend:
            failure = await outcome_of(backend, "sound", {"answer": answer})
        assert isinstance(failure, Failure)
        assert failure.code == Code.COMPONENT_FAILED
        assert "content" in failure.message

    run(main())


def test_an_odd_tool_that_is_new_costs_the_others_nothing() -> None:
    async def main() -> None:
        server = OddServer([SOUND])
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            assert [info.component for info in backend.listing().components] == ["sound"]
            server.tools = [
                {"name": "new", "inputSchema": None},
                {"name": "bad", "inputSchema": {"type": "null"}},
                SOUND,
            ]
            call = Call("sound", {})
            backend.execute(call)
            assert await call.outcome == "sound"
            backend._supervisor._connection._mark_stale()  # type: ignore[union-attr]  # as an announcement does
            await wait_until_async(
                lambda: [info.component for info in backend.listing().components] == ["new", "sound"],
                "the new tool is listed",
            )

    run(main())
