"""The check of a flow before a run: levels and places of findings, inner flows, values, bounds."""

import time
from typing import Any

import pytest

from component_host.builtin.schemas import BUILTINS
from stepflow.check import Catalogue, KnownComponent, KnownPlugin, check_against, check_flow
from stepflow.errors import Invalid
from stepflow.flow import Diagnostics, flow_from_tree
from stepflow.routing.table import Rule

QUESTION = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "language": {"type": "string"}},
    "required": ["question"],
}
OPEN = {"type": "object", "properties": {"text": {"type": "string"}}}

BUILTIN = KnownPlugin(
    tuple(KnownComponent(one.component, one.path, one.input_schema, one.output_schema) for one in BUILTINS),
    is_builtin=True,
)
MINE = KnownPlugin((KnownComponent("/ask", "/ask", QUESTION, OPEN),))
ROUTES = {name: (Rule(name[1:]),) for name in ("/builtin", "/mine", "/open", "/away")}
SHOP = Catalogue(ROUTES, {"builtin": BUILTIN, "mine": MINE, "open": KnownPlugin(MINE.components, is_complete=False)})


def step(name: str, component: str, value: Any = None, **members: Any) -> dict[str, Any]:
    return {"id": name, "component": component, "input": value, **members}


def against(
    *steps: dict[str, Any],
    output: Any = None,
    catalogue: Catalogue = SHOP,
    variables: dict[str, Any] | None = None,
    overrides: Any = None,
    **members: Any,
) -> Diagnostics:
    flow = flow_from_tree({"steps": list(steps), "output": output, **members})
    return check_against(flow, catalogue=catalogue, variables=variables, overrides=overrides)


def codes(found: Diagnostics) -> list[tuple[int, str, str | None]]:
    return [(item.code, item.level, item.path) for item in found]


# --- components and routes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        ("/mine/ask", []),
        ("/away/any", []),
        ("/open/ask", []),
        ("/mine/aks", [(2900, "error")]),
        ("/builtin/opneai", [(2900, "error")]),
        ("/none/ask", [(2901, "error")]),
        ("/open/aks", [(2900, "warning")]),
    ],
)
def test_components_exist_or_are_unknown(component: str, expected: list[tuple[int, str]]) -> None:
    found = against(step("a", component, {"question": "why"}))
    assert codes(found) == [(code, level, "$.steps[0].component") for code, level in expected]
    assert found.blocks == any(level == "error" for _, level in expected)


def test_routes_that_may_be_missing_in_the_list_only_warn() -> None:
    found = against(step("a", "/none/ask"), catalogue=Catalogue(ROUTES, has_all_routes=False))
    assert codes(found) == [(2901, "warning", "$.steps[0].component")]


def test_a_plugin_without_a_host_warns() -> None:
    found = against(step("a", "/mine/aks"), catalogue=Catalogue(ROUTES, {}, frozenset(("mine",))))
    assert codes(found) == [(1906, "warning", "$.steps[0].component")]
    assert not found.blocks


def test_a_component_that_no_rule_admits_is_an_error() -> None:
    routes = {"/mine": (Rule("mine", deny=frozenset(("/ask",))),)}
    assert codes(against(step("a", "/mine/ask"), catalogue=Catalogue(routes, {"mine": MINE}))) == [
        (2902, "error", "$.steps[0].component")
    ]


def test_overrides_are_checked_instead_of_what_they_replace() -> None:
    wrong = step("a", "/mine/aks", {"question": "why"})
    right = {"steps": {"a": {"value": {"component": "/mine/ask"}}}}
    assert against(wrong, overrides=right).items == ()
    assert codes(
        against(
            step("a", "/mine/ask", {"question": "w"}), overrides={"steps": {"a": {"value": {"component": "/mine/x"}}}}
        )
    )
    with pytest.raises(Invalid, match="there is no step"):
        against(wrong, overrides={"steps": {"b": {"value": {}}}})


# --- inner flows -----------------------------------------------------------------------------------------------------


