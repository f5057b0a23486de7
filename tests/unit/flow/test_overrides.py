"""Overrides: steps patched for a single run."""

from typing import Any

import pytest

from stepflow.errors import Invalid
from stepflow.flow import Flow, OnError, apply_overrides, flow_document, flow_from_tree, parse_flow

FLOW = flow_from_tree(
    {
        "name": "n",
        "schemas": {"properties": {"input": {"type": "object"}}},
        "steps": [
            {"id": "a", "component": "/x", "input": {"p": {"q": 1, "r": 2}, "list": [1, 2]}, "timeout": "5s"},
            {"id": "b", "component": "/y", "input": {"$step": "a"}, "onError": {"action": "retry", "maxRetries": 2}},
        ],
        "output": {"$step": "b"},
    }
)


def patched(step: str, value: Any, **kind: str) -> Flow:
    return apply_overrides(FLOW, {"steps": {step: {**kind, "value": value}}})


def refusal(overrides: Any) -> Invalid:
    with pytest.raises(Invalid) as caught:
        apply_overrides(FLOW, overrides)
    return caught.value


def test_a_patch_merges_and_deletes() -> None:
    before = flow_document(FLOW)
    flow = patched("a", {"input": {"p": {"q": 9, "r": None}, "list": [3], "new": {"x": {"y": 1, "z": None}}}})
    assert flow.steps[0].input == {"p": {"q": 9}, "list": [3], "new": {"x": {"y": 1}}}
    assert flow.steps[0].timeout_ms == 5_000
    assert flow.steps[1] == FLOW.steps[1]
    assert flow_document(FLOW) == before
    assert flow.name == "n"


@pytest.mark.parametrize("kind", [{}, {"$type": "merge_patch"}])
def test_every_field_of_a_step_may_change(kind: dict[str, str]) -> None:
    value = {
        "component": "/z",
        "mustExecute": True,
        "onError": {"action": "useDefault", "maxRetries": None, "defaultValue": 1},
        "timeout": None,
        "idleTimeout": "1s",
        "metadata": {"m": 1},
        "skip": True,
    }
    step = patched("b", value, **kind).steps[1]
    assert (step.component, step.must_execute, step.metadata) == ("/z", True, {"m": 1})
    assert step.on_error == OnError("useDefault", 1, has_default=True)
    assert (step.timeout_ms, step.idle_timeout_ms) == (None, 1_000)


def test_removing_the_input_makes_it_null() -> None:
    assert patched("a", {"input": None}).steps[0].input is None


def test_a_reference_survives_a_patch_that_does_not_null_its_key() -> None:
    assert patched("b", {"input": {"$input": "x"}}).steps[1].input == {"$step": "a"}
    assert patched("b", {"input": {"$step": None, "$literal": 7}}).steps[1].input == {"$literal": 7}
    assert patched("b", {"input": {"$step": None, "$input": "x"}}).steps[1].input == {"$input": "$.x"}
    assert patched("b", {"input": 5}).steps[1].input == 5


def test_a_patch_applies_to_the_normalised_step() -> None:
    flow = parse_flow(
        "steps: [{id: a, component: /x, input: {$input: a.b}}]\noutput: {$step: a}", source="f", format="yaml"
    )
    overrides: dict[str, Any] = {"steps": {"a": {"value": {"metadata": {}}}}}
    assert apply_overrides(flow, overrides).steps[0].input == {"$input": "$.a.b"}


def test_no_steps_means_no_change() -> None:
    assert apply_overrides(FLOW, {"steps": {}, "other": 1}) == FLOW


@pytest.mark.parametrize(
    ("overrides", "reason", "says"),
    [
        ({}, "OVERRIDES_INVALID", "with `steps`"),
        ({"a": {"value": {}}}, "OVERRIDES_INVALID", "with `steps`"),
        (None, "OVERRIDES_INVALID", "with `steps`"),
        ([], "OVERRIDES_INVALID", "with `steps`"),
        ({"steps": []}, "OVERRIDES_INVALID", "mapping of step ids"),
        ({"steps": None}, "OVERRIDES_INVALID", "mapping of step ids"),
        ({"steps": {"a": {}}}, "OVERRIDES_INVALID", "step `a`"),
        ({"steps": {"a": 1}}, "OVERRIDES_INVALID", "step `a`"),
        ({"steps": {"a": {"$type": "json_patch", "value": []}}}, "OVERRIDES_UNSUPPORTED", "only `merge_patch`"),
        ({"steps": {"a": {"$type": "other", "value": {}}}}, "OVERRIDES_INVALID", "must be `merge_patch`"),
        ({"steps": {"aa": {"value": {}}}}, "OVERRIDES_STEP_UNKNOWN", "no step `aa` in the flow; did you mean `a`?"),
        ({"steps": {"a": {"value": {"component": None}}}}, "OVERRIDES_STEP_INVALID", "$.component: is required"),
        ({"steps": {"a": {"value": 5}}}, "OVERRIDES_STEP_INVALID", "a step is a mapping"),
        ({"steps": {"a": {"value": {"input": {"$from": 1}}}}}, "OVERRIDES_STEP_INVALID", "$.input.$from"),
        ({"steps": {"a": {"value": {"input": {"$step": "b"}}}}}, "OVERRIDES_FLOW_INVALID", "'b'"),
        ({"steps": {"a": {"value": {"id": "z"}}}}, "OVERRIDES_FLOW_INVALID", "'a'"),
        ({"steps": {"a": {"value": {"id": "b"}}}}, "OVERRIDES_FLOW_INVALID", "'b'"),
    ],
)
def test_bad_overrides_are_refused(overrides: Any, reason: str, says: str) -> None:
    error = refusal(overrides)
    assert error.reason == reason
    assert says in error.message


def test_overrides_that_are_too_deep_are_refused() -> None:
    deep: Any = 1
    for _ in range(300):
        deep = {"x": deep}
    assert refusal({"steps": {"a": {"value": {"input": deep}}}}).reason == "JSON_TOO_DEEP"


def test_a_step_may_be_renamed_when_references_follow() -> None:
    overrides = {"steps": {"a": {"value": {"id": "z"}}, "b": {"value": {"input": {"$step": "z"}}}}}
    assert [step.id for step in apply_overrides(FLOW, overrides).steps] == ["z", "b"]
