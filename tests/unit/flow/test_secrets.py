"""Secret values are found by their schema annotations and redacted; schema messages never show values."""

from typing import Any

import pytest

from stepflow import codec
from stepflow.codec import Json
from stepflow.errors import Invalid
from stepflow.flow import REDACTED, InputValidator, Redactor, SecretMap, flow_from_tree

SECRET: dict[str, Any] = {"type": "string", "is_secret": True}


def redacted(schema: Any, tree: Any, definitions: dict[str, Any] | None = None) -> Any:
    return SecretMap.from_schema(schema, definitions).redact(tree)


@pytest.mark.parametrize(
    "schema", [None, True, {}, {"is_secret": False}, {"is_secret": "yes"}, {"properties": {"a": {}}}]
)
def test_without_marks_nothing_is_redacted(schema: Any) -> None:
    assert not SecretMap.from_schema(schema)
    assert redacted(schema, {"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    ("schema", "tree", "shown"),
    [
        (SECRET, "x", REDACTED),
        ({"is_secret": True}, {"a": [1]}, REDACTED),
        ({"properties": {"k": SECRET}}, {"k": "x", "o": "y"}, {"k": REDACTED, "o": "y"}),
        ({"properties": {"o": {"properties": {"k": SECRET}}}}, {"o": {"k": 1, "z": 2}}, {"o": {"k": REDACTED, "z": 2}}),
        ({"items": SECRET}, ["x", None], [REDACTED, REDACTED]),
        ({"items": {"properties": {"k": SECRET}}}, [{"k": 1}, {"z": 2}], [{"k": REDACTED}, {"z": 2}]),
        ({"prefixItems": [{}, SECRET], "items": {}}, [1, 2, 3], [1, REDACTED, 3]),
        ({"items": [{}, SECRET], "additionalItems": SECRET}, [1, 2, 3], [1, REDACTED, REDACTED]),
        ({"additionalProperties": SECRET, "properties": {"open": {}}}, {"open": 1, "x": 2}, {"open": 1, "x": REDACTED}),
        ({"patternProperties": {"^k": SECRET}}, {"x": 2}, {"x": REDACTED}),
        ({"anyOf": [{"type": "null"}, SECRET]}, "x", REDACTED),
        ({"allOf": [{"properties": {"k": SECRET}}]}, {"k": 1}, {"k": REDACTED}),
        ({"properties": {"k": SECRET}}, ["not", "an object"], ["not", "an object"]),
        ({"items": SECRET}, {"no": "array"}, {"no": "array"}),
    ],
)
def test_marked_values_are_redacted_wherever_they_are(schema: Any, tree: Any, shown: Any) -> None:
    before = codec.encode(tree)
    assert SecretMap.from_schema(schema)
    assert redacted(schema, tree) == shown
    assert codec.encode(tree) == before


def test_marks_reach_through_references() -> None:
    own = {"properties": {"k": {"$ref": "#/$defs/Key"}}, "$defs": {"Key": SECRET}}
    assert redacted(own, {"k": "x"}) == {"k": REDACTED}
    shared = {"properties": {"k": {"$ref": "#/$defs/a~1b"}}}
    assert redacted(shared, {"k": "x"}, {"a/b": SECRET}) == {"k": REDACTED}
    assert redacted({"$ref": "#/$defs/Nope", "items": SECRET}, ["x"]) == [REDACTED]


def test_recursive_schemas_are_followed_as_far_as_the_value_goes() -> None:
    node = {"properties": {"key": SECRET, "left": {"$ref": "#/$defs/N"}, "right": {"$ref": "#/$defs/N"}}}
    endless = {"$ref": "#/$defs/E", "anyOf": [{"$ref": "#/$defs/E"}]}
    tree: Any = {"key": "k"}
    shown: Any = {"key": REDACTED}
    for _ in range(60):
        tree, shown = {"left": tree, "right": {"key": 1}}, {"left": shown, "right": {"key": REDACTED}}
    assert redacted({"$ref": "#/$defs/N"}, tree, {"N": node, "E": endless}) == shown


FLOW = flow_from_tree(
    {
        "schemas": {
            "$defs": {"Key": SECRET},
            "properties": {
                "input": {"properties": {"keys": {"items": {"$ref": "#/$defs/Key"}}, "note": {"type": "string"}}},
                "variables": {
                    "properties": {
                        "token": SECRET,
                        "bundle": {"type": "object", "is_secret": True},
                        "preset": {"type": "string", "is_secret": True, "default": "preset-secret"},
                        "region": {"type": "string"},
                    }
                },
            },
        }
    }
)


def test_secrets_of_inputs_and_variables_are_taken_out_of_texts() -> None:
    inputs = [{"keys": ["first-key", "second-key"], "note": "harmless"}, {"keys": ["third"]}]
    variables = {"token": Json(b'"tok-123"'), "bundle": {"user": "bob1", "n": 123456}, "region": "eu-west"}
    redactor = Redactor(FLOW, inputs, variables)
    assert redactor
    text = "first-key second-key third tok-123 bob1 123456 preset-secret harmless eu-west"
    assert redactor.text(text) == " ".join([REDACTED] * 7) + " harmless eu-west"


def test_secrets_are_found_in_their_json_form_too() -> None:
    key = 'a"b\\c\nd'
    redactor = Redactor(FLOW, [{"keys": [key]}], {})
    assert redactor.text(key) == REDACTED
    assert redactor.text(codec.encode({"m": key}).decode()) == f'{{"m":"{REDACTED}"}}'


def test_a_secret_that_contains_another_is_taken_out_whole() -> None:
    redactor = Redactor(FLOW, [{"keys": ["abcd", "abcd-efgh"]}])
    assert redactor.text("abcd-efgh/abcd") == f"{REDACTED}/{REDACTED}"


def test_short_secrets_are_taken_out_and_values_that_say_nothing_stay() -> None:
    redactor = Redactor(FLOW, [{"keys": ["abc", "", " ", 12, True, None]}], {"preset": ""})
    assert redactor.text("abc, 12 abcd 123 True null") == f"{REDACTED}, {REDACTED} abcd 123 True null"


def test_a_flow_without_secrets_changes_no_text() -> None:
    redactor = Redactor(flow_from_tree({}), [{"key": "value"}], {"v": "value"})
    assert not redactor
    assert redactor.text("value") == "value"


# --- validation of inputs ----------------------------------------------------------------------------------------


def test_an_input_that_fits_gives_nothing() -> None:
    assert InputValidator({"type": "object", "required": ["a"]}).check({"a": 2**80}) is None
    assert InputValidator(True).check(None) is None


CANARY = "canary-value"


@pytest.mark.parametrize(
    ("schema", "tree", "pointer"),
    [
        ({"properties": {"k": {"type": "integer"}}}, {"k": CANARY}, "/k"),
        ({"properties": {"k": {"minLength": 50}}}, {"k": CANARY}, "/k"),
        ({"properties": {"k": {"pattern": "^[0-9]+$"}}}, {"k": CANARY}, "/k"),
        ({"properties": {"k": {"const": 1}}}, {"k": CANARY}, "/k"),
        ({"properties": {"k": {"enum": [1, 2]}}}, {"k": CANARY}, "/k"),
        ({"properties": {"k": {"not": {}}}}, {"k": CANARY}, "/k"),
        ({"properties": {"k": {"anyOf": [{"type": "null"}, {"type": "array"}]}}}, {"k": CANARY}, "/k"),
        ({"properties": {"k": {"oneOf": [{}, {}]}}}, {"k": CANARY}, "/k"),
        ({"properties": {"k": False}}, {"k": CANARY}, "/k"),
        ({"items": {"type": "integer"}}, [1, CANARY], "/1"),
        ({"uniqueItems": True}, [CANARY, CANARY], ""),
        ({"contains": {"type": "integer"}}, [CANARY], ""),
        ({"required": ["x"]}, {"k": CANARY}, ""),
        ({"maxProperties": 0}, {"k": CANARY}, ""),
        ({"properties": {"a/b~c": {"type": "null"}}}, {"a/b~c": CANARY}, "/a~1b~0c"),
        ({"dependentRequired": {"k": ["x"]}}, {"k": CANARY}, ""),
        ({"unevaluatedProperties": False, "properties": {"j": {}}}, {"j": CANARY, "k": 1}, ""),
    ],
)
def test_a_misfit_is_told_with_its_place_and_without_its_value(schema: Any, tree: Any, pointer: str) -> None:
    found = InputValidator(schema).check(tree)
    assert found is not None
    assert found[0] == pointer
    assert found[1]
    assert CANARY not in found[1]


def test_long_names_do_not_make_long_messages() -> None:
    name = "n" * 10_000
    found = InputValidator({"properties": {"a": {}}, "additionalProperties": False}).check({name: 1})
    assert found is not None
    assert len(found[1]) == 500
    found = InputValidator({"additionalProperties": {"type": "null"}}).check({name: 1})
    assert found is not None
    assert len(found[0]) == 500


def test_shared_definitions_may_be_referred_to() -> None:
    flow = flow_from_tree(
        {
            "schemas": {
                "$defs": {"Positive": {"type": "integer", "minimum": 1}},
                "properties": {"input": {"properties": {"n": {"$ref": "#/$defs/Positive"}}}},
            }
        }
    )
    validator = InputValidator.for_input(flow)
    assert validator is not None
    assert validator.check({"n": 1}) is None
    assert validator.check({"n": 0}) == ("/n", "the value is less than the minimum of 1")
    assert InputValidator.for_input(flow_from_tree({})) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "foo"},
        {"$ref": "#/$defs/Nope"},
        {"$ref": "https://example.invalid/schema.json"},
        {"$ref": "file:///etc/hostname"},
        {"pattern": "("},
        {"$schema": "https://example.invalid/draft"},
        {"minimum": "one"},
        {"$defs": []},
    ],
)
def test_a_broken_schema_is_refused_and_nothing_is_fetched(schema: Any) -> None:
    shared: dict[str, Any] = {"Other": {}}
    for definitions in (None, shared):
        with pytest.raises(Invalid) as caught:
            InputValidator(schema, definitions)
        assert caught.value.reason == "SCHEMA_INVALID"
