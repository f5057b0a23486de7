"""The builtin component `/openai`, against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.builtin_host import answer, ask, begin, builtin, failed

from component_host.builtin.openai import RESPONSE_BYTES_MAX
from component_host.builtin.schemas import BUILTINS
from stepflow import codec
from stepflow.errors import Code
from stepflow.flow.schema import InputValidator
from stepflow.retry import RETRY_AFTER_MS_MAX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

WAIT_S = 20
KEY = "sk-operators-own-key"


def http(status: int, body: Any, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else codec.encode(body)
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(content)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


def completion(text: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}], "usage": {}}


class Service:
    """An OpenAI-compatible service on loopback; records requests and gives one prepared answer."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer
        self.heads: list[str] = []
        self.bodies: list[Any] = []
        self.address = ""
        self.asked = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return  # connected and gone without a request
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        self.heads.append(head)
        self.bodies.append(codec.decode(await reader.readexactly(int(fields["content-length"]))))
        self.asked.set()
        if self._answer is not None:
            writer.write(self._answer)
            await writer.drain()
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Service]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        try:
            yield self
        finally:
            server.close()
            for writer in self._writers:
                writer.close()
            await server.wait_closed()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def chat(
    response: bytes | None, value: dict[str, Any], environ: Mapping[str, str] | None = None, **settings: Any
) -> tuple[Any, Service]:
    """Return the outcome of a chat with a service of this response, and the service."""

    async def main() -> tuple[Any, Service]:
        async with Service(response).running() as service:
            options = {"base_url": service.address, **settings}
            given = {"OPENAI_API_KEY": KEY} if environ is None else environ
            async with builtin(environ=given, **options) as backend:
                return await answer(backend, "/openai", {"messages": [], **value}), service

    return asyncio.run(main())


def test_a_chat_sends_the_messages_and_returns_the_first_choice() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    outcome, service = chat(http(200, completion("Hello")), {"messages": messages})
    assert outcome == {
        "response": "Hello",
        "message": {"role": "assistant", "content": "Hello"},
        "finish_reason": None,
        "usage": {},
        "model": None,
        "id": None,
    }
    assert service.heads[0].startswith("POST /v1/chat/completions HTTP/1.1")
    assert f"authorization: bearer {KEY}" in service.heads[0].lower()
    assert service.bodies == [{"model": "gpt-3.5-turbo", "messages": messages}]


def test_model_temperature_and_max_tokens_are_sent() -> None:
    value = {"model": "m-large", "temperature": 0, "max_tokens": 100_000}
    _, service = chat(http(200, completion("x")), value)
    assert service.bodies == [{"model": "m-large", "messages": [], "temperature": 0.0, "max_tokens": 100_000}]


def test_the_configured_model_is_the_default() -> None:
    _, service = chat(http(200, completion("x")), {"model": None}, model="m-small")
    assert service.bodies[0]["model"] == "m-small"


def test_the_address_may_come_from_the_environment() -> None:
    async def main() -> Any:
        async with Service(http(200, completion("x"))).running() as service:
            environ = {"OPENAI_BASE_URL": service.address + "/", "OPENAI_API_KEY": KEY}
            async with builtin(environ=environ) as backend:
                return await answer(backend, "/openai", {"messages": []})

    assert asyncio.run(main())["response"] == "x"


def test_a_key_in_the_input_beats_the_operators() -> None:
    _, service = chat(http(200, completion("x")), {"api_key": "sk-mine"})
    assert "bearer sk-mine" in service.heads[0].lower()
    assert KEY not in service.heads[0]


def test_the_variable_of_the_key_can_be_chosen() -> None:
    _, service = chat(http(200, completion("x")), {}, {"LLM_KEY": "sk-other"}, api_key_env="LLM_KEY")
    assert "bearer sk-other" in service.heads[0].lower()


def test_a_service_of_ones_own_needs_no_key() -> None:
    outcome, service = chat(http(200, completion("x")), {}, {})
    assert outcome["response"] == "x"
    assert "authorization" not in service.heads[0].lower()


