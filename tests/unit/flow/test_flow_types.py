"""The types of whole flows: expressions, components, inner flows, the input; and the findings with their places."""

from typing import Any

import pytest

from component_host.builtin.schemas import BUILTINS
from stepflow.flow import flow_from_tree, validate_flow
from stepflow.flow.types import ComponentSchema, FlowTypes, analyse_flow, needed_definitions, type_text

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}
CLOSED = {**PERSON, "additionalProperties": False}

COMPONENTS = {
    **{
        "/builtin" + info.path: ComponentSchema(info.input_schema, info.output_schema, info.component)
        for info in BUILTINS
    },
    "/my/person": ComponentSchema({}, PERSON),
    "/my/closed": ComponentSchema({}, CLOSED),
    "/my/maybe": ComponentSchema({}, {"anyOf": [CLOSED, {"type": "null"}]}),
    "/my/greet": ComponentSchema(PERSON, {"type": "string"}),
    "/my/text": ComponentSchema(
        {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}, {}
    ),
    "/my/number": ComponentSchema({"type": "object", "properties": {"text": {"type": "number"}}}, {"type": "number"}),
}


def step(name: str, component: str, value: Any = None, **members: Any) -> dict[str, Any]:
    return {"id": name, "component": component, "input": value, **members}


def analyse(*steps: dict[str, Any], output: Any = None, is_strict: bool = False, **members: Any) -> FlowTypes:
    return analyse_flow(
        flow_from_tree({"steps": list(steps), "output": output, **members}), COMPONENTS.get, is_strict=is_strict
    )


def found(types: FlowTypes) -> list[tuple[int, str, str | None]]:
    return [(item.code, item.level, item.path) for item in types.findings]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a", "string"),
        (1, "integer"),
        (1.5, "number"),
        (True, "boolean"),
        (None, "null"),
        ({"a": 1, "b": [1, "x"]}, "{ a: integer, b: (integer | string)[] }"),
        ({"$literal": {"$step": "none"}}, "{ $step: string }"),
        ({"$step": "p"}, "{ name: string, age?: integer }"),
        ({"$step": "p", "path": "name"}, "string"),
        ({"$step": "unknown", "path": "x"}, "any"),
        ({"$input": "list[0].name"}, "string"),
        ({"$variable": "limit"}, "integer"),
        ({"$variable": "limit", "default": "none"}, "integer"),
        ({"$variable": "free", "default": 1}, "string | integer"),
        ({"$variable": "undeclared", "default": 1}, "any"),
        ({"$if": {"$input": "list"}, "then": 1, "else": "x"}, "integer | string"),
        ({"$if": {"$input": "list"}, "then": 1}, "integer | null"),
        ({"$coalesce": [{"$if": True, "then": 1}, "x"]}, "integer | string"),
        ({"$coalesce": [{"$if": True, "then": 1}, None]}, "integer | null"),
        ({"$coalesce": []}, "null"),
        ({"$step": "d"}, "number | string"),
        ({"$step": "n", "path": "x.y"}, "null"),
        ({"$if": {"$step": "m"}, "then": {"$step": "m"}, "else": 0}, "{ name: string, age?: integer } | integer"),
    ],
)
def test_an_expression_has_a_type(expression: Any, expected: str) -> None:
    types = analyse(
        step("p", "/my/person"),
        step("unknown", "/other/thing"),
        step("d", "/my/number", {"text": 1}, onError={"action": "useDefault", "defaultValue": "none"}),
        step("n", "/builtin/noop"),
        step("m", "/my/maybe"),
        output=expression,
        schemas={
            "properties": {
                "input": {"type": "object", "properties": {"list": {"type": "array", "items": PERSON}}},
                "variables": {
                    "type": "object",
                    "properties": {"limit": {"type": "integer"}, "free": {"type": "string"}},
                    "required": ["free"],
                },
            }
        },
    )
    assert found(types) == []
    assert type_text(types.output) == expected


def test_an_input_that_does_not_fit_is_an_error_at_its_place() -> None:
    types = analyse(step("a", "/my/greet", {"name": 3}))
    assert found(types) == [(2100, "error", "$.steps[0].input.name")]
    assert "`name`" not in types.findings[0].formatted
    assert "integer does not fit string" in types.findings[0].formatted


def test_a_place_inside_a_literal_and_beyond_a_reference_is_named() -> None:
    types = analyse(
        step("p", "/my/person"),
        step("a", "/my/greet", {"$literal": {"name": 3}}),
        step("b", "/my/text", {"text": {"$step": "p", "path": "age"}}),
        step("c", "/builtin/openai", {"messages": {"$step": "p", "path": "name"}}),
        step("d", "/my/number", {"$step": "q"}),
    )
    assert found(types) == [
        (2100, "error", "$.steps[1].input.$literal.name"),
        (2100, "error", "$.steps[2].input.text"),
        (2100, "error", "$.steps[3].input.messages"),
    ]