def inner(component: str, value: Any = None, **members: Any) -> dict[str, Any]:
    return {"$literal": {"steps": [step("x", component, value)], "output": {"$step": "x"}, **members}}


@pytest.mark.parametrize(
    ("component", "member", "others"),
    [("/builtin/map", "workflow", {"items": [1]}), ("/builtin/iterate", "flow", {"initial_input": 1})],
)
def test_inner_flows_are_checked_with_places_in_the_outer_document(component: str, member: str, others: Any) -> None:
    found = against(step("a", component, {member: inner("/mine/aks"), **others}))
    assert codes(found) == [(2900, "error", f"$.steps[0].input.{member}.$literal.steps[0].component")]


def test_the_flow_of_eval_is_checked_where_it_is_stored() -> None:
    stored = step("s", "/builtin/put_blob", {"blob_type": "flow", "data": inner("/mine/aks")})
    run = step("a", "/builtin/eval", {"flow_id": {"$step": "s", "path": "blob_id"}, "input": 1})
    assert codes(against(stored, run)) == [(2900, "error", "$.steps[0].input.data.$literal.steps[0].component")]
    assert len(against(stored, run, {**run, "id": "again"})) == 1, "each finding once"
    assert against(stored).items == (), "a flow that is only stored may be for another mesh"


def test_an_inner_flow_without_quotes_is_checked_if_nothing_in_it_is_resolved_outside() -> None:
    plain = {"steps": [step("x", "/mine/aks", {"question": "why"})]}
    found = against(step("a", "/builtin/map", {"workflow": plain, "items": [1]}))
    assert codes(found) == [(2900, "error", "$.steps[0].input.workflow.steps[0].component")]


def test_inner_flows_are_checked_at_any_depth() -> None:
    flow: Any = inner("/mine/aks")
    for _ in range(12):
        flow = {
            "$literal": {
                "steps": [step("m", "/builtin/map", {"workflow": flow, "items": [1]})],
                "output": {"$step": "m"},
            }
        }
    found = against(step("a", "/builtin/map", {"workflow": flow, "items": [1]}))
    assert [item.code for item in found] == [2900]
    assert found.items[0].path is not None
    assert found.items[0].path.count("$literal") == 13


def test_an_inner_flow_that_needs_a_variable_cannot_work() -> None:
    uses = {"question": {"$variable": "q"}}
    found = against(step("a", "/builtin/map", {"workflow": inner("/mine/ask", uses), "items": [1]}))
    assert codes(found) == [(2906, "error", "$.steps[0].input.workflow.$literal.steps[0].input.question")]
    defaulted = {"question": {"$variable": "q", "default": "why"}}
    assert against(step("a", "/builtin/map", {"workflow": inner("/mine/ask", defaulted), "items": [1]})).items == ()


# --- members, inputs, paths ------------------------------------------------------------------------------------------


def test_a_builtin_reads_no_other_members_but_openai_passes_them_on() -> None:
    found = against(step("a", "/builtin/sleep", {"duration_ms": 1, "passthru": 1}))
    assert codes(found) == [(2903, "error", "$.steps[0].input.passthru")]
    assert against(step("a", "/builtin/openai", {"messages": [], "seed": 7})).items == ()
    assert against(step("a", "/builtin/noop", {"anything": 7})).items == ()


def test_a_member_may_refer_to_a_step_for_the_order_alone() -> None:
    first = step("a", "/builtin/noop", 1)
    assert against(first, step("b", "/builtin/sleep", {"duration_ms": 1, "after": {"$step": "a"}})).items == ()
    found = against(first, step("b", "/builtin/sleep", {"duration_ms": 1, "passthru": {"$step": "a"}}))
    assert codes(found) == [(2903, "error", "$.steps[1].input.passthru")]


def test_members_are_found_in_the_branches_of_an_input() -> None:
    value = {"$if": {"$input": "x"}, "then": {"duration_ms": 1}, "else": {"duration_ms": 1, "durations": 2}}
    assert codes(against(step("a", "/builtin/sleep", value))) == [(2903, "error", "$.steps[0].input.else.durations")]
    quoted = {"$literal": {"duration_ms": 1, "durations": 2}}
    assert codes(against(step("a", "/builtin/sleep", quoted))) == [
        (2903, "error", "$.steps[0].input.$literal.durations")
    ]


