"""The builtin components, through the backend's own seam: real files, real blobs, a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from component_host.backend import BackendContext
from component_host.builtin import BuiltinBackend
from component_host.files import FILE_BYTES_MAX
from component_host.openai_chat import RESPONSE_BYTES_MAX
from stepflow import codec
from stepflow.config import BuiltinPlugin, OpenAISettings
from stepflow.errors import Code, DataLoss, Failure, Overloaded, StepflowError
from stepflow.mesh.v1 import host_pb2
from stepflow.routing import ENGINE_COMPONENTS
from stepflow.store.blobs import BlobStore

WAIT_S = 20
KEY = "sk-operators-own-key"


class Blobs:
    """The blobs that user code sees, in memory."""

    def __init__(self) -> None:
        self.store = BlobStore.open("memory://")

    async def put(self, content: bytes, *, blob_type: str = "data") -> str:
        return await self.store.put(content, blob_type=blob_type)

    async def get(self, blob_id: str, /) -> tuple[bytes, str]:
        return await self.store.get(blob_id)


class FailingBlobs:
    def __init__(self, error: Exception) -> None:
        self._error = error

    async def put(self, content: bytes, *, blob_type: str = "data") -> str:
        raise self._error

    async def get(self, blob_id: str, /) -> tuple[bytes, str]:
        raise self._error


class Call:
    """One call on the host's side of the seam; keeps what the backend settles it with."""

    def __init__(self, component: str, value: Any, blobs: Any = None) -> None:
        self.request = host_pb2.Call(component=component, step_id="step1")
        self.input = value if isinstance(value, bytes) else codec.encode(value)
        self.blobs = blobs
        self.backend_state: Any = None
        self._outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def settled(self) -> bool:
        return self._outcome.done()

    def succeed(self, output: bytes) -> None:
        if not self.settled:
            self._outcome.set_result(codec.parse(output))

    def fail(self, failure: Failure) -> None:
        if not self.settled:
            self._outcome.set_result(failure)

    async def outcome(self) -> Any:
        return await asyncio.wait_for(asyncio.shield(self._outcome), WAIT_S)


@asynccontextmanager
async def builtin(
    folder: Path = Path("/nonexistent"), *, environ: Mapping[str, str] | None = None, **settings: Any
) -> AsyncIterator[BuiltinBackend]:
    allowed = settings.pop("allowed_paths", ())
    context = BackendContext(name="builtin", working_directory=str(folder), environ=environ or {})
    backend = BuiltinBackend(context, BuiltinPlugin(openai=OpenAISettings(**settings)), allowed_paths=allowed)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


async def answer(backend: BuiltinBackend, component: str, value: Any, blobs: Any = None) -> Any:
    call = Call(component, value, blobs)
    backend.execute(call)  # type: ignore[arg-type]  # the parts of HostCall that this backend uses
    return await call.outcome()


def ask(component: str, value: Any, folder: Path = Path("/nonexistent"), blobs: Any = None, **options: Any) -> Any:
    """The outcome of one call of a fresh backend."""

    async def main() -> Any:
        async with builtin(folder, **options) as backend:
            return await answer(backend, component, value, Blobs() if blobs is None else blobs)

    return asyncio.run(main())


def failed(outcome: Any) -> Failure:
    assert isinstance(outcome, Failure), outcome
    return outcome


# --- listing ---


def test_every_builtin_is_listed_with_description_and_schemas() -> None:
    async def main() -> None:
        async with builtin() as backend:
            listing = backend.listing()
            assert listing.complete
            assert {info.component for info in listing.components} == {
                *("/noop", "/create_messages", "/openai", "/put_blob", "/get_blob", "/load_file"),
                *ENGINE_COMPONENTS,
            }
            for info in listing.components:
                assert info.path == info.component
                assert info.description
                assert isinstance(info.input_schema, dict)
                assert isinstance(info.output_schema, dict)

    asyncio.run(main())


def test_the_schemas_are_valid_json_schemas() -> None:
    import jsonschema_rs

    async def main() -> None:
        async with builtin() as backend:
            for info in backend.listing().components:
                jsonschema_rs.meta.validate(info.input_schema)
                jsonschema_rs.meta.validate(info.output_schema)

    asyncio.run(main())