def test_without_a_key_the_public_service_is_not_asked() -> None:
    failure = failed(ask("/openai", {"messages": []}))
    assert failure.code is Code.RESOURCE_UNAVAILABLE
    assert "OPENAI_API_KEY" in failure.message


def test_a_flow_cannot_send_the_operators_key_elsewhere() -> None:
    outcome, service = chat(http(200, completion("x")), {"base_url": "http://thief.example"})
    assert failed(outcome).code is Code.INVALID_INPUT
    assert "`openai.baseUrl`" in failed(outcome).message
    assert service.heads == []


def test_a_redirect_is_not_followed() -> None:
    async def main() -> Any:
        async with Service(http(200, completion("stolen"))).running() as thief:
            redirect = http(307, b"", f"Location: {thief.address}/chat/completions")
            async with (
                Service(redirect).running() as service,
                builtin(environ={"OPENAI_API_KEY": KEY}, base_url=service.address) as backend,
            ):
                return await answer(backend, "/openai", {"messages": []}), thief.heads

    outcome, stolen = asyncio.run(main())
    assert failed(outcome).code is Code.COMPONENT_FAILED
    assert stolen == []


def said(message: dict[str, Any], finish_reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": finish_reason}]}


@pytest.mark.parametrize(
    "body",
    [
        completion("text"),
        {**completion("text"), "id": "c1", "model": "m", "usage": {"total_tokens": 3}},
        {"choices": [{"message": {"content": None, "tool_calls": [{"id": "t"}]}, "finish_reason": "tool_calls"}]},
        {"choices": [{"message": {"content": text}} for text in ("a", "b")]},
    ],
)
def test_an_answer_has_the_listed_type(body: dict[str, Any]) -> None:
    (listed,) = (info.output_schema for info in BUILTINS if info.component == "/openai")
    assert InputValidator(listed).check(chat(http(200, body), {})[0]) is None


def test_further_choices_are_returned_as_the_service_sent_them() -> None:
    choices = [{"index": n, "message": {"content": f"answer {n}"}, "logprobs": {"n": 1.50}} for n in (0, 1)]
    outcome = chat(http(200, {"choices": choices}), {"n": 2})[0]
    assert (outcome["response"], outcome["choices"]) == ("answer 0", choices)
    assert "choices" not in chat(http(200, said({"content": ""})), {})[0]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"choices": []}, "the completion has no choices"),
        ({"choices": [], "error": {"message": "no capacity"}}, "the completion has no choices: no capacity"),
        ({"choices": [{}]}, "the model said nothing"),
        ({"choices": [{"message": {}}]}, "the model said nothing"),
        (completion(None), "the model said nothing"),
        (said({"content": []}, "length"), "the model said nothing (finish_reason length)"),
        (said({"content": None, "tool_calls": []}, "content_filter"), "(finish_reason content_filter)"),
        (said({"content": None, "refusal": "I cannot help"}), "the model refused: I cannot help"),
        (said({"content": "", "refusal": "Nor that"}), "the model refused: Nor that"),
        (said({"content": ""}, "length"), "the model said nothing (finish_reason length)"),
        (said({"content": ""}, "content_filter"), "(finish_reason content_filter)"),
        (said({"content": [{"type": "refusal", "refusal": "Not that"}]}), "the model refused: Not that"),
        ({"error": {"message": "upstream is down"}}, "the answer is not a chat completion: upstream is down"),
    ],
)
def test_a_completion_that_says_nothing_fails_with_what_was_said(body: Any, told: str) -> None:
    failure = failed(chat(http(200, body), {})[0])
    assert failure.code is Code.COMPONENT_FAILED
    assert told in failure.message


def test_a_refusal_shows_no_key() -> None:
    failure = failed(chat(http(200, said({"content": None, "refusal": f"your key is {KEY}"})), {})[0])
    assert KEY not in failure.message


def test_calls_of_tools_without_content_are_an_answer() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {"name": "f"}}]}
    outcome, _ = chat(http(200, said(message, "tool_calls")), {})
    assert (outcome["response"], outcome["message"], outcome["finish_reason"]) == ("", message, "tool_calls")


