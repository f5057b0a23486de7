"""What MCP servers without an SDK print on stdout: other forms, malformed answers, floods, silence."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from support import is_alive, wait_until_async
from support.mcp import Call, lines_server, outcome_of, run, servers_of, started

from component_host.backend import ComponentInfo
from component_host.json_lines import LineSplitter
from component_host.mcp_bridge import sign_of_life as sign_of_life_module
from component_host.mcp_bridge import stdout as stdout_module
from component_host.mcp_bridge.envelopes import bad_answer
from stepflow.errors import Code


def test_a_server_of_2024_without_an_sdk_is_listed_page_by_page_and_called() -> None:
    async def main() -> None:
        async with started(lines_server("plain")) as backend:
            names = [each.component for each in backend.listing().components]
            assert names == ["add", "picture", "fail", "lie", "nan", "deep"]
            assert backend.listing().components[0] == ComponentInfo(
                "add", "/add", "Add.", {"type": "object", "required": ["a", "b"]}
            )
            assert await outcome_of(backend, "add", {"a": 2, "b": 3}) == "5"
            picture = {"type": "image", "data": "AAAA", "mimeType": "image/png"}
            assert await outcome_of(backend, "picture", {}) == [picture, {"type": "text", "text": "it"}]

    run(main())


def test_a_server_that_answers_nothing_after_an_abandoned_call_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sign_of_life_module, "SIGN_OF_LIFE_S", 0.2)

    async def main() -> None:
        async with started(lines_server("plain", mode="legacy")) as backend:
            (server,) = servers_of(os.getpid(), "lines_2024.py")
            os.kill(server, signal.SIGSTOP)
            call = Call("add", {"a": 1, "b": 2})
            backend.execute(call)  # type: ignore[arg-type]  # `settled` is computed here
            await wait_until_async(lambda: backend._calls, "the call is made")
            await asyncio.sleep(0)
            backend.cancel(call)  # type: ignore[arg-type]  # `settled` is computed here
            await wait_until_async(lambda: backend.health.restarts == 1, "it was started again")
            assert not is_alive(server)
            assert await outcome_of(backend, "add", {"a": 2, "b": 3}) == "5"

    run(main())


def test_a_server_that_is_busy_with_a_call_that_is_still_wanted_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_of_life_module, "SIGN_OF_LIFE_S", 0.1)

    async def main() -> None:
        async with started(lines_server("plain", mode="legacy")) as backend:
            (server,) = servers_of(os.getpid(), "lines_2024.py")
            os.kill(server, signal.SIGSTOP)
            wanted, abandoned = Call("add", {"a": 1, "b": 2}), Call("add", {"a": 3, "b": 4})
            for call in (wanted, abandoned):
                backend.execute(call)  # type: ignore[arg-type]  # `settled` is computed here
            await asyncio.sleep(0)
            backend.cancel(abandoned)  # type: ignore[arg-type]  # `settled` is computed here
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(wanted.outcome), 0.5)  # five chances to end the server
            os.kill(server, signal.SIGCONT)
            assert await wanted.outcome == "3"
            assert servers_of(os.getpid(), "lines_2024.py") == [server]

    run(main())


@pytest.mark.parametrize(
    ("component", "arguments", "code"),
    [
        ("add", {"a": 1}, Code.INVALID_INPUT),
        ("subtract", {}, Code.COMPONENT_NOT_FOUND),
        ("fail", {}, Code.COMPONENT_FAILED),
        ("fail", {"code": -32603}, Code.COMPONENT_FAILED),
        ("fail", {"code": -32000}, Code.COMPONENT_FAILED),  # an error of a server that lives is not a lost connection
        ("fail", {"code": -32001}, Code.TIMEOUT),
        ("lie", {}, Code.COMPONENT_FAILED),
        ("nan", {}, Code.COMPONENT_FAILED),
        ("deep", {}, Code.COMPONENT_FAILED),
    ],
)
def test_a_bad_answer_is_a_failure_and_the_server_stays(component: str, arguments: Any, code: Code) -> None:
    async def main() -> None:
        async with started(lines_server("plain", mode="legacy")) as backend:
            server = servers_of(os.getpid(), "lines_2024.py")
            failure = await outcome_of(backend, component, arguments)
            assert await outcome_of(backend, "add", {"a": 2, "b": 3}) == "5"
            assert servers_of(os.getpid(), "lines_2024.py") == server
        assert failure.code == code
        assert failure.message

    run(main())


@pytest.mark.parametrize(
    "form",
    [
        "neither",
        "result is a list",
        "error is a text",
        "code is a text",
        "not a number",
        "too deep, id last",
        "cut off in a text",
        "cut off after a bracket",
    ],
)
def test_a_malformed_answer_fails_its_call_instead_of_hanging_it(form: str) -> None:
    async def main() -> None:
        async with started(lines_server("malformed", mode="legacy")) as backend:
            failure = await outcome_of(backend, "picture", {"form": form})
            assert await outcome_of(backend, "add", {"a": 2, "b": 3}) == "5"
        assert failure.code == Code.COMPONENT_FAILED
        assert failure.message

    run(main())


@pytest.mark.parametrize(
    "form",
    [
        "no version",
        "with a method",
        "another version",
        "id is a text",
        "id is a double",
        "an empty error",
        "a batch",
        "over several lines",
        "after a text",
        "before a text",
        "two on a line",
    ],
)
def test_an_answer_in_another_form_is_read_as_far_as_it_is_told(form: str) -> None:
    async def main() -> None:
        async with started(lines_server("malformed", mode="legacy")) as backend:
            assert await outcome_of(backend, "picture", {"form": form}) == "fine"

    run(main())


def test_a_result_that_breaks_its_schema_is_reported_without_the_payload() -> None:
    async def main() -> None:
        async with started(lines_server("plain", mode="legacy")) as backend:
            failure = await outcome_of(backend, "lie", {})
        assert "output schema" in failure.message
        assert "secret payload" not in failure.message
        assert b"secret payload" not in failure.data

    run(main())


def test_a_server_that_exits_at_the_modern_probe_is_asked_the_old_way() -> None:
    async def main() -> None:
        async with started(lines_server("strict")) as backend:
            assert await outcome_of(backend, "add", {"a": 2, "b": 3}) == "5"

    run(main())


def test_a_banner_on_stdout_is_skipped() -> None:
    async def main() -> None:
        async with started(lines_server("chatty")) as backend:
            assert await outcome_of(backend, "add", {"a": 2, "b": 3}) == "5"

    run(main())


def test_a_listing_that_never_ends_is_cut_off() -> None:
    async def main() -> None:
        async with started(lines_server("endless", mode="legacy")) as backend:
            assert len(backend.listing().components) == 1_000

    run(main())


def test_a_server_without_tools_starts_with_an_empty_listing() -> None:
    async def main() -> None:
        async with started(lines_server("promptless")) as backend:
            assert backend.listing().components == ()

    run(main())


def test_a_flood_of_progress_is_thinned_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    read = stdout_module.read_messages
    monkeypatch.setattr("component_host.progress_gate.PERIOD_S", 60.0)
    monkeypatch.setattr(stdout_module, "read_messages", lambda text: decoded.append(text) or read(text))

    async def main() -> None:
        async with started(lines_server("floods", mode="legacy")) as backend:
            call = Call("add", {"reports": 20_000})
            backend.execute(call)
            assert await call.outcome == "done"
            assert call.reports[-1] == (20_000.0, 20_000.0, "at 20000"), "the last report precedes the answer"
        assert len(decoded) < 200

    run(main())


def test_the_last_report_of_a_flood_arrives_although_the_server_falls_silent() -> None:
    async def main() -> None:
        async with started(lines_server("floods", mode="legacy")) as backend:
            call = Call("add", {"reports": 500, "then": "silence"})
            backend.execute(call)
            await wait_until_async(lambda: (500.0, 500.0, "at 500") in call.reports, "the last report is in")
            assert not call.settled
            backend.cancel(call)

    run(main())


# Lines


def test_lines_are_found_wherever_the_chunks_are_cut() -> None:
    text = b'{"a": 1}\n\n{"b": 2}\n{"c": 3}'
    for size in range(1, len(text) + 1):
        splitter = LineSplitter(1_000)
        chunks = [text[at : at + size] for at in range(0, len(text), size)]
        lines = [line for chunk in chunks for line in splitter.split(chunk)]
        assert lines == [(b'{"a": 1}', True), (b"", True), (b'{"b": 2}', True)]


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":17,"result":{"text":"' + b"x" * 5_000 + b'"}}',
        b'{"result":{"text":"' + b"x" * 5_000 + b'"},"jsonrpc":"2.0","id":17}',
    ],
    ids=["id first", "id last"],
)
def test_a_reply_above_the_limit_ends_its_request_and_nothing_else(line: bytes) -> None:
    splitter = LineSplitter(bytes_max=1_000)
    chunks = [line[at : at + 300] for at in range(0, len(line), 300)]
    (cut, complete), (following, whole) = [
        each for chunk in [*chunks, b'\n{"next": 1}\n'] for each in splitter.split(chunk)
    ]
    assert not complete
    assert len(cut) < 1_500
    reply = bad_answer(cut, "too large")
    assert reply is not None
    assert (reply.id, reply.error.message) == (17, "too large")
    assert (following, whole) == (b'{"next": 1}', True)