def test_a_missing_member_and_an_integer_for_a_number() -> None:
    assert found(analyse(step("a", "/my/greet", {"age": 3}))) == [(2100, "error", "$.steps[0].input")]
    assert found(analyse(step("a", "/my/number", {"text": 3}))) == []


def test_a_value_that_may_not_fit_is_a_warning() -> None:
    types = analyse(step("a", "/my/text", {"text": {"$if": {"$input": "x"}, "then": "t"}}))
    assert found(types) == [(2100, "warning", "$.steps[0].input.text")]


@pytest.mark.parametrize(
    ("component", "path", "expected"),
    [
        ("/my/closed", "nmae", [(2101, "error", "$.output")]),
        ("/my/person", "nmae", [(2101, "warning", "$.output")]),
        ("/my/person", "name.first", [(2101, "error", "$.output")]),
        ("/my/person", "name", []),
        ("/other/thing", "anything", []),
        ("/my/text", "anything", []),
    ],
)
def test_a_path_that_cannot_exist_is_an_error_where_the_schema_is_closed(
    component: str, path: str, expected: list[tuple[int, str, str]]
) -> None:
    value = {"text": "t"}
    assert found(analyse(step("a", component, value), output={"$step": "a", "path": path})) == expected


def test_a_misspelt_path_of_a_builtin_is_an_error_with_a_suggestion() -> None:
    types = analyse(step("a", "/builtin/create_messages", {"user_prompt": 3}), output={"$step": "a", "path": "mesages"})
    assert found(types) == [(2100, "error", "$.steps[0].input.user_prompt"), (2101, "error", "$.output")]
    assert "did you mean `messages`?" in types.findings[1].formatted


def test_a_missing_path_in_a_condition_is_a_warning() -> None:
    types = analyse(step("a", "/my/closed"), output={"$if": {"$step": "a", "path": "x"}, "then": 1})
    assert found(types) == [(2101, "warning", "$.output.condition")]


def test_a_declared_step_type_counts_instead_of_the_component() -> None:
    schemas = {"properties": {"steps": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
    assert type_text(analyse(step("a", "/my/person"), output={"$step": "a"}, schemas=schemas).output) == "integer"


def test_the_output_is_compared_with_its_declaration() -> None:
    schemas = {"properties": {"output": {"type": "string"}}}
    assert found(analyse(output=1, schemas=schemas)) == [(2100, "error", "$.output")]


def test_strict_names_what_cannot_be_checked() -> None:
    steps = (step("a", "/other/thing", 1), step("b", "/my/text", {"text": {"$step": "a"}}))
    assert found(analyse(*steps)) == []
    assert found(analyse(*steps, output={"$step": "a", "path": "x"}, is_strict=True)) == [
        (1101, "warning", "$.steps[0].input"),
        (1101, "warning", "$.steps[1].input"),
        (1101, "warning", "$.output"),
    ]


INNER = {"steps": [step("in", "/my/greet", {"name": {"$input": "who"}})], "output": {"$step": "in"}}


def test_the_items_of_a_map_are_checked_in_the_inner_flow() -> None:
    types = analyse(
        step("m", "/builtin/map", {"workflow": {"$literal": INNER}, "items": [{"who": "Ada"}, {"who": 3}]}),
        output={"$step": "m", "path": "results[0].result"},
    )
    assert found(types) == [(2100, "warning", "$.steps[0].input.workflow.$literal.steps[0].input.name")]
    assert type_text(types.output) == "string"


def test_the_items_of_a_map_must_fit_the_declared_input_of_the_inner_flow() -> None:
    inner = {**INNER, "schemas": {"properties": {"input": PERSON}}, "steps": []}
    types = analyse(
        step("m", "/builtin/map", {"workflow": {"$literal": inner | {"output": None}}, "items": [{"name": 1}]})
    )
    assert found(types) == [(2100, "error", "$.steps[0].input.items[0].name")]


def test_a_stored_literal_flow_gives_the_type_of_eval() -> None:
    types = analyse(
        step("s", "/builtin/put_blob", {"blob_type": "flow", "data": {"$literal": INNER}}),
        step("e", "/builtin/eval", {"flow_id": {"$step": "s", "path": "blob_id"}, "input": {"who": 3}}),
        output={"$step": "e", "path": "result.result"},
    )
    assert found(types) == [(2100, "error", "$.steps[0].input.data.$literal.steps[0].input.name")]
    assert type_text(types.output) == "string"


def test_an_iteration_gives_its_result_or_the_pending_input() -> None:
    inner = {"output": {"$if": {"$input": "x"}, "then": {"result": "done"}, "else": {"next": {"x": True}}}}
    types = analyse(
        step("i", "/builtin/iterate", {"flow": {"$literal": inner}, "initial_input": 1}),
        output={"$step": "i", "path": "result"},
    )
    assert type_text(types.output) == "string | { x: boolean } | integer"


def test_noop_and_sleep_pass_types_on() -> None:
    types = analyse(
        step("n", "/builtin/noop", {"a": [1]}),
        step("s", "/builtin/sleep", {"duration_ms": 1, "passthrough": {"$step": "n"}}),
        output=[{"$step": "n", "path": "a"}, {"$step": "s", "path": "passthrough.a"}],
    )
    assert (found(types), type_text(types.output)) == ([], "integer[][]")


def test_flows_inside_flows_are_bounded() -> None:
    flow: dict[str, Any] = {"output": 1}
    for _ in range(40):
        flow = {
            "steps": [step("m", "/builtin/map", {"workflow": {"$literal": flow}, "items": [1]})],
            "output": {"$step": "m"},
        }
    assert analyse(*flow["steps"]).findings == []


def test_types_that_double_with_each_step_end_as_any() -> None:
    steps = [step("s0", "/builtin/noop", {"a": 1})]
    steps += [
        step(f"s{n}", "/builtin/noop", {"l": {"$step": f"s{n - 1}"}, "r": {"$step": f"s{n - 1}"}}) for n in range(1, 60)
    ]
    assert type_text(analyse(*steps, output={"$step": "s59"}).output) == "any"


# --- the input ---


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([step("a", "/my/greet", {"name": {"$input": "who"}})], "{ who: string }"),
        ([step("a", "/my/greet", {"$input": "person"})], "{ person: { name: string, age?: integer } }"),
        ([step("a", "/my/greet", {"name": {"$coalesce": [{"$input": "who"}, "x"]}})], "{ who?: string | null }"),
        ([step("a", "/my/greet", {"name": {"$coalesce": ["x", {"$input": "who"}]}})], "{ who: string }"),
        ([step("a", "/my/greet", {"name": {"$variable": "v", "default": {"$input": "who"}}})], "{ who?: string }"),
        (
            [step("a", "/my/greet", {"name": {"$if": {"$input": "x"}, "then": {"$input": "y"}, "else": "z"}})],
            "{ x?: any, y?: string }",
        ),
        ([step("a", "/my/greet", {"name": {"$input": "people[0].name"}})], "{ people: { name: string }[] }"),
        (
            [
                step("a", "/my/greet", {"name": {"$coalesce": [{"$input": "who"}, "x"]}}),
                step("b", "/my/greet", {"name": {"$input": "who"}}),
            ],
            "{ who: string }",
        ),
        ([step("a", "/builtin/noop", {"$input": "$"})], "any"),
    ],
)
def test_the_input_follows_from_its_uses(steps: list[dict[str, Any]], expected: str) -> None:
    types = analyse(*steps)
    assert (found(types), type_text(types.input)) == ([], expected)