def test_the_text_parts_of_a_content_are_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "image"}, {"type": "text", "text": "lo"}]
    assert chat(http(200, said({"content": parts})), {})[0]["response"] == "Hello"


def test_an_empty_text_is_an_answer() -> None:
    assert chat(http(200, completion("")), {})[0]["response"] == ""


def test_what_the_service_counts_and_names_is_returned() -> None:
    body = {**completion("x"), "id": "chatcmpl-1", "model": "m-2026", "usage": {"total_tokens": 12, "cost": 1.5}}
    outcome, _ = chat(http(200, body), {})
    assert {name: outcome[name] for name in ("id", "model", "usage")} == {
        "id": "chatcmpl-1",
        "model": "m-2026",
        "usage": {"total_tokens": 12, "cost": 1.5},
    }


def test_every_other_member_reaches_the_service() -> None:
    value = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "response_format": {"type": "json_object"},
        "seed": 12345678901234567890,
        "top_p": 0.5,
        "stop": None,
        "x_of_this_service": {"a": [1]},
    }
    _, service = chat(http(200, completion("x")), {**value, "api_key": "sk-mine", "temperature": None})
    assert service.bodies == [{"model": "gpt-3.5-turbo", "messages": [], **value}]


def test_a_stream_is_refused() -> None:
    outcome, service = chat(http(200, completion("x")), {"stream": True})
    assert failed(outcome).code is Code.INVALID_INPUT
    assert "`stream`" in failed(outcome).message
    assert service.bodies == []


@pytest.mark.parametrize(
    ("header", "asked_ms"),
    [
        ("Retry-After: 20", 20_000),
        ("Retry-After: 1.5", 1_500),
        ("retry-after-ms: 250\r\nRetry-After: 20", 250),
        ("Retry-After: Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Retry-After: Wed, 21 Oct 2215 07:28:00 GMT", RETRY_AFTER_MS_MAX),
        ("Retry-After: 1e300", RETRY_AFTER_MS_MAX),
    ],
)
def test_a_failure_carries_the_pause_that_the_service_asks_for(header: str, asked_ms: int) -> None:
    failure = failed(chat(http(429, {}, header), {})[0])
    assert codec.decode(failure.data) == {"status": 429, "retry_after_ms": asked_ms}


@pytest.mark.parametrize("header", ["Retry-After: soon", "Retry-After: -5", "Retry-After: nan", "Retry-After:"])
def test_an_unreadable_pause_is_none(header: str) -> None:
    assert codec.decode(failed(chat(http(429, {}, header), {})[0]).data) == {"status": 429}


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"choices": [{"message": {"content": 5}}]}'])
def test_an_answer_that_is_no_completion_fails_the_component(body: bytes) -> None:
    failure = failed(chat(http(200, body), {})[0])
    assert (failure.code, failure.message) == (Code.COMPONENT_FAILED, "openai: the answer is not a chat completion")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, Code.INVALID_INPUT),
        (404, Code.INVALID_INPUT),
        (422, Code.INVALID_INPUT),
        (401, Code.RESOURCE_UNAVAILABLE),
        (403, Code.RESOURCE_UNAVAILABLE),
        (408, Code.RESOURCE_UNAVAILABLE),
        (429, Code.RESOURCE_UNAVAILABLE),
        (500, Code.RESOURCE_UNAVAILABLE),
        (503, Code.RESOURCE_UNAVAILABLE),
        (418, Code.COMPONENT_FAILED),
    ],
)
def test_the_status_of_a_refusal_decides_the_failure(status: int, code: Code) -> None:
    failure = failed(chat(http(status, {"error": {"message": "because"}}), {})[0])
    assert failure.code is code
    assert failure.message == f"openai: the service answered with status {status}: because"
    assert codec.decode(failure.data) == {"status": status}


def test_a_refused_key_of_the_flow_is_the_flows_fault() -> None:
    assert failed(chat(http(401, {}), {"api_key": "sk-mine"})[0]).code is Code.INVALID_INPUT