def test_a_member_that_an_open_schema_lacks_warns_if_it_resembles_one_that_is_not_given() -> None:
    found = against(step("a", "/mine/ask", {"question": "why", "langauge": "fr"}))
    assert codes(found) == [(2903, "warning", "$.steps[0].input.langauge")]
    assert against(step("a", "/mine/ask", {"question": "why", "language": "en", "langauges": []})).items == ()
    assert against(step("a", "/mine/ask", {"question": "why", "trace": True})).items == ()


def test_an_input_that_cannot_fit_is_an_error_unless_the_step_has_a_default() -> None:
    value = {"question": 7}
    assert codes(against(step("a", "/mine/ask", value))) == [(2100, "error", "$.steps[0].input.question")]
    default = {"action": "useDefault", "defaultValue": None}
    assert codes(against(step("a", "/mine/ask", value, onError=default))) == [
        (2100, "warning", "$.steps[0].input.question")
    ]


def test_a_member_that_an_open_output_does_not_name_may_be_there() -> None:
    steps = (step("a", "/mine/ask", {"question": "why"}), step("b", "/mine/ask", {"$step": "a"}))
    assert codes(against(*steps)) == [(2100, "warning", "$.steps[1].input")]


def test_what_may_fit_and_what_a_run_does_not_check_is_left_to_the_type_check() -> None:
    maybe = {"question": {"$if": {"$input": "x"}, "then": "why", "else": 7}}
    assert against(step("a", "/mine/ask", maybe)).items == ()
    declared = {"properties": {"output": {"type": "integer"}}}
    assert against(output="text", schemas=declared).items == ()
    assert (
        against(
            step("a", "/mine/ask", {"question": {"$input": "v"}}),
            step("b", "/builtin/sleep", {"duration_ms": {"$input": "v"}}),
            output=[{"$step": "a"}, {"$step": "b"}],
        ).items
        == ()
    )


def test_paths_that_cannot_exist_are_errors_in_closed_schemas_and_warnings_in_open_ones() -> None:
    closed = step("a", "/builtin/create_messages", {"user_prompt": "hi"})
    assert codes(against(closed, output={"$step": "a", "path": "mesages"})) == [(2101, "error", "$.output")]
    opened = step("a", "/mine/ask", {"question": "why"})
    assert codes(against(opened, output={"$step": "a", "path": "txt"})) == [(2101, "warning", "$.output")]


def test_a_condition_may_ask_whether_an_open_output_has_a_member() -> None:
    opened = step("a", "/mine/ask", {"question": "why"})
    asked = {"$step": "a", "path": "txt"}
    assert against(opened, output={"$if": asked, "then": asked}).items == ()
    assert against(opened, output={"$if": asked, "then": {"$step": "a", "path": "txt.more"}}).items == ()
    other = {"$if": asked, "then": {"$step": "a", "path": "other"}}
    assert codes(against(opened, output=other)) == [(2101, "warning", "$.output.then")]
    closed = step("a", "/builtin/create_messages", {"user_prompt": "hi"})
    assert [item.level for item in against(closed, output={"$if": asked, "then": asked})] == ["warning", "error"]


# --- variables -------------------------------------------------------------------------------------------------------

DECLARED = {
    "properties": {
        "variables": {
            "type": "object",
            "properties": {"model": {"type": "string"}, "size": {"type": "string", "default": "s"}, "notes": {}},
            "required": ["model"],
        }
    }
}


def test_variables_are_not_checked_before_their_values_are_known() -> None:
    assert against(output={"$variable": "model"}, schemas=DECLARED).items == ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"model": "m"}, []),
        ({"model": None}, []),
        ({}, [(2904, "error", "$.schemas.properties.variables.properties.model")]),
        ({"model": "m", "colour": 1}, [(2905, "warning", None)]),
        ({"model": "m", "sizes": 1}, [(2905, "error", None)]),
        ({"model": "m", "size": "l", "sizes": 1}, [(2905, "warning", None)]),
    ],
)
def test_required_variables_have_values_and_given_ones_exist(given: dict[str, Any], expected: list[Any]) -> None:
    assert codes(against(output={"$variable": "model"}, schemas=DECLARED, variables=given)) == expected