@pytest.mark.parametrize("component", sorted(ENGINE_COMPONENTS))
def test_a_call_for_a_component_of_the_engine_is_a_mistake(component: str) -> None:
    assert failed(ask(component, {})).code is Code.ORCHESTRATOR_ERROR


@pytest.mark.parametrize("component", ["/none", "noop", ""])
def test_an_unknown_component_is_not_found(component: str) -> None:
    assert failed(ask(component, {})).code is Code.COMPONENT_NOT_FOUND


# --- noop, create_messages ---


@pytest.mark.parametrize("value", [None, {"b": 1, "a": [1.0, "x"]}, 2**70, "text"])
def test_noop_returns_its_input(value: Any) -> None:
    assert ask("/noop", value) == value


def test_a_prompt_becomes_one_user_message() -> None:
    assert ask("/create_messages", {"user_prompt": "Hello", "ignored": 1}) == {
        "messages": [{"role": "user", "content": "Hello"}]
    }


def test_system_instructions_come_first() -> None:
    assert ask("/create_messages", {"user_prompt": "Hi", "system_instructions": "Be kind"}) == {
        "messages": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}]
    }


def test_null_system_instructions_are_none() -> None:
    outcome = ask("/create_messages", {"user_prompt": "Hi", "system_instructions": None})
    assert [message["role"] for message in outcome["messages"]] == ["user"]


@pytest.mark.parametrize(
    ("component", "value", "field"),
    [
        ("/create_messages", {}, "user_prompt"),
        ("/create_messages", {"user_prompt": 5}, "user_prompt"),
        ("/create_messages", [], "object"),
        ("/put_blob", {"data": 1}, "blob_type"),
        ("/put_blob", {"blob_type": "data"}, "data"),
        ("/put_blob", {"data": 1, "blob_type": "picture"}, "blob_type"),
        ("/get_blob", {}, "blob_id"),
        ("/get_blob", {"blob_id": 5}, "blob_id"),
        ("/load_file", {}, "path"),
        ("/load_file", {"path": "x", "format": "toml"}, "format"),
        ("/openai", {}, "messages"),
        ("/openai", {"messages": "Hi"}, "messages"),
        ("/openai", {"messages": [], "max_tokens": 0}, "max_tokens"),
        ("/openai", {"messages": [], "temperature": "hot"}, "temperature"),
    ],
)
def test_a_wrong_input_is_told_with_its_member(component: str, value: Any, field: str) -> None:
    failure = failed(ask(component, value))
    assert failure.code is Code.INVALID_INPUT
    assert failure.message.startswith(component[1:] + ": ")
    assert field in failure.message


# --- blobs ---


def test_a_blobs_id_is_the_hash_of_its_compact_json() -> None:
    value = {"message": "Hello, blobs!", "number": 42, "nested": {"array": [1, 2, 3], "boolean": True}}
    outcome = ask("/put_blob", {"data": value, "blob_type": "data"})
    assert outcome == {"blob_id": "868591347a854ba1d0f4875b2dd44e1e8335052af03725a9819f89e0142318b0"}


def test_members_keep_their_order_in_a_blob() -> None:
    first = ask("/put_blob", {"data": {"b": 1, "a": 2}, "blob_type": "data"})
    assert first["blob_id"] == hashlib.sha256(b'{"b":1,"a":2}').hexdigest()


@pytest.mark.parametrize("blob_type", ["data", "flow", "binary"])
def test_the_type_of_a_blob_is_kept_and_not_hashed(blob_type: str) -> None:
    async def main() -> None:
        blobs = Blobs()
        async with builtin() as backend:
            outcome = await answer(backend, "/put_blob", {"data": "x", "blob_type": blob_type}, blobs)
        assert await blobs.get(outcome["blob_id"]) == (b'"x"', blob_type)

    asyncio.run(main())