@pytest.mark.parametrize("key", [KEY, "sk-mine"])
def test_no_failure_shows_a_key(key: str) -> None:
    said = {"error": {"message": f"Incorrect API key provided: {key}"}}
    failure = failed(chat(http(401, said), {} if key == KEY else {"api_key": key})[0])
    assert key not in failure.message
    assert "[REDACTED]" in failure.message


def test_a_long_refusal_is_cut() -> None:
    failure = failed(chat(http(400, {"error": {"message": "x" * 10_000}}), {})[0])
    assert len(failure.message) < 400


@pytest.mark.parametrize("key", ["sk-\nX-Injected: 1", "sk-\u00e9\u4e2d", "sk-\x00"])
def test_a_key_that_http_cannot_carry_is_told_and_not_shown(key: str) -> None:
    outcome, service = chat(http(200, completion("x")), {"api_key": key})
    failure = failed(outcome)
    assert failure.code is Code.INVALID_INPUT
    assert "sk-" not in failure.message
    assert service.heads == []


def test_an_endless_answer_is_cut_off() -> None:
    body = http(200, b"x" * (RESPONSE_BYTES_MAX + 1))
    failure = failed(chat(body, {})[0])
    assert failure.code is Code.COMPONENT_FAILED
    assert "larger than" in failure.message


@pytest.mark.parametrize("response", [b"", b"garbage\r\n\r\n", http(200, completion("x"))[:-5]])
def test_a_broken_answer_is_unavailable(response: bytes) -> None:
    failure = failed(chat(response, {})[0])
    assert failure.code is Code.RESOURCE_UNAVAILABLE
    assert "cannot reach the service" in failure.message


def test_a_service_that_is_not_there_is_unavailable() -> None:
    async def main() -> Any:
        async with Service(None).running() as service:
            address = service.address
        async with builtin(base_url=address) as backend:
            return await answer(backend, "/openai", {"messages": []})

    assert failed(asyncio.run(main())).code is Code.RESOURCE_UNAVAILABLE


def test_a_service_that_never_answers_is_given_up() -> None:
    failure = failed(chat(None, {}, timeout_ms=100)[0])
    assert failure.code is Code.RESOURCE_UNAVAILABLE
    assert "no answer in time" in failure.message


@pytest.mark.parametrize("address", ["ftp://x", "not a url", "http://", "http://x:port"])
def test_an_address_that_makes_no_sense_is_told(address: str) -> None:
    failure = failed(ask("/openai", {"messages": []}, base_url=address, environ={"OPENAI_API_KEY": KEY}))
    assert failure.code is Code.RESOURCE_UNAVAILABLE
    assert "openai.baseUrl" in failure.message


def test_many_chats_share_one_client() -> None:
    async def main() -> list[Any]:
        async with (
            Service(http(200, completion("x"))).running() as service,
            builtin(base_url=service.address) as backend,
        ):
            return await asyncio.gather(*(answer(backend, "/openai", {"messages": []}) for _ in range(20)))

    assert [outcome["response"] for outcome in asyncio.run(main())] == ["x"] * 20


# --- cancel and close ---


def test_a_cancelled_call_is_dropped() -> None:
    async def main() -> Any:
        async with Service(None).running() as service, builtin(base_url=service.address) as backend:
            call = begin(backend, "/openai", {"messages": []})
            await asyncio.wait_for(service.asked.wait(), WAIT_S)
            backend.cancel(call)
            return await call.outcome()

    assert failed(asyncio.run(main())).code is Code.CANCELLED


def test_closing_fails_the_calls_in_flight_as_unreachable() -> None:
    async def main() -> list[Any]:
        async with Service(None).running() as service, builtin(base_url=service.address) as backend:
            call = begin(backend, "/openai", {"messages": []})
            await asyncio.wait_for(service.asked.wait(), WAIT_S)
            await backend.close()
            await backend.close()
            late = begin(backend, "/openai", {"messages": []})
            return [await call.outcome(), await late.outcome()]

    assert [failed(outcome).code for outcome in asyncio.run(main())] == [Code.UNREACHABLE] * 2
