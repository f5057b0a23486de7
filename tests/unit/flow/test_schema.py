"""The cost check of schemas before compilation: no small schema blocks a process, no ordinary one is refused."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT
from support.engine import World
from support.schemas import BOMB, branching, nested, unevaluated

from component_host.builtin.schemas import BUILTINS
from component_host.mcp_bridge import listing
from component_host.mcp_bridge.results import BadAnswerError, ResultChecks, breaks_schema
from control_plane.admission import RunRequest, check_request
from stepflow.codec import encode
from stepflow.errors import Invalid
from stepflow.flow import InputValidator, flow_from_tree
from stepflow.flow.schema_cost import measure_schema

BOUND_S = 3.0

OLD = {"$schema": "http://json-schema.org/draft-07/schema#"}
DYNAMIC = {
    "$dynamicAnchor": "n",
    "properties": {"a": {"allOf": [{"$dynamicRef": "#n"}, {"$dynamicRef": "#n"}]}},
}
POINTERS = {
    "allOf": [{"$ref": "#/x/0"}] * 10,
    "x": [{"allOf": [{"$ref": f"#/x/{i + 1}"}] * 10} for i in range(14)] + [{"minLength": 9}],
}
CROSSED = {
    "$defs": {
        "a": {"patternProperties": {"^a": {"$ref": "#/$defs/b"}, "a$": {"$ref": "#/$defs/b"}}},
        "b": {"properties": {"a": {"$ref": "#/$defs/a"}}},
    },
    "$ref": "#/$defs/a",
}
COLLIDING = [10**30 + i for i in range(20_000)]

NASTY: dict[str, tuple[Any, Any]] = {
    "multiplying references": (BOMB, "xxxx"),
    "multiplying references, broken": (BOMB, "x"),
    "references by pointer": (POINTERS, "xxxx"),
    "recursion in anyOf": (branching("anyOf"), nested(60)),
    "recursion in allOf": (branching("allOf"), nested(60)),
    "recursion in oneOf": (branching("oneOf"), nested(60)),
    "recursion by dynamic anchors": (DYNAMIC, nested(60)),
    "recursion over two definitions and patterns": (CROSSED, nested(100)),
    "unevaluated properties in one another": (unevaluated(16), {"z": 1}),
    "integers of one hash": ({"uniqueItems": True}, COLLIDING),
    "a lookahead over a long text": ({"pattern": "^((?=[a-z]*$)a)+b"}, "a" * 1_000_000),
    "many backtracking texts": ({"items": {"pattern": "^(?=a)(a|aa)+(?!b)$"}}, ["a" * 50 + "b"] * 100_000),
    "a large pattern over a long text": ({"pattern": r"(\w{100}){9}"}, "ab" * 1_000_000),
    "many large patterns": ({"allOf": [{"pattern": rf"\p{{L}}{{9{i}}}"} for i in range(900)]}, "a"),
}


def checked(schema: Any, value: Any) -> str:
    """Return what becomes of a check: `fits`, `misfit` or a reason."""
    try:
        problem = InputValidator(schema).first_misfit([json.dumps(value).encode()])
    except Invalid as error:
        return error.reason
    return "fits" if problem is None else "misfit"


@pytest.mark.parametrize("kind", NASTY)
def test_a_schema_whose_check_would_not_end_is_refused_at_once(kind: str) -> None:
    before = time.monotonic()
    assert checked(*NASTY[kind]) == "SCHEMA_TOO_LARGE"
    assert time.monotonic() - before < BOUND_S


def test_the_error_names_the_limit_and_the_way_out() -> None:
    with pytest.raises(Invalid) as caught:
        InputValidator(BOMB).check("xxxx")
    assert "the limit is" in caught.value.message
    assert "turn the check off" in caught.value.message


@pytest.mark.parametrize("alternatives", ["anyOf", "allOf", "oneOf"])
def test_a_recursive_schema_that_branches_takes_values_of_ordinary_depth(alternatives: str) -> None:
    before = time.monotonic()
    expected = "misfit" if alternatives == "oneOf" else "fits"
    assert [checked(branching(alternatives), nested(depth)) for depth in (1, 6, 12)] == [expected] * 3
    assert time.monotonic() - before < BOUND_S


def test_errors_of_very_many_alternatives_are_told_without_their_place() -> None:
    schema = {"anyOf": [{"items": {"type": "string"}}, {"type": "object"}]}
    before = time.monotonic()
    problem = InputValidator(schema).check([1] * 100_000)
    assert problem is not None
    assert problem[0] == ""
    assert time.monotonic() - before < BOUND_S
    assert checked({"$defs": BOMB["$defs"], "anyOf": [{"$ref": "#/$defs/d11"}] * 3}, "x") == "misfit"


def test_what_a_value_says_is_not_compiled_as_a_pattern() -> None:
    before = time.monotonic()
    assert checked({**OLD, "items": {"format": "regex"}}, [r"\p{L}{1000}"] * 100) == "fits"
    assert time.monotonic() - before < BOUND_S


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1/x.json", "file:///etc/passwd", "x.json", "//host/x", "#/nowhere"])
@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef"])
def test_nothing_outside_a_schema_is_fetched(uri: str, keyword: str) -> None:
    assert checked({"properties": {"a": {keyword: uri}}}, {"a": 1}) == "SCHEMA_INVALID"


def test_a_reference_to_itself_for_the_same_value_is_refused() -> None:
    assert checked({"allOf": [{"$ref": "#"}]}, 1) == "SCHEMA_INVALID"


@pytest.mark.parametrize(
    "schema",
    [
        {"$id": "https://example.com/a.json", "$defs": {"x": {"$id": "b.json", "type": "string"}}, "$ref": "b.json"},
        {"$defs": {"x": {"$anchor": "q", "type": "string"}}, "$ref": "#q"},
        {"$defs": {"a/b c": {"type": "string"}}, "$ref": "#/$defs/a~1b%20c"},
        {"$id": "urn:example:a", "$defs": {"x": {"type": "string"}}, "$ref": "#/$defs/x"},
        {**OLD, "definitions": {"x": {"$id": "#q", "type": "string"}}, "allOf": [{"$ref": "#q"}]},
    ],
)
def test_references_of_every_form_are_followed(schema: Any) -> None:
    assert (checked(schema, "text"), checked(schema, 1)) == ("fits", "misfit")


def test_a_published_meta_schema_may_be_named() -> None:
    assert checked({"$ref": "https://json-schema.org/draft/2020-12/schema"}, {"type": "string"}) == "fits"


def test_a_tree_of_both_hands_is_checked_in_linear_time() -> None:
    tree = {
        "$defs": {"t": {"properties": {"l": {"$ref": "#/$defs/t"}, "r": {"$ref": "#/$defs/t"}}}},
        "$ref": "#/$defs/t",
    }
    cost = measure_schema(tree, lambda _: 1)
    assert cost.overlaps.at_any_depth == cost.overlaps.at(2)


# --- every door -------------------------------------------------------------------------------------------------------


def flow_of(schema: Any) -> dict[str, Any]:
    return {"name": "f", "schemas": {"properties": {"input": schema}}, "output": {"$input": "$"}}


def test_a_submission_is_refused_with_a_reason_and_can_go_unchecked() -> None:
    flow = flow_from_tree(flow_of(BOMB), source="test")
    with pytest.raises(Invalid) as caught:
        check_request(flow, RunRequest(flow=flow, inputs=[b'"xxxx"']))
    assert caught.value.reason == "SCHEMA_TOO_LARGE"
    check_request(flow, RunRequest(flow=flow, inputs=[b'"xxxx"'], check_input=False))


def test_many_inputs_share_one_limit() -> None:
    validator = InputValidator(branching("allOf"))
    text = encode(nested(13))
    assert validator.first_misfit([text]) is None
    with pytest.raises(Invalid, match="the limit is"):
        validator.first_misfit([text] * 1_000)


def test_the_step_of_a_sub_flow_with_such_a_schema_fails() -> None:
    input = {"workflow": {"$literal": flow_of(BOMB)}, "items": ["xxxx"]}
    flow = {"steps": [{"id": "m", "component": "/builtin/map", "input": input}], "output": {"$step": "m"}}
    ((code, message),) = World(flow).run()
    assert code == "INVALID_INPUT"
    assert "SCHEMA_TOO_LARGE" in message


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"properties": {"v": BOMB}}, {"v": "xxxx"}),
        ({"properties": {"v": branching("anyOf")}}, {"v": nested(60)}),
        ({"properties": {"v": {"$ref": "http://127.0.0.1:1/x.json"}}}, {"v": 1}),
    ],
)
def test_a_tools_result_is_not_checked_against_such_a_schema(schema: Any, value: Any) -> None:
    with pytest.raises(BadAnswerError, match="cannot be"):
        ResultChecks().check("t", schema, value)
    assert not breaks_schema(schema, value)


def test_a_tools_result_is_checked_in_linear_time_and_its_misfit_has_a_place() -> None:
    schema = {"properties": {"v": {"type": "array", "items": {"pattern": "^(a+)+$"}}}}
    ResultChecks().check("t", schema, {"v": ["a" * 50]})
    with pytest.raises(BadAnswerError, match="'pattern' does not hold at /v/1"):
        ResultChecks().check("t", schema, {"v": ["a", "a" * 50 + "b"]})


# --- what is never refused --------------------------------------------------------------------------------------------


def schemas_of(tree: Any) -> list[Any]:
    """Return all that looks like a schema in a document, with the definitions around it."""
    if isinstance(tree, list):
        return [found for child in tree for found in schemas_of(child)]
    if not isinstance(tree, dict):
        return []
    names = ("schemas", "inputSchema", "outputSchema", "input_schema", "output_schema", "schema")
    own = [tree[name] for name in names if isinstance(tree.get(name), dict)]
    return own + [found for child in tree.values() for found in schemas_of(child)]


def schemas_of_the_repository() -> list[Any]:
    found: list[Any] = [listing.CONTENT_SCHEMA, listing.MESSAGES_SCHEMA, listing.URI_SCHEMA]
    found += [schema for info in BUILTINS for schema in (info.input_schema, info.output_schema) if schema]
    for folder in ("examples", "docs", "stepflow/cli/template", "tests/data"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix not in (".yaml", ".yml", ".json") or not path.is_file():
                continue
            if path.parent.name == "schemas":  # of the language itself, where members are called as those looked for
                continue
            try:
                found += schemas_of(yaml.safe_load(path.read_text()))
            except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
                continue  # documents that are broken on purpose
    return found


def test_no_schema_of_the_repository_is_refused_or_needs_a_measure_of_its_values() -> None:
    schemas = schemas_of_the_repository()
    assert len(schemas) > 20
    for schema in schemas:
        assert InputValidator(schema)._is_cheap, schema


LEAVES = st.sampled_from(
    [{"type": "string"}, {"type": ["integer", "null"]}, {"enum": ["a", "b"]}, {"pattern": "^[a-z]+$"}, True, {}]
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=4).map(lambda p: {"type": "object", "properties": p}),
        inner.map(lambda s: {"type": "array", "items": s}),
        st.lists(inner, min_size=1, max_size=3).map(lambda o: {"anyOf": o}),
    ),
    max_leaves=12,
)
VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from("abcd"), inner, max_size=4)),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, VALUES)
def test_a_schema_as_people_write_it_decides_as_the_library_does(schema: Any, value: Any) -> None:
    import jsonschema_rs

    expected = "fits" if jsonschema_rs.is_valid(schema, value) else "misfit"
    assert checked(schema, value) == expected
