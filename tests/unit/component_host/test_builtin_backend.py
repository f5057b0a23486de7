"""The builtin components, through the backend's interface: real files, real blobs."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING, Any

import pytest
from support.builtin_host import Blobs, answer, ask, begin, builtin, failed

from component_host.builtin.files import FILE_BYTES_MAX
from stepflow import codec
from stepflow.errors import Code, DataLoss, Overloaded, StepflowError
from stepflow.off_loop import INLINE_WORK_BYTES_MAX
from stepflow.routing.table import ENGINE_COMPONENTS

if TYPE_CHECKING:
    from pathlib import Path


class FailingBlobs:
    """A blob store in trouble."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def put(self, content: bytes, *, blob_type: str = "data") -> str:
        raise self._error

    async def get(self, blob_id: str, /) -> tuple[bytes, str]:
        raise self._error


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


def test_a_large_value_passes_through_a_blob_unchanged() -> None:
    value = {"rows": [{"n": n, "text": "x" * 100} for n in range(10_000)]}
    assert len(codec.encode(value)) > INLINE_WORK_BYTES_MAX

    async def main() -> Any:
        blobs = Blobs()
        async with builtin() as backend:
            put = await answer(backend, "/put_blob", {"data": value, "blob_type": "data"}, blobs)
            assert put == {"blob_id": hashlib.sha256(codec.encode(value)).hexdigest()}
            return await answer(backend, "/get_blob", put, blobs)

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
    """A working directory with readable files, next to files outside the permitted folders."""
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


# --- cancel ---


def test_a_call_can_be_cancelled_before_it_has_begun() -> None:
    async def main() -> Any:
        async with builtin() as backend:
            call = begin(backend, "/get_blob", {"blob_id": "0" * 64})
            backend.cancel(call)
            return await call.outcome()

    assert failed(asyncio.run(main())).code is Code.CANCELLED


def test_cancelling_a_finished_call_is_harmless() -> None:
    async def main() -> Any:
        async with builtin() as backend:
            call = begin(backend, "/noop", 1)
            backend.cancel(call)
            return await call.outcome()

    assert asyncio.run(main()) == 1