@pytest.mark.parametrize("value", [None, 1, 1.5, 2**70, "tëxt", [], {"a": {"b": [None]}}])
def test_what_was_put_can_be_got(value: Any) -> None:
    async def main() -> Any:
        blobs = Blobs()
        async with builtin() as backend:
            put = await answer(backend, "/put_blob", {"data": value, "blob_type": "data"}, blobs)
            return await answer(backend, "/get_blob", {"blob_id": put["blob_id"].upper()}, blobs)

    assert asyncio.run(main()) == {"data": value}


def test_an_unknown_blob_is_unavailable() -> None:
    failure = failed(ask("/get_blob", {"blob_id": "0" * 64}))
    assert failure.code is Code.RESOURCE_UNAVAILABLE
    assert codec.decode(failure.data)["reason"] == "BLOB_NOT_FOUND"


@pytest.mark.parametrize("blob_id", ["", "abc", "x" * 64, "0" * 63, "../" * 20])
def test_what_is_no_blob_id_is_invalid(blob_id: str) -> None:
    assert failed(ask("/get_blob", {"blob_id": blob_id})).code is Code.INVALID_INPUT


def test_a_blob_that_is_not_json_is_told() -> None:
    async def main() -> Any:
        blobs = Blobs()
        blob_id = await blobs.put(b"\x89PNG", blob_type="binary")
        async with builtin() as backend:
            return await answer(backend, "/get_blob", {"blob_id": blob_id}, blobs)

    failure = failed(asyncio.run(main()))
    assert failure.code is Code.INVALID_INPUT
    assert "does not hold JSON" in failure.message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Overloaded("STORE_FULL", "no room"), Code.RESOURCE_UNAVAILABLE),
        (DataLoss("BLOB_DAMAGED", "damaged"), Code.COMPONENT_FAILED),
        (RuntimeError("sk-secret"), Code.COMPONENT_FAILED),
    ],
)
def test_trouble_with_the_blob_store_fails_the_call(error: Exception, code: Code) -> None:
    failure = failed(ask("/get_blob", {"blob_id": "0" * 64}, blobs=FailingBlobs(error)))
    assert failure.code is code
    assert isinstance(error, StepflowError) == (str(error) in failure.message)


# --- load_file ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with something to read, beside things that must not be read."""
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    (work / "data.json").write_text('{"b": 1, "a": [1.0, null]}')
    (work / "data.yaml").write_text("when: 2026-01-02\nflag: yes\n")
    (work / "data.yml").write_text("- 1\n")
    (work / "DATA.JSON").write_text("{}")
    (work / "note.txt").write_text("line 1\nline 2 é\n")
    (work / "bad.json").write_text('{"a": 1,\n "secret": }')
    (work / "bad.txt").write_bytes(b"\xff\xfe")
    (work / "sub" / "inner.json").write_text("1")
    (tmp_path / "outside.txt").write_text("secret")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "open.txt").write_text("open")
    (tmp_path / "work-too").mkdir()
    (tmp_path / "work-too" / "x.txt").write_text("secret")
    return work


@pytest.mark.parametrize(
    ("path", "data", "kind"),
    [
        ("data.json", {"b": 1, "a": [1.0, None]}, "json"),
        ("data.yaml", {"when": "2026-01-02", "flag": "yes"}, "yaml"),
        ("data.yml", [1], "yaml"),
        ("DATA.JSON", "{}", "text"),
        ("note.txt", "line 1\nline 2 é\n", "text"),
        ("sub/../sub/inner.json", 1, "json"),
    ],
)
def test_a_file_is_read_by_its_extension(folder: Path, path: str, data: Any, kind: str) -> None:
    size = (folder / path).stat().st_size
    assert ask("/load_file", {"path": path}, folder) == {
        "data": data,
        "metadata": {"resolved_path": str(folder / path), "size_bytes": size, "format": kind},
    }


@pytest.mark.parametrize(
    ("path", "kind", "data"),
    [
        ("data.json", "text", '{"b": 1, "a": [1.0, null]}'),
        ("DATA.JSON", "json", {}),
        ("data.json", "yaml", {"b": 1, "a": [1.0, None]}),
        ("data.json", None, {"b": 1, "a": [1.0, None]}),
    ],
)
def test_a_format_given_beats_the_extension(folder: Path, path: str, kind: str | None, data: Any) -> None:
    assert ask("/load_file", {"path": path, "format": kind}, folder)["data"] == data


