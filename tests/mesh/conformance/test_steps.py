"""Selection and order of steps, and failure handling: conformance cases of steps and items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.conformance import CaseMesh

BROKEN = {"code": "COMPONENT_FAILED", "message": "the scale is broken"}


def step(step_id: str, component: str, input: Any = None, **members: Any) -> dict[str, Any]:
    return {"id": step_id, "component": component, "input": input, **members}


def noop(step_id: str, input: Any = None, **members: Any) -> dict[str, Any]:
    return step(step_id, "/builtin/noop", input, **members)


def broken(step_id: str, **members: Any) -> dict[str, Any]:
    return step(step_id, "/mock/broken_scale", **members)


def of(step_id: str, path: str | None = None) -> dict[str, Any]:
    return {"$step": step_id} if path is None else {"$step": step_id, "path": path}


# --- values from step to step ----------------------------------------------------------------------------------------


def test_a_flow_without_steps_picks_parts_of_its_input(mesh: CaseMesh) -> None:
    given = {"title": "Atlas", "size": {"wide": 20, "high": 30}, "tags": ["map", "old"]}
    expected = {"bare": "Atlas", "field": 20, "element": "old", "object": {"wide": 20, "high": 30}, "whole": given}
    assert mesh.run("picks.yaml", given).value == expected


def test_a_step_takes_a_part_of_another_ones_output(mesh: CaseMesh) -> None:
    ran = mesh.run("parcel.yaml", {"parcel": "book"})
    assert ran.value == {"parcel": "book", "label": "small", "cents": 250}
    assert (ran.status, ran.started()) == ("completed", {"weighed", "stamped"})


def test_a_mock_without_an_answer_is_unreachable_and_says_why(mesh: CaseMesh) -> None:
    ran = mesh.run("parcel.yaml", {"parcel": "piano"})
    error = ran.error
    assert (error["code"], error["message"]) == ("UNREACHABLE", 'step "weighed" failed')
    notes = error["data"]["stack"][0]["attachments"]
    assert len(notes) == 3
    assert notes[2] == 'No behavior defined for /weigh on {"parcel":"piano"}'
    assert ran.step("weighed").attempt == 4


def test_an_output_that_picks_a_missing_part_of_a_step_fails(mesh: CaseMesh) -> None:
    flow = {"steps": [noop("a", {"x": 1})], "output": of("a", "nope")}
    assert mesh.run(flow).error == {"code": "EXPRESSION_FAILURE", "message": "Path $.nope not found"}


def test_a_missing_part_of_the_input_fails(mesh: CaseMesh) -> None:
    error = {"code": "EXPRESSION_FAILURE", "message": "Input path $.nope not found"}
    assert mesh.run({"output": {"$input": "nope"}}, {"x": 1}).error == error
    ran = mesh.run({"steps": [noop("a", {"$input": "nope"})], "output": of("a")}, {"x": 1})
    assert ran.error == error
    assert ran.step("a").attempt == 0, "it was sent somewhere"


def test_a_null_output_is_null_whatever_the_path(mesh: CaseMesh) -> None:
    flow = {"steps": [noop("a")], "output": [of("a"), of("a", "deep.inside"), of("a", "$[3]")]}
    assert mesh.run(flow).value == [None, None, None]


# --- failures and defaults -------------------------------------------------------------------------------------------


def test_a_failing_component_fails_the_run(mesh: CaseMesh) -> None:
    ran = mesh.run({"steps": [broken("a")], "output": of("a")})
    assert ran.error == BROKEN
    assert (ran.status, ran.item_statuses, ran.step("a").status) == ("failed", ["failed"], "failed")
    assert ran.step("a").attempt == 1, "component failures are retried only when the step says so"


def test_a_default_without_a_value_is_null(mesh: CaseMesh) -> None:
    ran = mesh.run({"steps": [broken("a", onError={"action": "useDefault"})], "output": {"label": of("a")}})
    assert ran.value == {"label": None}
    assert (ran.status, ran.step("a").status) == ("completed", "completed")


def test_a_part_of_a_default_can_be_picked(mesh: CaseMesh) -> None:
    on_error = {"action": "useDefault", "defaultValue": {"label": {"text": "unknown"}}}
    assert mesh.run({"steps": [broken("a", onError=on_error)], "output": of("a", "label.text")}).value == "unknown"


def test_a_default_is_returned_literally(mesh: CaseMesh) -> None:
    default = {"$input": "x", "also": [{"$step": "nowhere"}]}
    flow = {"steps": [broken("a", onError={"action": "useDefault", "defaultValue": default})], "output": of("a")}
    assert mesh.run(flow, {"x": 1}).value == default


def test_a_default_does_not_hide_an_input_that_fails(mesh: CaseMesh) -> None:
    on_error = {"action": "useDefault", "defaultValue": "hidden"}
    ran = mesh.run({"steps": [noop("a", {"$input": "nope"}, onError=on_error)], "output": of("a")}, {})
    assert ran.error["code"] == "EXPRESSION_FAILURE"
    assert ran.step("a").status == "failed"


@pytest.mark.parametrize("component", ["/nowhere/x", "/builtin/nothing"])
def test_a_default_does_not_hide_a_missing_route(mesh: CaseMesh, component: str) -> None:
    on_error = {"action": "useDefault", "defaultValue": "hidden"}
    ran = mesh.run({"steps": [step("a", component, onError=on_error)], "output": of("a")})
    assert (ran.error["code"], ran.error["message"]) == ("ORCHESTRATOR_ERROR", "error routing component")
    assert ran.step("a").status == "failed"


def test_a_default_stands_in_for_a_time_out_at_once(mesh: CaseMesh) -> None:
    on_error = {"action": "useDefault", "defaultValue": "gave up"}
    ran = mesh.run({"steps": [step("a", "/own/never_answer", timeout="50ms", onError=on_error)], "output": of("a")})
    assert (ran.value, ran.step("a").attempt) == ("gave up", 1)


def test_a_time_out_without_a_default_is_retried(mesh: CaseMesh) -> None:
    ran = mesh.run({"steps": [step("a", "/own/never_answer", timeout="50ms")], "output": of("a")})
    assert (ran.error["code"], ran.step("a").attempt) == ("TIMEOUT", 4)


# --- retries ---------------------------------------------------------------------------------------------------------


def test_a_permanent_failure_ends_its_retries_with_the_last_error(mesh: CaseMesh) -> None:
    on_error = {"action": "retry", "maxRetries": 2}
    ran = mesh.run({"steps": [step("a", "/own/succeed_at", {"attempt": 9}, onError=on_error)], "output": of("a")})
    assert (ran.error["code"], ran.error["message"]) == ("COMPONENT_FAILED", "attempt 3 failed")
    assert ran.error["data"]["details"] == {"made": [1, 2, 3]}
    assert ran.step("a").attempt == 3


def test_retries_end_with_the_first_success(mesh: CaseMesh) -> None:
    on_error = {"action": "retry"}
    ran = mesh.run({"steps": [step("a", "/own/succeed_at", {"attempt": 3}, onError=on_error)], "output": of("a")})
    assert (ran.value, ran.step("a").attempt) == ([1, 2, 3], 3)


def test_by_default_there_are_three_retries_and_the_component_sees_each(mesh: CaseMesh) -> None:
    on_error = {"action": "retry"}
    ran = mesh.run({"steps": [step("a", "/own/succeed_at", {"attempt": 9}, onError=on_error)], "output": of("a")})
    assert ran.error["message"] == "attempt 4 failed"
    assert ran.error["data"]["details"] == {"made": [1, 2, 3, 4]}


def test_an_invalid_input_is_not_tried_again(mesh: CaseMesh) -> None:
    ran = mesh.run({"steps": [step("a", "/own/refuse", {}, onError={"action": "retry"})], "output": of("a")})
    assert (ran.error["code"], ran.error["message"]) == ("INVALID_INPUT", "refused at attempt 1")
    assert ran.step("a").attempt == 1


# --- which steps run -------------------------------------------------------------------------------------------------


def test_only_the_chosen_branch_runs(mesh: CaseMesh) -> None:
    fine, not_fine = mesh.run("detour.yaml", {"fine": True}), mesh.run("detour.yaml", {"fine": False})
    assert (fine.value, fine.started()) == ("small", {"works"})
    assert (not_fine.error, not_fine.started()) == (BROKEN, {"breaks"})


def test_items_of_a_batch_need_different_steps(mesh: CaseMesh) -> None:
    ran = mesh.run("detour.yaml", {"fine": True}, {"fine": False})
    assert [ran.started(0), ran.started(1)] == [{"works"}, {"breaks"}]
    assert ran.results == [{"outcome": "success", "result": "small"}, {"outcome": "failed", "error": BROKEN}]


def test_a_step_that_a_result_makes_the_output_need_runs(mesh: CaseMesh) -> None:
    flow = {
        "steps": [noop("c", {"$input": None}), noop("a", "late")],
        "output": {"$if": of("c"), "then": of("a"), "else": "not needed"},
    }
    ran = mesh.run(flow, True, False)
    assert [result["result"] for result in ran.results] == ["late", "not needed"]
    assert [ran.started(0), ran.started(1)] == [{"c", "a"}, {"c"}]


def test_a_step_that_a_result_makes_another_step_need_runs(mesh: CaseMesh) -> None:
    flow = {
        "steps": [noop("c", True), noop("a", "late"), noop("b", {"$if": of("c"), "then": of("a")})],
        "output": of("b"),
    }
    ran = mesh.run(flow)
    assert (ran.value, ran.started()) == ("late", {"c", "a", "b"})


def test_an_alternative_is_not_run_when_the_first_has_a_value(mesh: CaseMesh) -> None:
    ran = mesh.run({"steps": [noop("c", 0), broken("b")], "output": {"$coalesce": [of("c"), of("b")]}})
    assert (ran.value, ran.started()) == (0, {"c"})


def test_an_alternative_runs_when_the_first_turns_out_null(mesh: CaseMesh) -> None:
    flow = {
        "steps": [broken("a", onError={"action": "useDefault"}), noop("b", "second")],
        "output": {"$coalesce": [of("a"), of("b")]},
    }
    ran = mesh.run(flow)
    assert (ran.value, ran.started()) == ("second", {"a", "b"})


def test_a_step_that_nothing_refers_to_does_not_run(mesh: CaseMesh) -> None:
    ran = mesh.run({"steps": [broken("a"), noop("b", 1)], "output": of("b")})
    assert (ran.value, ran.status, ran.started()) == (1, "completed", {"b"})


def test_a_step_that_must_execute_runs_and_its_failure_fails_nothing_else(mesh: CaseMesh) -> None:
    ran = mesh.run({"steps": [broken("a", mustExecute=True), noop("b", 1)], "output": of("b")})
    assert (ran.value, ran.status, ran.item_statuses) == (1, "completed", ["completed"])
    assert ran.step("a").status == "failed"
    assert ran.step("a").result == {"outcome": "failed", "error": BROKEN}


def test_a_failure_passes_down_the_chain_unchanged(mesh: CaseMesh) -> None:
    flow = {
        "steps": [broken("a"), noop("b", {"from": of("a")}), noop("c", [of("b", "x")])],
        "output": {"end": of("c")},
    }
    ran = mesh.run(flow)
    assert ran.error == BROKEN
    assert [ran.step(name).result for name in "abc"] == [{"outcome": "failed", "error": BROKEN}] * 3
    assert [ran.step(name).attempt for name in "abc"] == [1, 0, 0], "what depends on a failure is not sent anywhere"


def test_a_failure_does_not_stop_a_slower_sibling(mesh: CaseMesh) -> None:
    flow = {
        "steps": [step("fast", "/own/fail_and_tell", {}), step("slow", "/own/finish_after_failure", {})],
        "output": [of("fast"), of("slow")],
    }
    ran = mesh.run(flow)
    assert (ran.error["code"], ran.error["message"]) == ("COMPONENT_FAILED", "out of paper")
    assert ran.step("slow").result == {"outcome": "success", "result": "finished all the same"}


# --- batches and windows ---------------------------------------------------------------------------------------------


def test_a_batch_fails_if_an_item_does_and_keeps_every_result(mesh: CaseMesh) -> None:
    flow = {
        "steps": [noop("a", {"$input": "value"}), broken("b")],
        "output": {"$if": {"$input": "fail"}, "then": of("b"), "else": of("a")},
    }
    ran = mesh.run(flow, {"fail": False, "value": 1}, {"fail": True}, {"fail": False, "value": None})
    assert (ran.status, ran.item_statuses) == ("failed", ["completed", "failed", "completed"])
    assert ran.results == [
        {"outcome": "success", "result": 1},
        {"outcome": "failed", "error": BROKEN},
        {"outcome": "success", "result": None},
    ]


def test_a_batch_without_items_completes(mesh: CaseMesh) -> None:
    ran = mesh.run_batch("detour.yaml", [])
    assert (ran.status, ran.results, ran.steps) == ("completed", [], [])


@pytest.mark.parametrize("window", [1, 2, 4])
def test_as_many_calls_overlap_as_the_window_allows(mesh: CaseMesh, window: int) -> None:
    flow = {"steps": [step("a", "/own/meet", {"group": window}, timeout="20s")], "output": of("a")}
    ran = mesh.run_batch(flow, [None] * 8, window=window)
    assert max(result["result"] for result in ran.results) == window
