"""The normalised document, and the flow id computed from it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepflow import codec
from stepflow.flow import Flow, flow_bytes, flow_document, flow_from_tree, flow_id, parse_flow, validate_flow

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are busy

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.text("abc.$[]' ", min_size=1, max_size=6)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
paths = st.sampled_from([None, "", "$", "a", "a.b", "$.a[0]", '$["x.y"]', "items[1].z", "$..q"])
expressions = st.recursive(
    plain
    | st.builds(lambda value: {"$literal": value}, plain)
    | st.builds(lambda step, path: {"path": path, "$step": step}, names, paths)
    | st.builds(lambda path: {"$input": path}, paths)
    | st.builds(lambda name: {"$variable": name}, st.sampled_from(["v", "v.w", "$.v[0]"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(names, inner, max_size=3)
        | st.builds(lambda options: {"$coalesce": options}, st.lists(inner, max_size=3))
        | st.builds(lambda c, t, e: {"else": e, "then": t, "$if": c}, inner, inner, inner)
        | st.builds(lambda default: {"default": default, "$variable": "v"}, inner)
    ),
    max_leaves=8,
)
on_errors = (
    st.none()
    | st.just({"action": "fail"})
    | st.builds(lambda value: {"action": "useDefault", "defaultValue": value}, plain)
    | st.builds(
        lambda retries, backoff, then: {"action": "retry", "maxRetries": retries, "backoff": backoff, "then": then},
        st.none() | st.integers(0, 9),
        st.none()
        | st.builds(lambda ms: {"type": "constant", "delayMs": ms}, st.integers(0, 99))
        | st.builds(lambda f: {"type": "exponential", "factor": f}, st.floats(1, 9))
        | st.just({"type": "fibonacci"}),
        st.none() | st.builds(lambda value: {"action": "useDefault", "defaultValue": value}, plain),
    )
)
steps = st.fixed_dictionaries(
    {"id": text, "component": text},
    optional={
        "input": expressions,
        "onError": on_errors,
        "mustExecute": st.booleans(),
        "metadata": st.dictionaries(text, plain, max_size=2),
        "timeout": st.none() | st.integers(1, 10**9).map(lambda ms: f"{ms}ms"),
        "idleTimeout": st.none() | st.integers(1, 999).map(lambda s: f"{s}s"),
    },
)
cases = st.fixed_dictionaries(
    {"name": text, "input": plain},
    optional={
        "description": st.none() | text,
        "output": st.none()
        | st.builds(lambda value: {"outcome": "success", "result": value}, plain)
        | st.builds(lambda m: {"outcome": "failed", "error": {"code": "TIMEOUT", "message": m}}, text),
    },
)
flows = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.dictionaries(text, plain, max_size=2),
        "output": expressions,
        "steps": st.lists(steps, max_size=3),
        "name": st.none() | text,
        "description": st.none() | text,
        "version": st.none() | text,
        "schemas": st.sampled_from([None, {}, {"type": "object"}, {"properties": {"output": {}, "input": {"b": 1}}}]),
        "examples": st.lists(st.fixed_dictionaries({"name": text, "input": plain}), max_size=2),
        "test": st.none()
        | st.fixed_dictionaries({}, optional={"cases": st.lists(cases, max_size=2), "configFile": text}),
    },
)


@relaxed
@given(flows)
def test_reading_the_bytes_of_a_flow_gives_the_flow(tree: dict[str, Any]) -> None:
    flow = flow_from_tree(tree)
    again = parse_flow(flow_bytes(flow), source="flow.json", format="json")
    assert again == flow
    assert flow_bytes(again) == flow_bytes(flow)
    assert flow_id(again) == flow_id(flow)
    assert again.warnings == ()


@relaxed
@given(flows, st.randoms())
def test_the_order_of_fields_does_not_matter(tree: dict[str, Any], random: Any) -> None:
    def shuffled(members: dict[str, Any]) -> dict[str, Any]:
        return dict(random.sample(list(members.items()), len(members)))

    other = shuffled(tree) | ({"steps": [shuffled(step) for step in tree["steps"]]} if "steps" in tree else {})
    assert flow_id(flow_from_tree(other)) == flow_id(flow_from_tree(tree))


def test_the_id_is_the_blob_id_of_the_bytes() -> None:
    flow = flow_from_tree({"output": {"$input": None}, "name": "n"})
    assert flow_bytes(flow) == b'{"name":"n","output":{"$input":"$"}}'
    assert flow_id(flow) == codec.blob_id(flow_bytes(flow))


def test_the_same_flow_has_the_same_id_whatever_it_was_written_in() -> None:
    yaml = "steps:\n- component: /x\n  id: a\n  timeout: 60s\noutput: {$step: a, path: b}\nname: n\n"
    json = '{"name":"n","steps":[{"id":"a","component":"/x","timeout":"1m"}],"output":{"path":"$.b","$step":"a"}}'
    a, b = parse_flow(yaml, source="a", format="yaml"), parse_flow(json, source="b", format="json")
    assert flow_id(a) == flow_id(b)


def test_members_keep_the_authors_order_inside_expressions_and_data() -> None:
    def of(members: dict[str, Any]) -> str:
        return flow_id(flow_from_tree({"output": members}))

    assert of({"b": 1, "a": 2}) != of({"a": 2, "b": 1})
    flow = flow_from_tree(
        {
            "metadata": {"z": 1, "a": 2},
            "output": {"z": {"$literal": {"y": 1, "b": 2}}, "a": 1},
            "steps": [{"component": "/x", "id": "s", "input": {"q": 1, "c": [{"y": 1, "b": 1}]}}],
        }
    )
    assert flow_bytes(flow) == (
        b'{"steps":[{"id":"s","component":"/x","input":{"q":1,"c":[{"y":1,"b":1}]}}],'
        b'"output":{"z":{"$literal":{"y":1,"b":2}},"a":1},"metadata":{"z":1,"a":2}}'
    )


def test_fields_are_written_in_one_order_and_empty_ones_left_out() -> None:
    tree: dict[str, Any] = {
        "metadata": {},
        "examples": [],
        "steps": [
            {
                "idleTimeout": "1500ms",
                "timeout": "7200s",
                "metadata": {"m": 1},
                "mustExecute": False,
                "onError": {
                    "then": {"defaultValue": 1, "action": "useDefault"},
                    "backoff": {"factor": 3, "type": "exponential"},
                    "action": "retry",
                },
                "component": "/x",
                "input": None,
                "id": "a",
            },
            {"id": "b", "component": "/x", "onError": {"action": "fail"}, "mustExecute": True},
            {"id": "c", "component": "/x", "onError": {"action": "useDefault", "defaultValue": None}},
        ],
        "description": "d",
        "name": "n",
    }
    assert codec.encode(flow_document(flow_from_tree(tree))) == codec.encode(
        {
            "name": "n",
            "description": "d",
            "steps": [
                {
                    "id": "a",
                    "component": "/x",
                    "onError": {
                        "action": "retry",
                        "backoff": {"type": "exponential", "minDelayMs": 1000, "maxDelayMs": 10000, "factor": 3.0},
                        "then": {"action": "useDefault", "defaultValue": 1},
                    },
                    "metadata": {"m": 1},
                    "timeout": "2h",
                    "idleTimeout": "1500ms",
                },
                {"id": "b", "component": "/x", "mustExecute": True},
                {"id": "c", "component": "/x", "onError": {"action": "useDefault"}},
            ],
        }
    )


def test_an_empty_flow_is_an_empty_object() -> None:
    assert flow_bytes(Flow()) == b"{}"


@pytest.mark.parametrize("value", [2**70, 0.1, 1e300, 5.0, -0.0, "é\u2028\n"])
def test_literals_keep_their_exact_value(value: Any) -> None:
    flow = flow_from_tree({"output": [value]})
    assert flow_bytes(parse_flow(flow_bytes(flow), source="x", format="json")) == flow_bytes(flow)
    assert repr(flow_document(flow)["output"]) == repr([value])


def test_the_id_of_a_stored_flow_never_changes() -> None:
    """When this fails, ids of stored flows have changed: their runs and names would point nowhere."""
    text = Path(__file__).parents[2].joinpath("data/flows/every_field.yaml").read_bytes()
    flow = parse_flow(text, source="every_field.yaml", format="yaml")
    assert flow.warnings == ()
    assert not validate_flow(flow).num_fatal
    assert flow_id(flow) == "39413c3a9f6a0e53c1c783837891653eed3bce392d13266549e33af88b8306f9"
    assert flow_document(flow)["steps"][1]["input"] == {
        "$if": {"$step": "first", "path": "$.items[0].ok"},
        "then": {
            "$coalesce": [
                {"$step": "first", "path": '$["a.b"]'},
                None,
                {
                    "who": {"$input": "$.name"},
                    "token": {"$variable": "$.token"},
                    "région": {"$variable": "$.region", "default": "us"},
                },
            ]
        },
        "else": {"$literal": {"$step": "not a reference"}},
    }
