"""Every diagnostic, and valid flows near it that raise none."""

from typing import Any

import pytest

from stepflow.flow import Diagnostics, flow_from_tree, validate_config, validate_flow


def step(step_id: str, expression: Any = None, component: str = "/x", **members: Any) -> dict[str, Any]:
    return {"id": step_id, "component": component, "input": expression, **members}


def ref(step_id: str, path: str | None = None) -> dict[str, Any]:
    return {"$step": step_id} if path is None else {"$step": step_id, "path": path}


def check(*steps: dict[str, Any], output: Any = None, **members: Any) -> Diagnostics:
    tree = {"name": "n", "description": "d", "steps": list(steps), "output": output, **members}
    return validate_flow(flow_from_tree(tree))


def found(diagnostics: Diagnostics) -> list[tuple[int, str | None]]:
    return [(item.code, item.path) for item in diagnostics]


def only(diagnostics: Diagnostics) -> Any:
    (item,) = diagnostics
    return item


def test_a_sound_flow_has_no_diagnostics() -> None:
    diagnostics = check(step("a"), step("b", {"x": ref("a")}), output=ref("b"))
    assert found(diagnostics) == []
    assert diagnostics.to_tree() == {"diagnostics": [], "numFatal": 0, "numError": 0, "numWarning": 0}


# --- structure ---------------------------------------------------------------------------------------------------


def test_a_repeated_id_is_fatal_at_the_later_step() -> None:
    item = only(check(step("a"), step("b"), step("a"), output=[ref("a"), ref("b")]))
    assert (item.code, item.kind, item.level, item.path) == (3000, "duplicateStepId", "fatal", "$.steps[2].id")


@pytest.mark.parametrize("step_id", ["", "  ", "\t\n"])
def test_a_blank_id_is_fatal(step_id: str) -> None:
    assert (3001, "$.steps[0].id") in found(check(step(step_id)))


@pytest.mark.parametrize("step_id", ["workflow_output", "a b", "ü", "a.b[0]", "$x"])
def test_any_other_id_is_fine(step_id: str) -> None:
    assert found(check(step(step_id), output=ref(step_id))) == []


@pytest.mark.parametrize("name", [None, "", "  "])
def test_a_flow_should_have_a_name(name: str | None) -> None:
    item = only(check(name=name))
    assert (item.code, item.kind, item.level, item.path) == (1001, "missingFlowName", "warning", "$.name")


def test_a_flow_should_have_a_description() -> None:
    assert found(check(description=None)) == [(1002, "$.description")]


def test_an_input_schema_that_is_no_schema_is_warned_about() -> None:
    item = only(check(schemas={"properties": {"input": {"type": "strin"}}}))
    assert (item.code, item.kind, item.level) == (1903, "invalidInputSchema", "warning")
    assert item.path == "$.schemas.properties.input"
    shared = {"$defs": {"N": {"type": "integer"}}, "properties": {"input": {"$ref": "#/$defs/N"}}}
    assert found(check(schemas=shared)) == []


# --- references --------------------------------------------------------------------------------------------------


def test_a_step_may_not_refer_to_itself() -> None:
    item = only(check(step("a", {"x": [ref("a")]})))
    assert (item.code, item.kind, item.level) == (3002, "selfReference", "fatal")
    assert item.path == "$.steps[0].input.x[0]"


def test_references_point_to_earlier_steps() -> None:
    item = only(check(step("a", ref("b")), step("b"), output=[ref("a"), ref("b")]))
    assert (item.code, item.kind, item.level) == (3003, "undefinedStepReference", "fatal")
    assert item.path == "$.steps[0].input"
    assert item.data == {"from_step": "a", "referenced_step": "b"}
    assert "comes later; steps refer to earlier ones" in item.formatted


def test_a_cycle_is_told_as_one() -> None:
    steps = (step("a", ref("c")), step("b", ref("a")), step("c", {"$variable": "v", "default": ref("b")}))
    fatal = [item for item in check(*steps, output=ref("c")) if item.level == "fatal"]
    assert [item.code for item in fatal] == [3003]
    assert "comes later and needs 'a' itself (a cycle)" in fatal[0].formatted


def test_references_to_unknown_steps_are_fatal() -> None:
    item = only(check(step("alpha", ref("beta")), output=ref("alpha")))
    assert (item.code, item.path) == (3003, "$.steps[0].input")
    assert "does not exist" in item.formatted
    item = only(check(step("alpha"), output=[ref("alpha"), ref("alhpa")]))
    assert (item.code, item.path) == (3003, "$.output[1]")
    assert item.data == {"from_step": "workflow_output", "referenced_step": "alhpa"}
    assert "did you mean `alpha`?" in item.formatted


def test_the_output_may_refer_to_every_step() -> None:
    assert found(check(step("a"), step("b"), output={"x": ref("b"), "y": ref("a")})) == []


