"""Components from type hints: schemas, conversion of inputs, paths, and authors' errors."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest
from support.component_client import SERVERS, Client, run, script

from stepflow import component as sdk
from stepflow.component import InvalidInput
from stepflow.component.registry import Registry, define
from stepflow.component.shapes import encode, shape_of
from stepflow.errors import Invalid


@pytest.fixture(scope="module")
def shared_kinds() -> Iterator[Client]:
    with Client(SERVERS / "kinds.py") as client:
        client.initialize()
        yield client


# Schemas and conversion, by kind of type hint


def info(client: Client, path: str) -> dict[str, Any]:
    client.request("components/info", component=path)
    found: dict[str, Any] = client.receive()["result"]["info"]
    return found


def test_the_list_has_every_component_with_its_schemas(shared_kinds: Client) -> None:
    shared_kinds.request("components/list")
    listed = {each["component"]: each for each in shared_kinds.receive()["result"]["components"]}
    assert len(listed) == 13
    assert listed["/dataclass_kind"]["description"] == "Move a point to the right."
    assert listed["/text/upper"]["description"] == "Given by hand."
    assert "/core/{*rest}" in listed
    assert listed["/nothing_kind"]["output_schema"] == {"type": "null"}
    assert "output_schema" not in listed["/free_kind"]


@pytest.mark.parametrize(
    ("path", "required", "properties"),
    [
        ("/dataclass_kind", ["x"], {"x", "y", "tags"}),
        ("/typed_dict_kind", ["item"], {"item", "count"}),
        ("/struct_kind", ["text"], {"text", "width"}),
        ("/pydantic_kind", ["ownedBy", "prices"], {"ownedBy", "prices"}),
        ("/plain_kind", ["a"], {"a", "b", "when", "names"}),
        ("/mixed_kind", ["money"], {"money", "times"}),
    ],
)
def test_every_kind_of_type_hint_gives_an_object_schema(
    shared_kinds: Client, path: str, required: list[str], properties: set[str]
) -> None:
    schema = info(shared_kinds, path)["input_schema"]
    assert schema["type"] == "object"
    assert schema["required"] == required
    assert set(schema["properties"]) == properties


def test_defaults_and_constraints_stand_in_the_schema(shared_kinds: Client) -> None:
    plain = info(shared_kinds, "/plain_kind")["input_schema"]["properties"]
    assert plain["b"] == {"type": "number", "default": 0.5}
    assert plain["names"]["default"] == ["x"]
    width = info(shared_kinds, "/struct_kind")["input_schema"]["properties"]["width"]
    assert width == {"type": "integer", "minimum": 1, "default": 80, "description": "In characters."}


def test_a_recursive_type_keeps_its_definition(shared_kinds: Client) -> None:
    schema = info(shared_kinds, "/recursive_kind")["input_schema"]
    assert schema["$ref"] == "#/$defs/Tree"
    assert shared_kinds.call("/recursive_kind", {"value": 1, "children": [{"value": 2}, {"value": 3}]}) == 6


@pytest.mark.parametrize(
    ("path", "value", "output"),
    [
        ("/dataclass_kind", {"x": 1}, {"x": 2, "y": 0, "tags": []}),
        ("/dataclass_kind", {"x": 1, "unknown": True}, {"x": 2, "y": 0, "tags": []}),
        ("/typed_dict_kind", {"item": "tea"}, {"item": "tea", "count": 1}),
        ("/struct_kind", {"text": "t"}, {"text": "t", "width": 80}),
        (
            "/pydantic_kind",
            {"ownedBy": "Ada", "prices": [{"amount": 2}]},
            {"ownedBy": "Ada", "prices": [{"amount": 2.0, "currency": "EUR"}]},
        ),
        ("/plain_kind", {"a": 1}, {"a": 1, "b": 0.5, "year": None, "names": ["x"]}),
        (
            "/plain_kind",
            {"a": 1, "b": 2, "when": "2026-01-02T03:04:05Z"},
            {"a": 1, "b": 2.0, "year": 2026, "names": ["x"]},
        ),
        ("/mixed_kind", {"money": {"amount": 1}}, [{"amount": 1.0, "currency": "EUR"}] * 2),
        ("/whole_kind", [1, 2, 3], 6),
        ("/free_kind", {"any": ["thing", None, 1.5]}, {"any": ["thing", None, 1.5]}),
        ("/free_kind", 123456789012345678901234567890, 123456789012345678901234567890),
        ("/nothing_kind", {"ignored": 1}, None),
        ("/text/upper", {"text": "ä"}, "Ä"),
    ],
)
def test_inputs_are_converted_and_outputs_are_written(shared_kinds: Client, path: str, value: Any, output: Any) -> None:
    assert shared_kinds.call(path, value) == output


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("/dataclass_kind", {"x": "one"}, ["$.x", "int", "str"]),
        ("/dataclass_kind", {}, ["$", "`x`"]),
        ("/dataclass_kind", {"x": 1, "tags": ["a", 2]}, ["$.tags[1]"]),
        ("/typed_dict_kind", {"count": 1}, ["`item`"]),
        ("/struct_kind", {"text": "t", "width": 0}, ["$.width"]),
        (
            "/pydantic_kind",
            {"ownedBy": "Ada", "prices": [{"amount": "x"}, {}]},
            ["$.prices[0].amount", "$.prices[1].amount"],
        ),
        ("/plain_kind", {"b": 1}, ["`a`"]),
        ("/plain_kind", None, ["object", "null"]),
        ("/mixed_kind", {"money": {"amount": 1}, "times": "x"}, ["$.times"]),
    ],
)
def test_an_input_of_the_wrong_type_fails_with_invalid_input_and_names_the_field(
    shared_kinds: Client, path: str, value: Any, words: list[str]
) -> None:
    error = shared_kinds.error(path, value)
    assert error["code"] == -32003
    assert error["data"]["error_code"] == "INVALID_INPUT"
    for word in words:
        assert word in error["message"]


def test_pydantic_models_are_found_inside_other_types() -> None:
    class Money(pydantic.BaseModel):
        amount: float

    @dataclass
    class Purse:
        coins: list[Money]

    for hint, text in (
        (Purse, b'{"coins": [{"amount": 1}]}'),
        (list[Money], b'[{"amount": 1}]'),
        (Money | int, b'{"amount": 1}'),
        (dict[str, Money | None], b'{"a": {"amount": 1}, "b": null}'),
    ):
        shape = shape_of(hint)
        assert encode(shape.decode(text)) == msgspec.json.encode(msgspec.json.decode(text.replace(b": 1", b": 1.0")))
        assert "amount" in str(shape.schema)
    with pytest.raises(InvalidInput, match=r"\$\.coins\[0\]\.amount"):
        shape_of(Purse).decode(b'{"coins": [{"amount": "x"}]}')


def test_many_findings_of_pydantic_are_told_in_part() -> None:
    class Row(pydantic.BaseModel):
        value: int

    with pytest.raises(InvalidInput, match="and 7 more") as caught:
        shape_of(list[Row]).decode(b"[" + b",".join([b'{"value": "secret"}'] * 12) + b"]")
    assert "secret" not in str(caught.value)


def test_outputs_are_one_line_whatever_they_hold() -> None:
    assert encode({"raw": msgspec.Raw(b'{\n"a":\n1}'), "text": "a\nb"}) == b'{"raw":{"a":1},"text":"a\\nb"}'
    assert (
        encode([datetime(2026, 1, 2, tzinfo=UTC), {3}, b"ab", float("nan")])
        == b'["2026-01-02T00:00:00Z",[3],"YWI=",null]'
    )


def test_an_optional_context_is_a_context() -> None:
    def both(a: int, ctx: sdk.Context | None = None) -> int:
        return a

    component = define(both)
    component.prepare()
    assert component.input_schema is not None
    assert list(component.input_schema["properties"]) == ["a"]


def test_what_the_braces_of_a_path_match_becomes_a_parameter(shared_kinds: Client) -> None:
    assert shared_kinds.call("/core/a/b", {"v": 1}) == ["a/b", {"v": 1}]
    assert shared_kinds.call("/user/Ada/hello", {"greeting": "Hi"}) == "Hi, Ada!"
    assert shared_kinds.call("/user/Ada/hello") == "Hello, Ada!"


def test_a_host_may_match_the_path_itself_and_send_the_parameters(shared_kinds: Client) -> None:
    assert shared_kinds.call("/core/{*rest}", 1, path_params={"rest": "x/y"}) == ["x/y", 1]
    error = shared_kinds.error("/core/{*rest}", 1)
    assert error["data"]["error_code"] == "INVALID_INPUT"
    assert "rest" in error["message"]


def test_a_literal_path_wins_over_a_pattern() -> None:
    registry = Registry()
    for name in ("{*all}", "a/{x}", "a/b"):
        registry.add(define(lambda: None, name=name))
    found = {path: registry.find(path) for path in ("/a/b", "/a/c", "/a/c/d")}
    assert {path: match[0].path for path, match in found.items() if match} == {
        "/a/b": "/a/b",
        "/a/c": "/a/{x}",
        "/a/c/d": "/{*all}",
    }


# Mistakes of authors


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", ["@component"]),
        ("@component\ndef f(a: object) -> int: ...", ["server.py:2", "/f", "object"]),
        ("@component\ndef f(a: int) -> 'object': ...", ["/f", "return value"]),
        ("@component\ndef f(a: 'Nowhere') -> int: ...", ["/f", "Nowhere", "module level"]),
        ("@component\ndef f(*a: int) -> int: ...", ["/f", "*a"]),
        ("@component\ndef f(a: int, /) -> int: ...", ["/f", "positional-only"]),
        ("@component\ndef f(a: Context, b: Context) -> int: ...", ["/f", "two Context"]),
        ("@component\ndef f(): ...\nserve(threads=0)", ["threads=0"]),
        ("@component('x/{n}')\ndef f(n: int) -> int: ...", ["/x/{n}", "`n`", "str"]),
    ],
)
def test_a_wrong_component_is_told_at_the_start_in_one_line(tmp_path: Path, body: str, words: list[str]) -> None:
    head = "from stepflow.component import *; from stepflow.component import component, serve, Context\n"
    done = run(script(tmp_path, f"{head}{body}\nserve()\n"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("name", ["a//b", "{*rest}/x", "x{y}", "{x}/{x}", "", "{1}"])
def test_a_bad_path_is_refused_where_it_stands(name: str) -> None:
    with pytest.raises(Invalid, match=r"test_shapes\.py:\d+: the component path"):
        define(lambda: None, name=name)


def test_two_functions_cannot_have_one_path() -> None:
    registry = Registry()
    registry.add(define(lambda: 1, name="same"))
    with pytest.raises(Invalid, match="defined already"):
        registry.add(
            define(lambda: 2, name="same")  # on a line of its own: the location tells functions apart
        )


def test_generators_classes_and_inline_coroutines_are_no_components() -> None:
    def yields() -> Iterator[int]:
        yield 1

    async def waits() -> None: ...

    for wrong, inline in ((yields, False), (Client, False), (waits, True)):
        with pytest.raises(Invalid) as caught:
            define(wrong, inline=inline)
        assert caught.value.reason == "COMPONENT_INVALID"


def test_a_decorated_function_stays_the_function_that_it_was() -> None:
    def plain(a: int) -> int:
        return a + 1

    assert sdk.component("kept_as_it_is")(plain) is plain


def test_a_component_may_be_imported_for_typing_only(tmp_path: Path) -> None:
    text = (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
        "from stepflow.component import component, serve\n"
        "if TYPE_CHECKING:\n    from stepflow.component import Context\n"
        "@component\ndef f(ctx: Context, later: Later) -> int:\n    return later['n'] + ctx.attempt\n"
        "from typing import TypedDict\n"
        "class Later(TypedDict):\n    n: int\n"
        "serve()\n"
    )
    with Client(script(tmp_path, text)) as client:
        assert client.call("/f", {"n": 1}) == 2