@pytest.mark.parametrize(
    ("use", "level"),
    [
        ({"$variable": "notes"}, "error"),
        ([{"x": {"$variable": "notes"}}], "error"),
        ({"$if": {"$variable": "notes"}, "then": 1}, None),
        ([{"$if": {"$input": "x"}, "then": {"$variable": "notes"}}, {"$variable": "notes"}], "error"),
        ({"$coalesce": [{"$variable": "notes"}, 1]}, "error"),
        ({"$if": {"$input": "x"}, "then": {"$variable": "notes"}}, "warning"),
        ({"$coalesce": [{"$input": "x"}, {"$variable": "notes"}]}, "warning"),
        ({"$variable": "notes", "default": 1}, None),
        ({"$variable": "size"}, None),
        ({"$literal": {"$variable": "notes"}}, None),
    ],
)
def test_a_use_without_value_and_default_is_an_error_if_each_run_evaluates_it(use: Any, level: str | None) -> None:
    for members in ({"output": use}, {"output": {"$step": "a"}, "steps": [step("a", "/away/any", use)]}):
        tree = {"schemas": DECLARED, **members}
        found = check_against(flow_from_tree(tree), catalogue=SHOP, variables={"model": "m"})
        assert [item.level for item in found] == ([] if level is None else [level])


def test_a_use_in_a_step_that_a_run_may_leave_out_warns() -> None:
    branch = {"$if": {"$input": "x"}, "then": {"$step": "a"}}
    found = against(step("a", "/away/any", {"$variable": "notes"}), output=branch, variables={})
    assert [(item.code, item.level) for item in found] == [(2904, "warning")]
    found = against(step("a", "/away/any", {"$variable": "n"}, mustExecute=True), variables={})
    assert [(item.code, item.level) for item in found] == [(2904, "warning")], "the flow does not need its result"


def test_values_of_variables_are_in_no_finding() -> None:
    found = against(output={"$variable": "modle"}, variables={"model": "s3cret", "colour": "s3cret"})
    assert found.items
    assert "s3cret" not in repr(found)


# --- the whole -------------------------------------------------------------------------------------------------------


def test_the_whole_check_has_the_findings_of_the_text_and_of_the_flow_alone_first() -> None:
    flow = flow_from_tree({"steps": [step("a", "/mine/aks")], "outputs": {"$step": "a"}})
    found = check_flow(flow, catalogue=SHOP)
    assert next(item.code for item in found) == 2006
    assert {2006, 1001, 1002, 2900} <= {item.code for item in found}
    assert found.blocks


def test_a_flow_with_fatal_findings_is_checked_no_further() -> None:
    flow = flow_from_tree({"steps": [step("a", "/mine/aks", {"$step": "b"})]})
    assert [item.code for item in check_flow(flow, catalogue=SHOP) if item.level != "warning"] == [3003]


def test_warnings_can_be_silenced_and_errors_cannot() -> None:
    silent = {"metadata": {"ignoreWarnings": [2900, "unknownComponent"]}}
    assert against(step("a", "/open/aks"), **silent).items == ()
    assert codes(against(step("a", "/mine/aks"), **silent))


def test_a_flow_full_of_unknown_components_is_refused_in_short_time() -> None:
    many = KnownPlugin(tuple(KnownComponent(f"/c{number}", f"/c{number}") for number in range(5_000)))
    catalogue = Catalogue({"/m": (Rule("m"),)}, {"m": many})
    steps = [step(f"s{number}", f"/m/x{number}") for number in range(2_000)]
    begun = time.process_time()
    found = against(*steps, catalogue=catalogue)
    assert len(found) == 100
    assert time.process_time() - begun < 5
