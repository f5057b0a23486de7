"""Values of expressions, sources of variables, effects of overrides: conformance cases of values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from stepflow.errors import Invalid

if TYPE_CHECKING:
    from support.conformance import CaseMesh


def value(mesh: CaseMesh, output: Any, **options: Any) -> Any:
    """Run a flow that is nothing but its output, on an input of a few members."""
    return mesh.run({"output": output}, {"zero": 0, "text": "", "none": None}, **options).value


# --- conditions and alternatives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [0, "", [], {}, "false"])
def test_emptiness_and_zero_are_true(mesh: CaseMesh, condition: Any) -> None:
    chosen = {"then": "yes", "else": "no"}
    assert value(mesh, {"$if": {"$literal": condition}, **chosen}) == "yes"
    flow = {
        "steps": [{"id": "a", "component": "/builtin/noop", "input": {"$literal": condition}}],
        "output": {"$if": {"$step": "a"}, **chosen},
    }
    assert mesh.run(flow).value == "yes"


@pytest.mark.parametrize("condition", [None, False])
def test_null_and_false_are_false(mesh: CaseMesh, condition: Any) -> None:
    assert value(mesh, {"$if": condition, "then": "yes", "else": "no"}) == "no"


def test_a_condition_on_something_missing_takes_the_else_branch(mesh: CaseMesh) -> None:
    assert value(mesh, {"$if": {"$input": "nope"}, "then": "yes", "else": "no"}) == "no"
    assert value(mesh, {"$if": {"$input": "nope"}, "then": "yes"}) is None


def test_an_alternative_that_is_missing_is_a_failure(mesh: CaseMesh) -> None:
    ran = mesh.run({"output": {"$coalesce": [{"$input": "nope"}, 1]}}, {})
    assert ran.error == {"code": "EXPRESSION_FAILURE", "message": "Input path $.nope not found"}
    assert ran.status == "failed"


@pytest.mark.parametrize(
    ("alternatives", "chosen"),
    [([False, 1], False), ([0, 1], 0), (["", 1], ""), ([None, [], 1], []), ([], None), ([None, None], None)],
)
def test_the_first_alternative_that_is_not_null_is_taken(mesh: CaseMesh, alternatives: Any, chosen: Any) -> None:
    found = value(mesh, {"$coalesce": alternatives})
    assert (found, type(found)) == (chosen, type(chosen))


def test_nothing_within_a_literal_is_interpreted(mesh: CaseMesh) -> None:
    assert value(mesh, {"$literal": {"$literal": "x"}}) == {"$literal": "x"}
    assert value(mesh, {"$literal": {"$from": {"step": "a"}}}) == {"$from": {"step": "a"}}


# --- variables -------------------------------------------------------------------------------------------------------


def declaring(properties: dict[str, Any], output: Any, *required: str) -> dict[str, Any]:
    variables = {"type": "object", "properties": properties, "required": list(required)}
    return {"schemas": {"type": "object", "properties": {"variables": variables}}, "output": output}


def test_optional_variables_that_are_not_set_have_the_defaults_of_their_types(mesh: CaseMesh) -> None:
    properties = {
        "ratio": {"type": "number"},
        "count": {"type": "integer", "default": 7},
        "loud": {"type": "boolean"},
        "title": {"type": "string"},
        "maybe": {"type": ["string", "null"]},
    }
    output = {name: {"$variable": name} for name in properties}
    found = mesh.run(declaring(properties, output)).value
    assert found == {"ratio": 0, "count": 7, "loud": False, "title": "", "maybe": None}
    assert found["loud"] is False


@pytest.mark.parametrize(("schema", "required"), [({"type": "string"}, ["x"]), ({"type": "object"}, [])])
def test_a_variable_without_a_value_is_undefined(mesh: CaseMesh, schema: Any, required: list[str]) -> None:
    ran = mesh.run(declaring({"x": schema}, {"$variable": "x"}, *required))
    assert ran.error == {"code": "EXPRESSION_FAILURE", "message": "Undefined variable: x"}


def test_an_undefined_variable_that_nothing_reads_does_no_harm(mesh: CaseMesh) -> None:
    assert mesh.run(declaring({"x": {"type": "string"}}, "fine", "x")).value == "fine"


def test_the_default_of_the_schema_beats_the_one_beside_the_reference(mesh: CaseMesh) -> None:
    reference = {"$variable": "x", "default": "inline"}
    assert mesh.run(declaring({"x": {"type": "string", "default": "schema"}}, reference)).value == "schema"
    assert mesh.run(declaring({"x": {"type": "string"}}, reference)).value == "", "also when it follows from the type"
    assert mesh.run(declaring({"x": {"type": "string"}}, reference, "x")).value == "inline"


def test_a_part_that_a_variable_lacks_has_the_inline_default(mesh: CaseMesh) -> None:
    flow = declaring({"o": {"type": "object"}}, {"$variable": "$.o.y", "default": {"$input": "fallback"}})
    assert mesh.run(flow, {"fallback": "D"}, variables={"o": {"x": 1}}).value == "D"
    assert mesh.run(flow, {"fallback": "D"}, variables={"o": {"y": 2}}).value == 2


def test_a_step_in_a_default_runs_only_when_the_default_is_needed(mesh: CaseMesh) -> None:
    flow = declaring({"x": {"type": "object"}}, {"$variable": "x", "default": {"$step": "a"}})
    flow["steps"] = [{"id": "a", "component": "/builtin/noop", "input": "computed"}]
    without, supplied = mesh.run(flow), mesh.run(flow, variables={"x": 1})
    assert (without.value, without.started()) == ("computed", {"a"})
    assert (supplied.value, supplied.started()) == (1, set())


def test_a_supplied_null_beats_every_default(mesh: CaseMesh) -> None:
    flow = declaring({"x": {"type": "string", "default": "schema"}}, {"$variable": "x", "default": "inline"})
    assert mesh.run(flow, variables={"x": None}).value is None


def test_supplied_variables_are_used_as_they_are(mesh: CaseMesh) -> None:
    flow = declaring({"count": {"type": "integer"}}, [{"$variable": "count"}, {"$variable": "undeclared"}])
    assert mesh.run(flow, variables={"count": "many", "undeclared": [1]}).value == ["many", [1]]


def test_all_items_share_the_variables(mesh: CaseMesh) -> None:
    flow = {"output": [{"$input": None}, {"$variable": "v"}]}
    ran = mesh.run(flow, 1, 2, variables={"v": "same"})
    assert [result["result"] for result in ran.results] == [[1, "same"], [2, "same"]]


# --- overrides -------------------------------------------------------------------------------------------------------

LETTER = {
    "steps": [
        {
            "id": "a",
            "component": "/builtin/noop",
            "input": {"to": {"name": "Ada", "street": "Elm", "tags": [1, 2]}, "from": {"$input": "$.sender"}},
        }
    ],
    "output": {"$step": "a"},
}


def patch(value: Any, step: str = "a", **members: Any) -> dict[str, Any]:
    return {"steps": {step: {"value": value, **members}}}


def test_an_override_merges_members_and_deletes_them_with_null(mesh: CaseMesh) -> None:
    change = {"input": {"to": {"name": "Grace", "street": None, "tags": [3], "floor": 2}}}
    overrides = patch(change, **{"$type": "merge_patch"})
    flow_id = mesh.store(LETTER)
    expected = {"to": {"name": "Grace", "tags": [3], "floor": 2}, "from": "Eve"}
    ran = mesh.run(flow_id, {"sender": "Eve"}, {"sender": "Bob"}, overrides=overrides)
    assert [result["result"] for result in ran.results] == [expected, {**expected, "from": "Bob"}]
    assert mesh.stored(flow_id) == LETTER, "the stored flow has changed"


def test_an_override_may_change_the_component_and_what_an_error_means(mesh: CaseMesh) -> None:
    change = {"component": "/mock/broken_scale", "input": None, "onError": {"action": "useDefault", "defaultValue": 1}}
    assert mesh.run(LETTER, {"sender": "Eve"}, overrides=patch(change)).value == 1


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (patch({"input": 1}, step="b"), "OVERRIDES_STEP_UNKNOWN"),
        (patch([], **{"$type": "json_patch"}), "OVERRIDES_UNSUPPORTED"),
        ({}, "OVERRIDES_INVALID"),
        ({"a": {"value": {"input": 1}}}, "OVERRIDES_INVALID"),
        (patch({"component": None}), "OVERRIDES_STEP_INVALID"),
        (patch({"input": {"$step": "nobody"}}), "OVERRIDES_FLOW_INVALID"),
    ],
)
def test_overrides_that_cannot_be_applied_are_refused_at_once(mesh: CaseMesh, overrides: Any, reason: str) -> None:
    with pytest.raises(Invalid) as refused:
        mesh.run(LETTER, {"sender": "Eve"}, overrides=overrides)
    assert (refused.value.status, refused.value.reason) == ("INVALID_ARGUMENT", reason)


def test_overrides_of_no_step_change_nothing(mesh: CaseMesh) -> None:
    assert mesh.run(LETTER, {"sender": "Eve"}, overrides={"steps": {}}).value["from"] == "Eve"


def test_a_reference_stays_until_its_own_key_is_nulled(mesh: CaseMesh) -> None:
    flow = {
        "steps": [
            {"id": "a", "component": "/builtin/noop", "input": "from the step"},
            {"id": "b", "component": "/builtin/noop", "input": {"of": {"$step": "a"}}},
        ],
        "output": {"$step": "b", "path": "of"},
    }
    given = {"x": "from the input"}
    merged = patch({"input": {"of": {"$input": "x"}}}, step="b")
    assert mesh.run(flow, given, overrides=merged).value == "from the step"
    replaced = patch({"input": {"of": {"$step": None, "$input": "x"}}}, step="b")
    assert mesh.run(flow, given, overrides=replaced).value == "from the input"
