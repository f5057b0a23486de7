"""Parsing documents to flows: the shape of every field, errors with line and field, warnings about ignored fields."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepflow import codec
from stepflow.codec import Json
from stepflow.errors import Failure, Invalid
from stepflow.flow import (
    Backoff,
    Env,
    Flow,
    FlowInvalid,
    OnError,
    Redactor,
    SecretMap,
    Step,
    compile_flow,
    flow_bytes,
    flow_document,
    flow_from_tree,
    parse_duration_ms,
    parse_flow,
    validate_flow,
)
from stepflow.flow.members import PROBLEMS_MAX
from stepflow.flow.source import PROBLEMS_SHOWN_MAX


def read(text: str) -> Flow:
    return parse_flow(text, source="flow.yaml", format="yaml")


def refusal(text: str) -> FlowInvalid:
    with pytest.raises(FlowInvalid) as caught:
        read(text)
    return caught.value


def step(**members: Any) -> Step:
    return flow_from_tree({"steps": [{"id": "a", "component": "/x", **members}]}).steps[0]


def step_refusal(**members: Any) -> FlowInvalid:
    with pytest.raises(FlowInvalid) as caught:
        step(**members)
    return caught.value


def warnings(tree: dict[str, Any]) -> list[tuple[int, str | None, str]]:
    return [(item.code, item.path, item.formatted) for item in flow_from_tree(tree).warnings]


# --- the flow ----------------------------------------------------------------------------------------------------


def test_nothing_is_required_of_a_flow() -> None:
    assert read("{}") == Flow()


def test_an_explicit_null_is_absence() -> None:
    members = ("name", "description", "version", "schemas", "steps", "output", "test", "examples", "metadata")
    assert flow_from_tree(dict.fromkeys(members)) == Flow()
    steps = {"input": None, "onError": None, "mustExecute": None, "metadata": None, "timeout": None}
    assert step(**steps) == Step("a", "/x")


def test_a_whole_flow_is_read() -> None:
    flow = read(
        """
schema: https://stepflow.org/schemas/v1/flow.json
name: greet
description: says hello
version: "1.2"
schemas:
  type: object
  $defs: {Name: {type: string}}
  properties:
    input: {type: object, properties: {name: {$ref: "#/$defs/Name"}}}
steps:
  - id: hello
    component: /greeter/hello
    input: {who: {$input: name}}
    onError: {action: useDefault, defaultValue: {text: hi}}
    mustExecute: true
    timeout: 2m
    idleTimeout: 1.5s
    metadata: {owner: me}
output: {$step: hello, path: text}
test:
  configFile: other.yml
  cases:
    - {name: one, input: {name: Ada}, output: {outcome: success, result: hi}}
examples:
  - {name: two, description: another, input: {name: Bob}}
