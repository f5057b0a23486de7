"""The variables that a flow declares, and their values from the environment."""

from typing import Any

import pytest

from stepflow.flow import VariableSpecs, compile_flow, flow_from_tree


def specs(**properties: Any) -> VariableSpecs:
    return VariableSpecs.from_schema({"type": "object", "properties": properties})


def test_declarations_are_read_in_order() -> None:
    schema = {
        "required": ["b"],
        "properties": {
            "b": {"type": "string", "env_var": "B_FROM", "is_secret": True, "description": "the b"},
            "a": {"type": "integer"},
            "flag": True,
        },
    }
    found = VariableSpecs.from_schema(schema)
    assert [spec.name for spec in found] == ["b", "a", "flag"]
    assert (found["b"].required, found["b"].is_secret, found["b"].env_var) == (True, True, "B_FROM")
    assert (found["b"].description, found["b"].default) == ("the b", None)
    assert found["a"].schema == {"type": "integer"}
    assert found["flag"].default is None
    assert "a" in found
    assert "z" not in found
    assert found.get("z") is None
    assert len(found) == 3


def test_nothing_is_declared_without_a_schema() -> None:
    assert not VariableSpecs.from_schema(None).declared
    assert VariableSpecs.from_schema({}).declared
    assert len(VariableSpecs.from_schema({})) == 0


@pytest.mark.parametrize(
    ("schema", "raw"),
    [
        ({"type": "string"}, b'""'),
        ({"type": "integer"}, b"0"),
        ({"type": "number"}, b"0"),
        ({"type": "boolean"}, b"false"),
        ({"type": ["integer", "null"]}, b"null"),
        ({"type": "object", "default": {"a": 1}}, b'{"a":1}'),
        ({"default": None}, b"null"),
    ],
)
def test_the_effective_default_is_encoded(schema: Any, raw: bytes) -> None:
    default = specs(v=schema).default("v")
    assert default is not None
    assert default.raw == raw


@pytest.mark.parametrize(
    "schema", [{}, {"type": "object"}, {"type": "array"}, {"type": "null"}, {"type": ["string"]}, True]
)
def test_some_types_have_no_implicit_default(schema: Any) -> None:
    assert specs(v=schema).default("v") is None


def test_the_environment_fills_in_what_was_not_supplied() -> None:
    declared = specs(
        api_key={"type": "string", "env_var": "MY_KEY"},
        count={"type": "integer"},
        tree={},
        plain={},
        unset={},
        given={},
        prefixed={"env_var": "ELSEWHERE"},
    )
    environ = {
        "MY_KEY": "sk-1",
        "STEPFLOW_VAR_COUNT": "5",
        "STEPFLOW_VAR_TREE": '{"a": [1.5]}',
        "STEPFLOW_VAR_PLAIN": "no json {",
        "STEPFLOW_VAR_GIVEN": "7",
        "STEPFLOW_VAR_UNDECLARED": "1",
        "STEPFLOW_VAR_PREFIXED": "1",
    }
    supplied = {"given": None, "extra": 1}
    assert declared.from_environment(environ, supplied) == {
        "given": None,
        "extra": 1,
        "api_key": "sk-1",
        "count": 5,
        "tree": {"a": [1.5]},
        "plain": "no json {",
    }
    assert supplied == {"given": None, "extra": 1}


def test_a_compiled_flow_knows_its_variables() -> None:
    schemas = {"properties": {"variables": {"properties": {"v": {"default": 3}}}}}
    assert compile_flow(flow_from_tree({"schemas": schemas})).variables["v"].environment_name == "STEPFLOW_VAR_V"