def test_conflicting_uses_of_the_input_are_an_error_at_the_second_use() -> None:
    types = analyse(
        step("a", "/my/greet", {"name": {"$input": "x"}}),
        step("b", "/my/number", {"text": {"$input": "x"}}),
    )
    assert found(types) == [(2100, "error", "$.steps[1].input.text")]
    assert "used as string and as number" in types.findings[0].formatted


def test_a_declared_input_is_checked_instead() -> None:
    schemas = {"properties": {"input": CLOSED}}
    types = analyse(step("a", "/my/greet", {"name": {"$input": "nmae"}}), schemas=schemas)
    assert found(types) == [(2101, "error", "$.steps[0].input.name")]


# --- definitions and silence ---


def test_definitions_of_the_flow_keep_their_names() -> None:
    other = {"$ref": "#/$defs/Name", "$defs": {"Name": {"type": "integer"}}}
    lookup = {"/c": ComponentSchema({}, other)}.get
    tree = {
        "schemas": {"$defs": {"Name": {"type": "string"}}, "properties": {"input": {"$ref": "#/$defs/Name"}}},
        "steps": [step("a", "/c")],
        "output": [{"$step": "a"}, {"$input": "$"}],
    }
    types = analyse_flow(flow_from_tree(tree), lookup)
    assert types.step_outputs["a"] == {"$ref": "#/$defs/Name_2"}
    assert types.input == {"$ref": "#/$defs/Name"}
    assert needed_definitions(types.scope, [types.output]) == {
        "Name": {"type": "string"},
        "Name_2": {"type": "integer"},
    }


def test_warnings_are_silenced_by_code_or_kind_for_the_flow_or_a_step() -> None:
    steps = [step("a", "/builtin/noop"), step("b", "/builtin/noop")]
    flow = {"name": "n", "steps": steps, "unknown": 1}
    codes = lambda tree: [item.code for item in (*flow_from_tree(tree).warnings, *validate_flow(flow_from_tree(tree)))]  # noqa: E731  # read once
    assert codes(flow) == [1900, 1002, 1000, 1000]
    assert codes({**flow, "metadata": {"ignoreWarnings": [1900, "missingFlowDescription"]}}) == [1000, 1000]
    steps[1]["metadata"] = {"ignoreWarnings": ["unreachableStep"]}
    assert codes(flow) == [1900, 1002, 1000]


def test_errors_cannot_be_silenced() -> None:
    tree = {"name": "n", "description": "d", "output": {"$step": "x"}, "metadata": {"ignoreWarnings": [3003]}}
    assert [item.code for item in validate_flow(flow_from_tree(tree))] == [3003]