metadata: {team: core}
"""
    )
    assert flow.warnings == ()
    assert (flow.name, flow.description, flow.version) == ("greet", "says hello", "1.2")
    assert flow.schema("input")["properties"] == {"name": {"$ref": "#/$defs/Name"}}
    assert flow.schema("output") is None
    assert flow.schema_definitions == {"Name": {"type": "string"}}
    assert flow.steps == (
        Step(
            id="hello",
            component="/greeter/hello",
            input={"who": {"$input": "$.name"}},
            on_error=OnError("useDefault", {"text": "hi"}, has_default=True),
            must_execute=True,
            metadata={"owner": "me"},
            timeout_ms=120_000,
            idle_timeout_ms=1_500,
        ),
    )
    assert flow.output == {"$step": "hello", "path": "$.text"}
    assert flow.metadata == {"team": "core"}
    assert [example["name"] for example in flow.all_examples()] == ["two", "one"]


@pytest.mark.parametrize("text", ["", "[]", "3", "just text"])
def test_a_document_that_is_no_mapping_is_no_flow(text: str) -> None:
    assert "a flow is a mapping" in refusal(text).message


def test_the_same_flow_may_be_written_as_json() -> None:
    text = '{"name": "n", "steps": [{"id": "a", "component": "/x"}], "output": {"$step": "a"}}'
    assert parse_flow(text, source="flow.json", format="json") == read(text)


@pytest.mark.parametrize(
    ("text", "field", "line", "says"),
    [
        ("name: 3", "$.name", 1, "must be text, not a number"),
        ("steps: {}", "$.steps", 1, "must be a list, not a mapping"),
        ("output: 1\nmetadata: []", "$.metadata", 2, "must be a mapping, not a list"),
        ("steps:\n- id: a\n", "$.steps[0].component", 2, "is required"),
        ("steps:\n- component: /x\n", "$.steps[0].id", 2, "is required"),
        ("steps:\n- ID: a\n  component: /x\n", "$.steps[0].id", 2, "is required"),
        ("steps:\n- idd: a\n  component: /x\n", "$.steps[0].id", 2, "did you mean it by `idd`?"),
        ("steps:\n- 5\n", "$.steps[0]", 2, "a step is a mapping"),
        ("steps:\n- id: 5\n  component: /x", "$.steps[0].id", 2, "put it in quotes"),
        ("steps:\n- id: a\n  component: /x\n  mustExecute: yes", "$.steps[0].mustExecute", 4, "true or false"),
        ("steps:\n- id: a\n  component: /x\n  timeout: 5", "$.steps[0].timeout", 4, "with a unit"),
        ("schemas: []", "$.schemas", 1, "must be a mapping"),
        ("schemas:\n  properties:\n    input: text", "$.schemas.properties.input", 3, "a schema is a mapping"),
        ("schemas:\n  properties:\n    variables: true", "$.schemas.properties.variables", 3, "an object schema"),
        ("test:\n  cases:\n  - name: x", "$.test.cases[0].input", 3, "is required (it may be null)"),
        ("test:\n  cases:\n  - input: x", "$.test.cases[0].name", 3, "is required"),
        ("examples:\n- name: x", "$.examples[0].input", 2, "is required"),
        ("steps:\n- id: a.b\n  component: /x\n  input:\n    k.x: {$step: 1}", '$.steps[0].input["k.x"].$step', 5, "id"),
    ],
)
def test_errors_name_file_line_and_field(text: str, field: str, line: int, says: str) -> None:
    error = refusal(text)
    assert (error.source, error.field, error.line) == ("flow.yaml", field, line)
    assert error.message.startswith(f"flow.yaml:{line}:{error.column}: {field}: ")
    assert says in error.message


def test_errors_in_a_tree_name_the_field_alone() -> None:
    error = step_refusal(timeout="soon")
    assert (error.line, error.column) == (0, 0)
    assert error.message.startswith("flow: $.steps[0].timeout: ")


def test_an_unquoted_version_is_read_as_text_with_a_warning() -> None:
    flow = read("version: 1.0")
    assert flow.version == "1.0"
    assert [(item.code, item.path) for item in flow.warnings] == [(1902, "$.version")]


def test_a_tree_that_is_too_deep_is_refused() -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    assert step_refusal(input=deep).reason == "JSON_TOO_DEEP"


# --- schemas -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schemas", [None, {}, {"type": "object"}, {"properties": {}}, {"properties": {"input": None}}])
def test_there_are_many_ways_to_have_no_schemas(schemas: Any) -> None:
    assert flow_from_tree({"schemas": schemas}).schemas == {}


@pytest.mark.parametrize("part", ["input", "output", "variables", "steps"])
def test_schemas_without_the_properties_wrapper_are_refused(part: str) -> None:
    error = refusal(f"schemas:\n  {part}: {{type: object}}")
    assert (error.field, error.line) == (f"$.schemas.{part}", 2)
    assert f"write `schemas.properties.{part}`" in error.message


def test_schemas_are_written_in_one_order() -> None:
    schemas = {"properties": {"output": {"type": "string"}, "input": {}}, "$defs": {"D": {}}}
    written = flow_from_tree({"schemas": schemas}).schemas
    assert codec.encode(written) == codec.encode(
        {"type": "object", "$defs": {"D": {}}, "properties": {"input": {}, "output": {"type": "string"}}}
    )


# --- onError -----------------------------------------------------------------------------------------------------


def test_a_default_is_literal_json() -> None:
    default = {"$input": "x", "more": [{"$step": 5}]}
    assert step(onError={"action": "useDefault", "defaultValue": default}).on_error.default == default


def test_the_default_of_use_default_is_null() -> None:
    assert step(onError={"action": "useDefault"}).on_error == OnError("useDefault", None, has_default=True)


@pytest.mark.parametrize("written", [{"action": "fail"}, None])
def test_failing_is_the_default(written: Any) -> None:
    assert step(onError=written).on_error == OnError("fail")


@pytest.mark.parametrize(
    ("retries", "read_as"), [({}, None), ({"maxRetries": None}, None), ({"maxRetries": 0}, 0), ({"maxRetries": 2.0}, 2)]
)
def test_retries_are_counted(retries: dict[str, Any], read_as: int | None) -> None:
    assert step(onError={"action": "retry", **retries}).on_error.max_retries == read_as


@pytest.mark.parametrize("count", [-1, 2.5, "3", True, 2**32, [1]])
def test_a_number_of_retries_is_a_whole_number(count: Any) -> None:
    error = step_refusal(onError={"action": "retry", "maxRetries": count})
    assert error.field == "$.steps[0].onError.maxRetries"


@pytest.mark.parametrize(
    "written", [{"action": "continue"}, {"action": "use_default"}, {"action": "Retry"}, {}, "fail"]
)
def test_an_unknown_action_is_refused(written: Any) -> None:
    error = step_refusal(onError=written)
    assert error.field == "$.steps[0].onError.action"
    assert "must be `fail`, `useDefault` or `retry`" in error.message


def test_a_mistyped_action_gets_a_suggestion() -> None:
    assert "did you mean `useDefault`?" in step_refusal(onError={"action": "use_default"}).message


@pytest.mark.parametrize(
    ("written", "backoff"),
    [
        ({"type": "constant", "delayMs": 5}, Backoff("constant", 5, 5)),
        ({"type": "constant", "delayMs": 5.0}, Backoff("constant", 5, 5)),
        (
            {"type": "exponential", "minDelayMs": 10, "maxDelayMs": 90, "factor": 3},
            Backoff("exponential", 10, 90, 3.0),
        ),
        ({"type": "fibonacci", "minDelayMs": 10}, Backoff("fibonacci", 10, 10_000)),
    ],
)
def test_a_step_may_have_its_own_backoff(written: dict[str, Any], backoff: Backoff) -> None:
    assert step(onError={"action": "retry", "backoff": written}).on_error.backoff == backoff


@pytest.mark.parametrize(
    ("written", "field"),
    [
        ({"type": "linear"}, "backoff.type"),
        ({"delayMs": 5}, "backoff.type"),
        ({"type": "constant", "delay": 5}, "backoff.delay"),
        ({"type": "constant", "delayMs": -1}, "backoff.delayMs"),
        ({"type": "fibonacci", "factor": 2}, "backoff.factor"),
        ({"type": "exponential", "factor": 0.5}, "backoff.factor"),
        ([], "backoff"),
    ],
)
def test_a_backoff_is_read_strictly(written: Any, field: str) -> None:
    error = step_refusal(onError={"action": "retry", "backoff": written})
    assert error.field == f"$.steps[0].onError.{field}"
    assert error.reason == "BACKOFF_INVALID"


def test_a_default_may_follow_the_retries() -> None:
    on_error = step(onError={"action": "retry", "then": {"action": "useDefault", "defaultValue": 7}}).on_error
    assert (on_error.action, on_error.default, on_error.has_default) == ("retry", 7, True)
    without = step(onError={"action": "retry"}).on_error
    assert (without.default, without.has_default) == (None, False)


@pytest.mark.parametrize(
    ("then", "field"),
    [
        ({"action": "fail"}, "then.action"),
        ({}, "then.action"),
        ("useDefault", "then.action"),
        ({"action": "useDefault", "default": 1}, "then.default"),
    ],
)
def test_what_follows_the_retries_is_read_strictly(then: Any, field: str) -> None:
    assert step_refusal(onError={"action": "retry", "then": then}).field == f"$.steps[0].onError.{field}"


# --- expressions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "field", "says"),
    [
        ({"$if": True}, "", "`$if` needs `then`"),
        ({"$coalesce": {}}, ".$coalesce", "takes a list"),
        ({"$step": None}, ".$step", "takes the id of a step"),
        ({"$step": "a", "path": 3}, ".path", "a path is a string"),
        ({"$step": "a", "path": "$x"}, ".path", "path `$x`"),
        ({"$input": 3}, ".$input", "a path is a string"),
        ({"$variable": None}, ".$variable", "takes a name or path"),
        ({"$variable": "x", "default": {"$from": 1}}, ".default.$from", "old way"),
        ({"$from": {"step": "a"}}, ".$from", "wrap it in `$literal`"),
        ([1, {"x": {"$if": 1, "then": {"$from": 1}}}], "[1].x.then.$from", "old way"),
        ({"$from": 1, "$step": "a"}, ".$from", "old way"),
    ],
)
def test_malformed_expressions_are_refused(expression: Any, field: str, says: str) -> None:
    with pytest.raises(FlowInvalid) as caught:
        flow_from_tree({"output": expression})
    assert caught.value.reason == "EXPRESSION_INVALID"
    assert caught.value.field == "$.output" + field
    assert says in caught.value.message
    assert step_refusal(input=expression).field == "$.steps[0].input" + field


@pytest.mark.parametrize(
    "data", [{"$from": 1}, {"$if": 1}, {"$coalesce": 5}, {"$literal": {"$step": 5}}, [{"$input": "$x"}]]
)
def test_nothing_is_interpreted_within_a_literal(data: Any) -> None:
    assert flow_from_tree({"output": {"$literal": data}}).output == {"$literal": data}


@pytest.mark.parametrize(
    ("written", "normalised"),
    [
        ({"$input": None}, {"$input": "$"}),
        ({"$input": ""}, {"$input": "$"}),
        ({"$input": "a.b[0]"}, {"$input": "$.a.b[0]"}),
        ({"$input": "$['x.y']"}, {"$input": '$["x.y"]'}),
        ({"path": "x", "$step": "s"}, {"$step": "s", "path": "$.x"}),
        ({"$step": "s", "path": None}, {"$step": "s"}),
        ({"$step": "s", "path": "$"}, {"$step": "s"}),
        ({"$step": "s", "$input": "x", "junk": 1}, {"$step": "s"}),
        ({"$variable": "x"}, {"$variable": "$.x"}),
        ({"$variable": "x", "default": None}, {"$variable": "$.x", "default": None}),
        ({"else": None, "then": 1, "$if": {"$input": "x"}}, {"$if": {"$input": "$.x"}, "then": 1}),
        ({"$if": 1, "then": 2, "else": 3}, {"$if": 1, "then": 2, "else": 3}),
        ({"$coalesce": [], "x": 1}, {"$coalesce": []}),
        ({"$literal": 1, "$if": 2, "x": 3}, {"$literal": 1}),
        ({"$custom": {"$input": "x"}, "b": 1, "a": 2}, {"$custom": {"$input": "$.x"}, "b": 1, "a": 2}),
        ([1, [{"$input": "x"}], None], [1, [{"$input": "$.x"}], None]),
        ({"$literal": {"z": 1, "a": {"$input": "x"}}}, {"$literal": {"z": 1, "a": {"$input": "x"}}}),
    ],
)
def test_expressions_have_one_normalised_spelling(written: Any, normalised: Any) -> None:
    output = flow_from_tree({"output": written}).output
    assert codec.encode(output) == codec.encode(normalised)
    assert codec.encode(flow_from_tree({"output": output}).output) == codec.encode(normalised)


def test_deep_expressions_are_read() -> None:
    deep: Any = {"$input": "x"}
    for _ in range(120):
        deep = {"$if": [deep], "then": 1}
    assert codec.encode(flow_from_tree({"output": deep}).output).count(b"$if") == 120


# --- tests and examples ------------------------------------------------------------------------------------------


def test_the_inline_config_of_a_test_has_two_spellings() -> None:
    for key in ("config", "stepflow_config"):
        assert flow_from_tree({"test": {key: {"plugins": {}}}}).test == {"config": {"plugins": {}}}


def test_test_inputs_are_plain_data() -> None:
    case = {"name": "x", "input": {"$from": 1}, "output": {"outcome": "success", "result": {"$step": 5}}}
    assert flow_from_tree({"test": {"cases": [case]}}).test == {"cases": [case]}


@pytest.mark.parametrize(
    ("expected", "field"),
    [
        ({"outcome": "skipped"}, "outcome"),
        ({"result": 1}, "outcome"),
        ("success", "outcome"),
        ({"outcome": "success"}, "result"),
        ({"outcome": "failed"}, "error"),
        ({"outcome": "failed", "error": "x"}, "error"),
        ({"outcome": "failed", "error": {"code": 3, "message": "x"}}, "error.code"),
        ({"outcome": "failed", "error": {"code": "component_failed", "message": "x"}}, "error.code"),
        ({"outcome": "failed", "error": {"code": "TIMEOUT"}}, "error.message"),
    ],
)
def test_an_expected_outcome_is_checked(expected: Any, field: str) -> None:
    with pytest.raises(FlowInvalid) as caught:
        flow_from_tree({"test": {"cases": [{"name": "x", "input": 1, "output": expected}]}})
    assert caught.value.field == f"$.test.cases[0].output.{field}"


def test_test_cases_are_examples_unless_their_name_is_taken() -> None:
    flow = flow_from_tree(
        {
            "examples": [{"name": "a", "input": 1}],
            "test": {"cases": [{"name": "a", "input": 2}, {"name": "b", "description": "d", "input": 3}]},
        }
    )
    assert flow.all_examples() == [{"name": "a", "input": 1}, {"name": "b", "description": "d", "input": 3}]


# --- warnings ----------------------------------------------------------------------------------------------------


def test_unknown_members_are_warned_about_with_a_suggestion() -> None:
    tree = {"outptu": 1, "steps": [{"id": "a", "component": "/x", "inptu": 2, "zzz": 1}]}
    assert warnings(tree) == [
        (1900, "$.outptu", "`outptu` is not a known member here; did you mean `output`?"),
        (1900, "$.steps[0].inptu", "`inptu` is not a known member here; did you mean `input`?"),
        (1900, "$.steps[0].zzz", "`zzz` is not a known member here"),
    ]


def test_members_beside_a_form_are_warned_about() -> None:
    assert warnings({"output": {"$step": "a", "pth": "x", "$input": "y"}}) == [
        (1900, "$.output.pth", "`pth` next to `$step` is not read; did you mean `path`?"),
        (1900, "$.output.$input", "`$input` next to `$step` is not read"),
    ]


def test_a_member_that_looks_like_a_form_is_warned_about() -> None:
    assert warnings({"output": {"$stepp": "a", "$ref": "x"}}) == [
        (1900, "$.output.$stepp", "`$stepp` is an ordinary member, not an expression; did you mean `$step`?")
    ]


@pytest.mark.parametrize(
    "member",
    ["inputSchema", "outputSchema", "input_schema", "output_schema", "input", "variables", "variables_schema"],
)
def test_legacy_members_of_a_flow_are_not_read(member: str) -> None:
    flow = flow_from_tree({member: {"x": 1}})
    assert flow == Flow()
    assert [(item.code, item.path) for item in flow.warnings] == [(1901, f"$.{member}")]
    assert flow_from_tree({member: None}).warnings == ()


@pytest.mark.parametrize(
    "member",
    ["skip", "skipIf", "skip_if", "on_error", "onSkip", "depends_on", "inputSchema", "output_schema"],
)
def test_legacy_members_of_a_step_are_not_read(member: str) -> None:
    flow = flow_from_tree({"steps": [{"id": "a", "component": "/x", member: {"action": "useDefault"}}]})
    assert flow.steps == (Step("a", "/x"),)
    assert [(item.code, item.path) for item in flow.warnings] == [(1901, f"$.steps[0].{member}")]


def test_warnings_and_messages_are_bounded() -> None:
    flow = flow_from_tree({"output": {"$step": "a", **{f"k{n}": n for n in range(1_000)}}, "x" * 10_000: 1})
    assert len(flow.warnings) == 100
    assert all(len(item.formatted) < 300 and len(item.path or "") < 300 for item in flow.warnings)


def test_warnings_do_not_make_flows_different() -> None:
    assert flow_from_tree({"zzz": 1}) == flow_from_tree({})
    assert flow_document(flow_from_tree({"zzz": 1})) == {}


# --- durations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1ms", 1),
        ("500ms", 500),
        ("30s", 30_000),
        ("1.5s", 1_500),
        (".5m", 30_000),
        ("1h", 3_600_000),
        (" 2 s ", 2_000),
        ("1d", 86_400_000),
        ("1.5d", 129_600_000),
    ],
)
def test_durations_have_a_unit(text: str, ms: int) -> None:
    assert parse_duration_ms(text) == ms


@pytest.mark.parametrize(
    "text",
    ["", "5", "0s", "-1s", "0.1ms", "50d", "1e3s", "inf s", "٣s", "9" * 400 + "s", "50000000h", 5, None],
)
def test_what_is_no_duration_is_refused(text: Any) -> None:
    with pytest.raises(Invalid) as caught:
        parse_duration_ms(text)
    assert caught.value.reason == "DURATION_INVALID"
    assert len(caught.value.message) < 300


# --- anything at all ---------------------------------------------------------------------------------------------

MEMBERS = (
    *("steps", "output", "schemas", "properties", "input", "variables", "test", "cases", "examples", "metadata"),
    *("id", "component", "onError", "action", "backoff", "type", "then", "timeout", "name", "config", "outcome"),
    *("$if", "$step", "$input", "$variable", "$coalesce", "$literal", "path", "default", "data", "blob_type"),
)
VALUES = (None, True, 0, 2.0, "", "a", "$", "/put_blob", "flow", "retry", "useDefault", "constant", "success", "5s")
anything = st.recursive(
    st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS), inner, max_size=5),
    max_leaves=25,
)
stepwise = st.fixed_dictionaries({"id": st.sampled_from("ab"), "component": st.sampled_from(["/x", "/put_blob"])})
likely = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.lists(
            st.builds(
                lambda one, more: {**more, **one},
                stepwise,
                st.dictionaries(st.sampled_from(MEMBERS), anything, max_size=4),
            ),
            max_size=3,
        ),
        "output": anything,
        "schemas": st.none() | st.fixed_dictionaries({"properties": anything}),
        "test": anything,
    },
)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(anything | likely)
def test_any_document_is_read_or_refused_and_what_is_read_can_be_used(tree: Any) -> None:
    try:
        flow = flow_from_tree(tree)
    except FlowInvalid:
        return
    assert flow_from_tree(flow_document(flow)) == flow
    validate_flow(flow)
    plan = compile_flow(flow)
    env = Env(Json(b"null"), [Json(b'{"a":1}')] * len(flow.steps), {})
    for expr in (plan.output, *(one.input for one in plan.steps)):
        assert isinstance(expr.to_json(env), bytes | Failure)
    Redactor(flow, [tree], {"a": tree}).text("text")
    SecretMap.from_schema(flow.schema("input")).redact(tree)


MOCKED = """
steps: [{id: a, component: /m/x}]
output: {$step: a}
test:
  config:
    plugins:
      m: {type: mock, components: {/x: {input_schema: {}, output_schema: {}, behaviors: {{n: 1}: {outcome: success}}}}}
    routes: {/m: [{plugin: m}]}
  cases: [{name: one, input: null}]