@pytest.mark.parametrize(
    ("expression", "path"),
    [
        ({"k": ref("?")}, ".k"),
        ({"a.b": ref("?")}, '["a.b"]'),
        ([0, ref("?")], "[1]"),
        ({"$coalesce": [None, ref("?")]}, "[1]"),
        ({"$if": ref("?"), "then": 1}, ".condition"),
        ({"$if": 1, "then": ref("?")}, ".then"),
        ({"$if": 1, "then": 1, "else": ref("?")}, ".else"),
        ({"$if": 1, "then": {"x": [{"$coalesce": [ref("?")]}]}}, ".then.x[0][0]"),
    ],
)
def test_places_within_expressions_have_one_spelling(expression: Any, path: str) -> None:
    assert found(check(output=expression)) == [(3003, "$.output" + path)]


def test_a_default_has_the_place_of_its_variable() -> None:
    diagnostics = check(output={"v": {"$variable": "x", "default": ref("?")}})
    assert (3003, "$.output.v") in found(diagnostics)


def test_nothing_within_a_literal_is_a_reference() -> None:
    assert found(check(output={"$literal": ref("?")})) == []


# --- fields that nothing vouches for -----------------------------------------------------------------------------


def test_a_path_into_a_step_is_not_checked_before_the_run() -> None:
    schemas = {"properties": {"steps": {"properties": {"a": {"type": "object"}}}}}
    item = only(check(step("a"), output=ref("a", "x"), schemas=schemas))
    assert (item.code, item.kind, item.level, item.path) == (1003, "unvalidatedFieldAccess", "warning", "$.output")
    assert item.experimental
    assert item.to_tree()["experimental"] is True


def test_a_path_into_the_input_is_fine_with_a_schema() -> None:
    assert found(check(output={"$input": "x"})) == [(1003, "$.output")]
    assert found(check(output={"$input": None})) == []
    assert found(check(output={"$input": "x"}, schemas={"properties": {"input": {}}})) == []


VARIABLES = {"properties": {"variables": {"properties": {"known": {"type": "object"}}}}}


def test_a_path_into_a_variable_is_not_checked_before_the_run() -> None:
    assert found(check(output={"$variable": "known.x"}, schemas=VARIABLES)) == [(1003, "$.output")]
    assert found(check(output={"$variable": "known"}, schemas=VARIABLES)) == []


def test_a_path_into_what_does_not_exist_is_one_finding() -> None:
    assert [code for code, _ in found(check(output=ref("nowhere", "x")))] == [3003]
    assert [code for code, _ in found(check(output={"$variable": "unknown.x"}, schemas=VARIABLES))] == [2005]


# --- variables ---------------------------------------------------------------------------------------------------


def test_variables_should_be_declared() -> None:
    diagnostics = check(output=[{"$variable": "x"}, {"$variable": "y.z", "default": 1}])
    assert found(diagnostics) == [(1004, "$.variables")] * 2
    assert only(check(output={"$variable": "x"})).kind == "missingVariableSchema"


def test_an_undeclared_variable_is_an_error() -> None:
    item = only(check(output={"$variable": "knwon"}, schemas=VARIABLES))
    assert (item.code, item.kind, item.level) == (2005, "undefinedRequiredVariable", "error")
    assert "did you mean `known`?" in item.formatted
    item = only(check(output={"$variable": "other", "default": None}, schemas=VARIABLES))
    assert (item.code, item.kind, item.level, item.path) == (2004, "undefinedVariable", "error", "$.output")


# --- components, reachability ------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["", "x", "builtin/eval", "http://x/y"])
def test_a_component_path_begins_with_a_slash(component: str) -> None:
    item = only(check(step("a", component=component), output=ref("a")))
    assert (item.code, item.kind, item.level) == (2500, "invalidComponent", "error")
    assert item.path == "$.steps[0].component"


def test_a_step_that_nothing_refers_to_is_warned_about() -> None:
    steps = (
        step("unused", ref("used_by_unused")),
        step("forced", mustExecute=True),
        step("branch"),
        step("in_default"),
    )
    output = [{"$if": 1, "then": ref("branch")}, {"$variable": "known", "default": ref("in_default")}]
    diagnostics = check(step("used_by_unused"), *steps, output=output, schemas=VARIABLES)
    assert found(diagnostics) == [(1000, "$.steps[1]"), (1000, "$.steps[2]"), (1000, "$.steps[4]")]
    assert {item.kind for item in diagnostics} == {"unreachableStep"}
    assert next(iter(diagnostics)).formatted == "Step 'unused' is not reachable from the output"


# --- embedded flows ----------------------------------------------------------------------------------------------


def put_blob(data: Any, blob_type: Any = "flow", component: str = "/builtin/put_blob") -> Diagnostics:
    return check(step("put", {"data": data, "blob_type": blob_type}, component), output=ref("put"))


SOUND = {"name": "n", "description": "d"}