def test_an_absolute_path_below_the_working_directory_is_fine(folder: Path) -> None:
    outcome = ask("/load_file", {"path": str(folder / "data.yml")}, folder)
    assert outcome["metadata"]["resolved_path"] == str(folder / "data.yml")


@pytest.mark.parametrize("path", ["../outside.txt", "sub/../../outside.txt", "../work-too/x.txt", "/etc/hostname", "/"])
def test_a_path_outside_is_refused(folder: Path, path: str) -> None:
    failure = failed(ask("/load_file", {"path": path}, folder))
    assert failure.code is Code.INVALID_INPUT
    assert "outside the working directory" in failure.message


def test_whether_a_file_outside_exists_cannot_be_learned(folder: Path) -> None:
    there = failed(ask("/load_file", {"path": "../outside.txt"}, folder)).message
    missing = failed(ask("/load_file", {"path": "../outside.not"}, folder)).message
    assert there == missing.replace("outside.not", "outside.txt")


def test_a_link_that_leads_outside_is_refused(folder: Path) -> None:
    (folder / "link.txt").symlink_to(folder.parent / "outside.txt")
    (folder / "up").symlink_to(folder.parent)
    assert failed(ask("/load_file", {"path": "link.txt"}, folder)).code is Code.INVALID_INPUT
    assert failed(ask("/load_file", {"path": "up/outside.txt"}, folder)).code is Code.INVALID_INPUT


def test_a_link_that_stays_inside_is_followed(folder: Path) -> None:
    (folder / "link.json").symlink_to("sub/inner.json")
    assert ask("/load_file", {"path": "link.json"}, folder)["data"] == 1


def test_a_working_directory_behind_a_link_works(folder: Path) -> None:
    alias = folder.parent / "alias"
    alias.symlink_to(folder)
    assert ask("/load_file", {"path": "data.yml"}, alias)["data"] == [1]


def test_allowed_paths_may_be_read_too(folder: Path) -> None:
    shared, file = folder.parent / "shared", folder.parent / "outside.txt"
    assert ask("/load_file", {"path": "../shared/open.txt"}, folder, allowed_paths=[shared])["data"] == "open"
    assert ask("/load_file", {"path": str(file)}, folder, allowed_paths=[file])["data"] == "secret"
    assert failed(ask("/load_file", {"path": str(file)}, folder, allowed_paths=[shared])).code is Code.INVALID_INPUT


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("none.txt", Code.RESOURCE_UNAVAILABLE, "does not exist"),
        ("note.txt/below", Code.RESOURCE_UNAVAILABLE, "does not exist"),
        ("sub", Code.INVALID_INPUT, "folder|regular"),
        (".", Code.INVALID_INPUT, "folder|regular"),
        ("", Code.INVALID_INPUT, "folder|regular"),
        ("a\0b", Code.INVALID_INPUT, "not a usable path"),
        ("x" * 5_000, Code.RESOURCE_UNAVAILABLE, "cannot be read"),
        ("bad.json", Code.COMPONENT_FAILED, "bad.json:2:"),
        ("bad.txt", Code.COMPONENT_FAILED, "not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_told(folder: Path, path: str, code: Code, text: str) -> None:
    failure = failed(ask("/load_file", {"path": path}, folder))
    assert failure.code is code
    assert any(part in failure.message for part in text.split("|")), failure.message
    assert "secret" not in failure.message


def test_a_pipe_is_refused_without_waiting_for_its_writer(folder: Path) -> None:
    os.mkfifo(folder / "pipe.txt")
    assert "not a regular file" in failed(ask("/load_file", {"path": "pipe.txt"}, folder)).message


def test_a_file_above_the_limit_is_refused(folder: Path) -> None:
    with (folder / "big.txt").open("wb") as file:
        file.truncate(FILE_BYTES_MAX + 1)
    assert "larger than" in failed(ask("/load_file", {"path": "big.txt"}, folder)).message


# --- openai ---

Answer = Callable[[bytes, bytes], Awaitable[bytes]]


def http(status: int, body: Any, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else codec.encode(body)
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(content)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


def completion(text: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}], "usage": {}}


