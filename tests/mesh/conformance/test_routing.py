"""Choice of the plugin for a step: conformance cases of routes. `near` and `far` both have `/shared`, plus one more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.conformance import CaseMesh, Ran


def call(mesh: CaseMesh, component: str, value: Any = None) -> Ran:
    flow = {"steps": [{"id": "a", "component": component, "input": {"$input": None}}], "output": {"$step": "a"}}
    return mesh.run(flow, value)


def test_a_rule_whose_plugin_lacks_the_component_is_passed_over(mesh: CaseMesh) -> None:
    assert call(mesh, "/depot/shared").value == "near"
    assert call(mesh, "/depot/far_only").value == "far"
    assert call(mesh, "/depot/neither").error["code"] == "ORCHESTRATOR_ERROR"


def test_a_denied_component_goes_to_the_next_rule(mesh: CaseMesh) -> None:
    assert call(mesh, "/denied/shared").value == "far"
    assert call(mesh, "/denied/near_only").value == "near"


def test_a_component_that_is_not_allowed_has_no_route(mesh: CaseMesh) -> None:
    assert call(mesh, "/allowed/near_only").value == "near"
    error = call(mesh, "/allowed/shared").error
    assert (error["code"], error["message"]) == ("ORCHESTRATOR_ERROR", "error routing component")


@pytest.mark.parametrize(("value", "plugin"), [({"lane": "fast"}, "near"), ({"lane": "slow"}, "far")])
def test_the_input_decides_between_rules(mesh: CaseMesh, value: Any, plugin: str) -> None:
    assert call(mesh, "/lanes/shared", value).value == plugin


@pytest.mark.parametrize("value", [{"weight": 7}, None])
def test_a_condition_on_something_missing_does_not_hold(mesh: CaseMesh, value: Any) -> None:
    assert call(mesh, "/lanes/shared", value).value == "far"


def test_items_of_one_batch_may_take_different_routes(mesh: CaseMesh) -> None:
    flow = {"steps": [{"id": "a", "component": "/lanes/shared", "input": {"$input": None}}], "output": {"$step": "a"}}
    ran = mesh.run(flow, {"lane": "slow"}, {"lane": "fast"})
    assert [result["result"] for result in ran.results] == ["far", "near"]


def test_a_wildcard_matches_the_rest_of_the_path(mesh: CaseMesh) -> None:
    assert call(mesh, "/own/core/bar/baz", {}).value == "bar/baz"
    assert call(mesh, "/own/core/bar", {}).value == "bar"