@pytest.mark.parametrize("component", ["/builtin/put_blob", "/put_blob"])
def test_an_embedded_flow_is_checked_as_part_of_the_outer_one(component: str) -> None:
    inner = {**SOUND, "steps": [step("one", ref("two")), step("two")], "output": ref("one")}
    diagnostics = put_blob({"$literal": inner}, component=component)
    assert found(diagnostics) == [(3003, "$.steps[0].input.data.$literal.steps[0].input")]
    assert diagnostics.num_fatal == 1


def test_embedded_flows_nest() -> None:
    innermost = {**SOUND, "output": ref("?")}
    inner = {
        **SOUND,
        "steps": [step("put", {"data": {"$literal": innermost}, "blob_type": "flow"}, "/put_blob")],
        "output": ref("put"),
    }
    path = "$.steps[0].input.data.$literal.steps[0].input.data.$literal.output"
    assert found(put_blob({"$literal": inner})) == [(3003, path)]


def test_a_literal_that_is_no_flow_is_an_error() -> None:
    item = only(put_blob({"$literal": {"steps": [{"id": "x"}]}}))
    assert (item.code, item.kind, item.level) == (2003, "invalidSubflowLiteral", "error")
    assert item.path == "$.steps[0].input.data.$literal.steps[0].component"
    assert found(put_blob("text")) == [(2003, "$.steps[0].input.data")]


@pytest.mark.parametrize(
    ("data", "blob_type"),
    [
        ({"$literal": {"steps": 5}}, "data"),
        ({"$literal": {"steps": 5}}, {"$variable": "t", "default": "flow"}),
        ({"$input": None}, "flow"),
    ],
)
def test_only_literal_flows_are_checked(data: Any, blob_type: Any) -> None:
    assert {code for code, _ in found(put_blob(data, blob_type))} <= {1004}


@pytest.mark.parametrize(("component", "member"), [("/builtin/map", "workflow"), ("/builtin/iterate", "flow")])
def test_the_inner_flow_of_a_builtin_is_checked(component: str, member: str) -> None:
    def inner(flow: Any) -> list[tuple[int, str | None]]:
        return found(check(step("m", {member: {"$literal": flow}}, component), output=ref("m")))

    path = f"$.steps[0].input.{member}.$literal"
    assert inner({"steps": 5, "output": {"$step": 1}}) == [(2003, f"{path}.steps"), (2003, f"{path}.output.$step")]
    assert inner({"output": {"$step": "gone"}}) == [(2003, f"{path}.output")]
    assert inner({"outputs": 1}) == [(2006, f"{path}.outputs")]
    assert inner({"output": 1}) == []


# --- collections -------------------------------------------------------------------------------------------------


def test_diagnostics_come_in_the_order_of_the_checks() -> None:
    diagnostics = check(
        step("a", ref("a")), step("", component="x"), step("c", ref("nope")), output=ref("?"), name=None
    )
    assert [code for code, _ in found(diagnostics)] == [3001, 1001, 3002, 3003, 3003, 2500, 1000, 1000]
    tree = diagnostics.to_tree()
    assert (tree["numFatal"], tree["numError"], tree["numWarning"]) == (4, 1, 3)
    assert tree["diagnostics"][2] == {
        "kind": "selfReference",
        "code": 3002,
        "level": "fatal",
        "formatted": "Step 'a' refers to itself",
        "data": {"step_id": "a"},
        "path": "$.steps[0].input",
    }


def test_the_number_of_diagnostics_is_bounded_and_fatal_ones_are_not_crowded_out() -> None:
    many = [ref("a", "x")] * 5_000
    diagnostics = check(step("a"), output=[*many, ref("?")])
    assert (diagnostics.num_warning, diagnostics.num_fatal) == (1_000, 1)
    assert len(check(output=[ref("?")] * 5_000)) == 100


def test_parse_warnings_can_be_put_in_front() -> None:
    flow = flow_from_tree({"zzz": 1})
    assert [code for code, _ in found(Diagnostics(flow.warnings) + validate_flow(flow))] == [1900, 1001, 1002]


# --- configuration -----------------------------------------------------------------------------------------------


def test_routes_and_plugins_must_fit_together() -> None:
    diagnostics = validate_config(["builtin", "spare"], {"/b": ["builtin"], "/x.y": ["builtin", "bultin"]})
    assert found(diagnostics) == [(1202, "$.plugins.spare"), (2200, '$.routes["/x.y"][1].plugin')]
    assert [item.level for item in diagnostics] == ["warning", "error"]
    assert "did you mean `builtin`?" in list(diagnostics)[1].formatted


def test_an_empty_configuration_is_warned_about() -> None:
    diagnostics = validate_config([], {})
    assert found(diagnostics) == [(1200, "$.plugins"), (1201, "$.routes")]
    assert [item.kind for item in diagnostics] == ["noPluginsConfigured", "noRoutingRulesConfigured"]