class Service:
    """An OpenAI-compatible service on loopback that keeps the requests and gives one prepared answer."""

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
    """The outcome of one chat with a service that gives this response, and the service."""

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
    assert outcome == {"response": "Hello"}
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

    assert asyncio.run(main()) == {"response": "x"}


def test_a_key_in_the_input_beats_the_operators() -> None:
    _, service = chat(http(200, completion("x")), {"api_key": "sk-mine"})
    assert "bearer sk-mine" in service.heads[0].lower()
    assert KEY not in service.heads[0]


def test_the_variable_of_the_key_can_be_chosen() -> None:
    _, service = chat(http(200, completion("x")), {}, {"LLM_KEY": "sk-other"}, api_key_env="LLM_KEY")
    assert "bearer sk-other" in service.heads[0].lower()


def test_a_service_of_ones_own_needs_no_key() -> None:
    outcome, service = chat(http(200, completion("x")), {}, {})
    assert outcome == {"response": "x"}
    assert "authorization" not in service.heads[0].lower()


def test_without_a_key_the_public_service_is_not_asked() -> None:
    failure = failed(ask("/openai", {"messages": []}))
    assert failure.code is Code.RESOURCE_UNAVAILABLE
    assert "OPENAI_API_KEY" in failure.message


def test_a_flow_cannot_send_the_operators_key_elsewhere() -> None:
    outcome, service = chat(http(200, completion("x")), {"base_url": "http://thief.example"})
    assert failed(outcome).code is Code.INVALID_INPUT
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


@pytest.mark.parametrize("body", [{"choices": []}, completion(None), {"choices": [{"message": {}}]}, {"choices": [{}]}])
def test_no_text_is_an_empty_response(body: Any) -> None:
    assert chat(http(200, body), {})[0] == {"response": ""}


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

    assert asyncio.run(main()) == [{"response": "x"}] * 20


# --- cancel and close ---


def test_a_cancelled_call_is_dropped() -> None:
    async def main() -> Any:
        async with Service(None).running() as service, builtin(base_url=service.address) as backend:
            call = Call("/openai", {"messages": []})
            backend.execute(call)  # type: ignore[arg-type]  # as above
            await asyncio.wait_for(service.asked.wait(), WAIT_S)
            backend.cancel(call)  # type: ignore[arg-type]  # as above
            return await call.outcome()

    assert failed(asyncio.run(main())).code is Code.CANCELLED


def test_a_call_can_be_cancelled_before_it_has_begun() -> None:
    async def main() -> Any:
        async with builtin() as backend:
            call = Call("/get_blob", {"blob_id": "0" * 64}, Blobs())
            backend.execute(call)  # type: ignore[arg-type]  # as above
            backend.cancel(call)  # type: ignore[arg-type]  # as above
            return await call.outcome()

    assert failed(asyncio.run(main())).code is Code.CANCELLED


def test_cancelling_a_finished_call_is_harmless() -> None:
    async def main() -> Any:
        async with builtin() as backend:
            call = Call("/noop", 1)
            backend.execute(call)  # type: ignore[arg-type]  # as above
            backend.cancel(call)  # type: ignore[arg-type]  # as above
            return await call.outcome()

    assert asyncio.run(main()) == 1


def test_closing_fails_the_calls_in_flight_as_unreachable() -> None:
    async def main() -> list[Any]:
        async with Service(None).running() as service, builtin(base_url=service.address) as backend:
            call = Call("/openai", {"messages": []})
            backend.execute(call)  # type: ignore[arg-type]  # as above
            await asyncio.wait_for(service.asked.wait(), WAIT_S)
            await backend.close()
            await backend.close()
            late = Call("/openai", {"messages": []})
            backend.execute(late)  # type: ignore[arg-type]  # as above
            return [await call.outcome(), await late.outcome()]

    assert [failed(outcome).code for outcome in asyncio.run(main())] == [Code.UNREACHABLE] * 2
