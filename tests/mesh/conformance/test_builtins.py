"""Blobs, messages, and nested flows: conformance cases of the builtin components."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support import server_venv
from support.conformance import FLOWS, MESHES, open_case_mesh

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.conformance import CaseMesh


def step(step_id: str, component: str, input: Any = None, **members: Any) -> dict[str, Any]:
    return {"id": step_id, "component": component, "input": input, **members}


# --- blobs and messages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "blob_id"),
    [
        (
            {"message": "Hello, blobs!", "number": 42, "nested": {"array": [1, 2, 3], "boolean": True}},
            "868591347a854ba1d0f4875b2dd44e1e8335052af03725a9819f89e0142318b0",
        ),
        (
            {"number_squared": 1764, "original_message": "Hello, blobs!", "processed_by": "python_udf"},
            "334218f4b25c36515c313f6c7e23cce968f3dc287eec3064187bd8f0f32379f5",
        ),
    ],
)
def test_a_blob_has_the_id_that_others_give_it_and_can_be_read_back(mesh: CaseMesh, data: Any, blob_id: str) -> None:
    assert mesh.run("keep.yaml", data).value == {"id": blob_id, "data": data}


def test_a_blob_that_is_not_there_fails_the_step(mesh: CaseMesh) -> None:
    flow = {"steps": [step("a", "/builtin/get_blob", {"blob_id": "0" * 64})], "output": {"$step": "a"}}
    assert mesh.run(flow).error["code"] == "RESOURCE_UNAVAILABLE"


def test_a_prompt_alone_makes_one_message(mesh: CaseMesh) -> None:
    flow = {"steps": [step("a", "/builtin/create_messages", {"user_prompt": "Why?"})], "output": {"$step": "a"}}
    assert mesh.run(flow).value == {"messages": [{"role": "user", "content": "Why?"}]}


# --- eval and map ----------------------------------------------------------------------------------------------------


def test_a_flow_kept_in_a_blob_is_evaluated(mesh: CaseMesh) -> None:
    ran = mesh.run("nested.yaml")
    assert ran.value["result"] == {"outcome": "success", "result": "the inner flow"}
    assert ran.value["run_id"] != ran.run_id, "the sub-run has an id of its own"
    assert ("noted", 1) in {(step.id, step.depth) for step in ran.steps}


def test_a_map_gives_its_results_in_order_and_counts_them(mesh: CaseMesh) -> None:
    questions = ["Why?", "When?", "Who?"]
    items = [{"question": question} for question in questions]
    assert mesh.run("prompts.yaml", {"questions": items}).value == {
        "results": [{"outcome": "success", "result": question} for question in questions],
        "successful": 3,
        "failed": 0,
    }


def test_a_map_over_nothing_has_no_results(mesh: CaseMesh) -> None:
    assert mesh.run("prompts.yaml", {"questions": []}).value == {"results": [], "successful": 0, "failed": 0}


def test_a_map_does_not_fail_with_its_items(mesh: CaseMesh) -> None:
    ran = mesh.run("prompts.yaml", {"questions": [{"question": "Why?"}, {}]})
    assert (ran.value["successful"], ran.value["failed"]) == (1, 1)
    assert ran.value["results"][1]["error"]["message"] == "Input path $.question not found"


@pytest.mark.parametrize(("bound", "window", "peak"), [(2, 4, 2), (4, 2, 2), (None, 4, 4)])
def test_a_map_keeps_to_its_own_bound_and_to_the_window(
    mesh: CaseMesh, bound: int | None, window: int, peak: int
) -> None:
    inner = {"steps": [step("m", "/own/meet", {"group": peak}, timeout="20s")], "output": {"$step": "m"}}
    mapped = {"workflow": {"$literal": inner}, "items": [1, 2, 3, 4], "max_concurrency": bound}
    ran = mesh.run({"steps": [step("a", "/builtin/map", mapped)], "output": {"$step": "a"}}, window=window)
    assert max(result["result"] for result in ran.value["results"]) == peak


# --- iterate ---------------------------------------------------------------------------------------------------------

COUNTDOWN = {"steps": [step("s", "/mock/countdown", {"left": {"$input": "left"}})], "output": {"$step": "s"}}


def iterate(left: Any, **members: Any) -> dict[str, Any]:
    given = {"flow": {"$literal": COUNTDOWN}, "initial_input": {"left": left}, **members}
    return {"steps": [step("a", "/builtin/iterate", given)], "output": {"$step": "a"}}


def test_iterating_ends_with_the_first_result(mesh: CaseMesh) -> None:
    assert mesh.run(iterate(3)).value == {"result": "lift-off", "iterations": 3, "terminated": False}
    assert mesh.run(iterate("nothing")).value == {"result": None, "iterations": 1, "terminated": False}


def test_iterating_stops_at_its_bound_with_what_would_come_next(mesh: CaseMesh) -> None:
    ran = mesh.run(iterate(3, max_iterations=2))
    assert ran.value == {"result": {"left": 1}, "iterations": 2, "terminated": True}


@pytest.mark.parametrize("left", [0, "a text"])
def test_iterating_needs_a_result_or_a_next_input(mesh: CaseMesh, left: Any) -> None:
    error = mesh.run(iterate(left)).error
    expected = "Workflow result must contain either 'result' or 'next' field"
    assert (error["code"], error["message"]) == ("INVALID_INPUT", expected)


def test_a_failing_iteration_fails_the_step_with_its_error(mesh: CaseMesh) -> None:
    assert mesh.run(iterate(-1)).error == {"code": "INVALID_INPUT", "message": "too late"}


# --- sub-runs --------------------------------------------------------------------------------------------------------


def test_a_sub_run_has_failed_when_a_step_has_although_its_item_is_fine(mesh: CaseMesh) -> None:
    inner = {
        "steps": [step("a", "/mock/broken_scale", mustExecute=True), step("b", "/builtin/noop", "fine")],
        "output": {"$step": "b"},
    }
    sound = {"steps": inner["steps"][1:], "output": inner["output"]}
    for flow, status in ((inner, "failed"), (sound, "completed")):
        asked = {"flow": {"$literal": flow}, "inputs": [None]}
        ran = mesh.run({"steps": [step("s", "/own/run_and_report", asked)], "output": {"$step": "s"}})
        assert ran.value["status"] == status
        assert ran.value["results"] == [
            {"itemIndex": 0, "status": "completed", "result": {"outcome": "success", "result": "fine"}}
        ]
        assert ran.status == "completed"


# --- user-defined functions ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=MESHES)
def udf_mesh(request: pytest.FixtureRequest) -> Iterator[CaseMesh]:
    """Give a mesh whose `/python` is the stock server of stepflow-py."""
    server = server_venv(["stepflow-py==0.7.0"], "stepflow-py-0.7.0") / "stepflow_py"
    with open_case_mesh(request.param, FLOWS / "udf-config.yml", {"UDF_SERVER": str(server)}) as mesh:
        yield mesh


@pytest.mark.timeout(400)  # the first test that needs the server installs it
def test_a_function_that_raises_fails_with_its_own_words(udf_mesh: CaseMesh) -> None:
    assert udf_mesh.run("udf.yaml", {"parts": 8}).value == 12
    error = udf_mesh.run("udf.yaml", {"parts": 0}).error
    assert error["code"] == "COMPONENT_FAILED"
    assert error["message"].startswith("Function execution failed: ")
    assert "by zero" in error["message"]