"""


def test_mock_behaviours_of_an_inline_configuration_may_go_by_any_value():
    flow = parse_flow(MOCKED, source="flow.yaml", format="yaml")
    component = flow.test["config"]["plugins"]["m"]["components"]["/x"]
    assert list(component["behaviors"]) == ['{"n":1}']
    assert b'"{\\"n\\":1}"' in flow_bytes(flow)


def test_keys_that_are_not_strings_stay_forbidden_elsewhere():
    with pytest.raises(FlowInvalid, match="key"):
        parse_flow(MOCKED.replace("output: {$step: a}", "output: {{n: 1}: 2}"), source="flow.yaml", format="yaml")


# --- all problems at once ----------------------------------------------------------------------------------------


def test_all_problems_of_a_text_are_told_in_order_with_their_places() -> None:
    found = refusal("stps: 1\noutput: [{$if: 1}, {$step: 2}]\nsteps:\n- {id: a}\n- 7\nmetadata: []\n")
    places = [(one.line, one.field) for one in (found, *found.others)]
    assert places == [
        (1, "$.stps"),
        (2, "$.output[0]"),
        (2, "$.output[1].$step"),
        (4, "$.steps[0].component"),
        (5, "$.steps[1]"),
        (6, "$.metadata"),
    ]
    assert found.message.count("\n") == 5


def test_a_document_with_very_many_problems_is_not_read_to_its_end() -> None:
    found = refusal("steps: [" + "1, " * 5_000 + "]")
    assert len(found.others) == PROBLEMS_MAX - 1
    assert found.message.endswith(f"and {PROBLEMS_MAX - PROBLEMS_SHOWN_MAX} more")


@pytest.mark.parametrize("tree", [{"outputs": 1}, {"plugins": {}, "routes": {}}])
def test_a_slip_of_a_whole_document_is_refused_in_a_text_and_an_error_in_a_tree(tree: dict[str, Any]) -> None:
    assert refusal(codec.encode(tree).decode()).reason == "FLOW_INVALID"
    assert [(item.code, item.level) for item in flow_from_tree(tree).warnings] == [(2006, "error")]


def test_a_flow_with_an_output_may_have_unread_outputs() -> None:
    assert [item.code for item in read("outputs: 1\noutput: 2\n").warnings] == [1900]
