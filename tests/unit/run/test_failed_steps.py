"""Which step a failure names, what becomes of a server's own data, and which steps count as skipped."""

from __future__ import annotations

from typing import Any

import pytest
from support.corpus import COUNT_DOWN, ref, step
from support.engine import World

from stepflow.codec import blob_id, decode, encode
from stepflow.errors import Code, Failure
from stepflow.failure_data import FailedStep, failed_step, trace_bytes
from stepflow.run.failed_steps import TRACES_BYTES_MAX
from stepflow.run.state import ENGINE_VERSION
from stepflow.run.views import StepView, list_steps, step_event
from stepflow.step_path import StepPath, SubRunStep, parse_step_path

VERSIONS = pytest.mark.parametrize("version", [1, ENGINE_VERSION])
ASK = {"steps": [step("ask", "/c/fail", {"$input": "$"})], "output": ref("ask")}


def located(tree: dict[str, Any], *inputs: Any, version: int = ENGINE_VERSION, **components: Any) -> World:
    """Run a flow of this version's mesh to its end."""
    made = World(tree, list(inputs) or [{}], engine_version=version, locates_failures=True)
    made.components |= components
    made.run()
    return made


def data_of(world: World, item: int = 0) -> Any:
    outcome = world.state.root.items[item].outcome
    assert isinstance(outcome, Failure)
    return decode(outcome.data) if outcome.data else None


def views(world: World) -> dict[str, StepView]:
    return {view.path: view for view in list_steps(world.replayed(), world.entries())}


# --- the step ---------------------------------------------------------------------------------------------------------


@VERSIONS
def test_a_failure_names_its_step_component_attempt_and_host(version):
    assert data_of(located(ASK, version=version)) == {"step": "ask", "component": "/c/fail", "attempt": 1, "host": "h"}


@VERSIONS
def test_the_path_begins_with_the_item_only_in_a_batch(version):
    world = located(ASK, 1, 2, version=version)
    assert [data_of(world, item)["step"] for item in (0, 1)] == ["0/ask", "1/ask"]


@VERSIONS
def test_a_failed_item_of_a_map_has_its_own_step_in_its_own_error(version):
    tree = {
        "steps": [step("all", "/builtin/map", {"items": [1, 2], "workflow": {"$literal": ASK}})],
        "output": ref("all", "results"),
    }
    world = located(tree, {}, {}, version=version)
    results = [world.shown(item.outcome) for item in world.state.root.items]
    steps = [[one["error"]["data"]["step"] for one in result] for result in results]
    assert steps == [["0/all[0]/ask", "0/all[1]/ask"], ["1/all[0]/ask", "1/all[1]/ask"]]


@VERSIONS
def test_a_failed_iteration_fails_its_step_with_the_inner_step(version):
    inner = {
        "steps": [
            step("n", "/c/id", {"$input": "n"}),
            step("f", "/c/flop", {"$input": "n"}),
        ],
        "output": {"next": {"n": 1}, "seen": [ref("n"), ref("f")]},
    }
    tree = {
        "steps": [step("loop", "/builtin/iterate", {"flow": {"$literal": inner}, "initial_input": {"n": 0}})],
        "output": ref("loop"),
    }
    flop = lambda value, attempt: Failure(Code.COMPONENT_FAILED, "flop") if value else value  # noqa: E731  # a component
    world = located(tree, version=version, flop=flop)
    assert data_of(world) == {"step": "loop[1]/f", "component": "/c/flop", "attempt": 1, "host": "h"}
    assert views(world)["loop"].status == "failed"


def test_a_flow_run_by_a_component_stands_below_its_step():
    tree = {
        "steps": [step("agent", "/c/parent", {"flow": {"$literal": ASK}, "inputs": [1, 2]})],
        "output": ref("agent"),
    }
    assert set(views(located(tree))) == {"agent", "agent[0.0]/ask", "agent[0.1]/ask"}


@pytest.mark.parametrize("name", ["7", "a/b", "a[0]", 'say "x"', "plain"])
def test_every_path_is_read_as_the_step_that_it_names(name):
    inner = encode({"steps": [step(name, "/c/fail", {"$input": "$"})], "output": ref(name)})
    evaluate = step(name, "/builtin/eval", {"flow_id": blob_id(inner), "input": 1})
    tree = {"steps": [evaluate], "output": ref(name, "result.error.data.step")}

    world = World(tree, [{}], blobs={blob_id(inner): inner}, locates_failures=True)
    told = world.run()[0]
    assert [parse_step_path(path) for path in views(world)] == [StepPath(name), StepPath(name, (SubRunStep(name),))]
    assert parse_step_path(told) == StepPath(name, (SubRunStep(name),))


def test_the_attempt_is_the_last_one_and_earlier_failures_name_theirs():
    tree = {"steps": [step("a", "/c/fail", 1, onError={"action": "retry", "maxRetries": 2})], "output": ref("a")}
    world = located(tree)
    assert data_of(world)["attempt"] == 3
    retried = [entry.attempt_failed.failure for entry in world.entries() if entry.HasField("attempt_failed")]
    assert [failed_step(failure.data_json).attempt for failure in retried] == [1, 2]


def test_a_replaced_failure_names_its_step():
    tree = {"steps": [step("a", "/c/fail", onError={"action": "useDefault", "defaultValue": 7})], "output": ref("a")}
    ended = [entry.step_completed for entry in located(tree).entries() if entry.HasField("step_completed")]
    (replaced,) = (fact.replaced for fact in ended)
    assert failed_step(replaced.data_json).step == "a"


def test_a_component_without_a_route_is_named():
    data = data_of(located({"steps": [step("a", "/nowhere/x")], "output": ref("a")}))
    assert (data["step"], data["component"], data["reason"]) == ("a", "/nowhere/x", "no_rule")
    assert "attempt" not in data


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"details": [1.0]}, {"details": [1.0], "step": "a", "component": "/c/own", "attempt": 1, "host": "h"}),
        (
            {"step": "mine", "n": 2},
            {"step": "mine", "n": 2, "stepflow": {"step": "a", "component": "/c/own", "attempt": 1, "host": "h"}},
        ),
        (
            {"step": "forged", "component": "/x", "stepflow": {"step": "forged", "component": "/x"}},
            {
                "step": "forged",
                "component": "/x",
                "stepflow": {"step": "a", "component": "/c/own", "attempt": 1, "host": "h"},
            },
        ),
        ([1, 2], {"data": [1, 2], "step": "a", "component": "/c/own", "attempt": 1, "host": "h"}),
        (None, {"step": "a", "component": "/c/own", "attempt": 1, "host": "h"}),
    ],
)
def test_the_data_of_a_server_are_kept_next_to_the_step(own, expected):
    tree = {"steps": [step("a", "/c/own")], "output": ref("a")}
    world = located(tree, own=lambda value, attempt: Failure(Code.COMPONENT_FAILED, "no", encode(own)))
    assert data_of(world) == expected
    outcome = world.state.root.items[0].outcome
    assert failed_step(outcome.data) == FailedStep("a", "/c/own", 1, "h")


@pytest.mark.parametrize("data", [b"", b"null", b"7", b'{"step":1,"component":[]}', b'{"component":', b'["component"]'])
def test_other_data_name_no_step(data):
    assert failed_step(data) is None


@VERSIONS
def test_runs_of_earlier_versions_stay_as_they_were(version):
    world = World({"steps": [step("b", "/c/id", {"x": {"$input": "n"}})], "output": ref("b")}, engine_version=version)
    world.run()
    assert data_of(world) is None


# --- expressions ------------------------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize(
    ("input", "place"),
    [
        ({"$input": "no.such"}, "steps[0].input"),
        ({"ok": 1, "list": [1, {"name": {"$input": "no"}}]}, "steps[0].input.list[1].name"),
        ({"a.b": {"$input": "no"}}, 'steps[0].input["a.b"]'),
        ({"x": {"$if": False, "then": {"$step": "b"}, "else": [{"$input": "no"}]}}, "steps[0].input.x.else[0]"),
        ({"x": {"$if": True, "then": {"y": {"$variable": "no"}}, "else": 1}}, "steps[0].input.x.then.y"),
        ({"x": {"$coalesce": [None, {"z": {"$input": "no"}}, {"$step": "b"}]}}, "steps[0].input.x.$coalesce[1].z"),
    ],
)
def test_a_failed_input_names_its_place_in_the_flow(version, input, place):
    tree = {"steps": [step("a", "/c/id", input), step("b", "/c/id", 1)], "output": [ref("a"), ref("b")]}
    assert data_of(located(tree, version=version)) == {"step": "a", "component": "/c/id", "expression": place}


@VERSIONS
def test_a_failed_output_names_its_place_in_the_flow(version):
    tree = {"steps": [step("a", "/c/id", {"x": 1})], "output": {"ok": 1, "sum": [ref("a", "y")]}}
    assert data_of(located(tree, version=version)) == {"expression": "output.sum[0]"}


@VERSIONS
def test_a_failed_output_of_an_inner_flow_names_the_item_of_its_step(version):
    inner = {"steps": [step("a", "/c/id", {"x": 1})], "output": ref("a", "y")}
    tree = {
        "steps": [step("all", "/builtin/map", {"items": [1], "workflow": {"$literal": inner}})],
        "output": ref("all", "results"),
    }
    ((result,),) = located(tree, version=version).outcomes()
    assert result["error"]["data"] == {"step": "all[0]", "expression": "output"}


def test_too_large_a_text_names_the_whole_input():
    big = {"$input": "text"}
    tree = {"steps": [step("a", "/c/id", [big] * 20)], "output": ref("a")}
    assert data_of(located(tree, {"text": "x" * (1 << 20)}, version=1))["expression"] == "steps[0].input"


# --- steps that never ran ---------------------------------------------------------------------------------------------

CHAIN = {
    "steps": [
        step("a", "/c/id", 1),
        step("b", "/c/fail", ref("a")),
        step("c", "/c/id", ref("b")),
        step("d", "/c/id", ref("c")),
    ],
    "output": ref("d"),
}


@VERSIONS
@pytest.mark.parametrize("locates", [True, False])
def test_steps_that_need_a_failed_step_are_skipped_and_name_it(version, locates):
    """Also in journals written before failures named their step."""
    world = World(CHAIN, engine_version=version, locates_failures=locates)
    world.run()
    found = {view.step_id: (view.status, view.skipped_for) for view in list_steps(world.replayed(), world.entries())}
    assert found == {"a": ("completed", ""), "b": ("failed", ""), "c": ("skipped", "b"), "d": ("skipped", "b")}


@VERSIONS
def test_a_skipped_step_has_the_failure_of_the_failed_one_unchanged(version):
    world = located(CHAIN, version=version)
    shown = views(world)
    assert shown["b"].outcome == shown["c"].outcome == shown["d"].outcome == world.state.root.items[0].outcome


def test_events_tell_which_step_was_skipped_and_why():
    world = located(CHAIN)
    state = world.replayed()
    events = [event for entry in world.entries() if (event := step_event(state, entry)) is not None]
    assert [(event.kind, event.path, event.message) for event in events] == [
        ("completed", "a", ""),
        ("failed", "b", ""),
        ("skipped", "c", "b"),
        ("skipped", "d", "b"),
    ]


def test_a_step_whose_own_input_fails_is_failed_and_not_skipped():
    tree = {"steps": [step("a", "/c/id", {"x": 1}), step("b", "/c/id", ref("a", "y"))], "output": ref("b")}
    assert {path: view.status for path, view in views(located(tree)).items()} == {"a": "completed", "b": "failed"}


def test_a_component_that_fails_like_an_unused_step_is_failed():
    """The other branch of a condition is no cause, even if its failure has the same words."""
    tree = {
        "steps": [
            step("a", "/c/bad", 1, mustExecute=True),
            step("b", "/c/bad", {"$if": True, "then": 2, "else": ref("a")}),
        ],
        "output": ref("b"),
    }
    assert {path: view.status for path, view in views(located(tree)).items()} == {"a": "failed", "b": "failed"}


# --- traces -----------------------------------------------------------------------------------------------------------


def test_the_traces_of_a_partition_are_bounded_and_only_final_failures_have_one():
    frames = [{"file": "c.py", "line": 1, "function": "f", "code": "x" * 4000}]
    tree = {
        "steps": [
            step("a", "/c/traced", 1, onError={"action": "retry", "maxRetries": 1}),
            step("b", "/c/id", ref("a")),
        ],
        "output": ref("b"),
    }
    world = located(
        tree,
        *range(40),
        traced=lambda value, attempt: Failure(Code.COMPONENT_FAILED, "no", encode({"n": 1, "frames": frames})),
    )
    ended = [entry.step_completed.failure.data_json for entry in world.entries() if entry.HasField("step_completed")]
    retried = [entry.attempt_failed.failure.data_json for entry in world.entries() if entry.HasField("attempt_failed")]
    assert sum(map(trace_bytes, ended)) <= TRACES_BYTES_MAX + 2 * 4200
    assert trace_bytes(ended[0]) > 4000
    assert not any(map(trace_bytes, retried))
    assert all(decode(data)["n"] == 1 and failed_step(data).component == "/c/traced" for data in ended + retried)
    assert world.replayed().trace_bytes == world.state.trace_bytes


def test_marked_values_are_removed_from_traces_and_the_step_stays():
    tree = {
        "schemas": {
            "properties": {"input": {"type": "object", "properties": {"key": {"type": "string", "is_secret": True}}}}
        },
        "steps": [step("a", "/c/traced", {"$input": "key"})],
        "output": ref("a"),
    }

    def traced(value: Any, attempt: int) -> Failure:
        told = {
            "frames": [{"code": f"log({value!r})"}],
            "causes": [{"exception": f"KeyError: {value}"}],
            "stderr": value,
        }
        return Failure(Code.COMPONENT_FAILED, f"no {value} at {attempt}", encode(told))

    world = located(tree, {"key": "hunter2-hunter2"}, traced=traced)
    assert data_of(world)["step"] == "a"
    assert data_of(world)["stderr"] == "[REDACTED]"
    assert not any(b"hunter2" in raw for raw in world.journal)


@VERSIONS
def test_every_owner_tells_the_same_failure(version):
    """A crash after any entry changes neither the failures that are journaled nor those that are derived."""
    inner = {
        "steps": [step("ask", "/c/fail", {"$input": "$"})],
        "output": {"x": ref("ask", "y"), "z": {"$input": "no"}},
    }
    tree = {
        "steps": [
            step("all", "/builtin/map", {"items": [1, 2], "workflow": {"$literal": inner}}),
            step("down", "/builtin/iterate", {"flow": {"$literal": COUNT_DOWN}, "initial_input": {"n": 2}}),
            step("last", "/c/id", {"a": ref("all"), "no": ref("down", "none")}),
        ],
        "output": [ref("all"), ref("last")],
    }
    whole = located(tree, 1, version=version)
    for cut in range(1, len(whole.journal)):
        other = World(tree, [1], engine_version=version, locates_failures=True)
        other.journal = whole.journal[:cut]
        other.crash()
        other.run()
        assert (
            data_of(other)
            == data_of(whole)
            == {
                "step": "last",
                "component": "/c/id",
                "expression": "steps[2].input.no",
            }
        )
        before, after = (world.text(world.state.root.items[0].env.results[0]) for world in (whole, other))
        assert _without_attempts(before) == _without_attempts(after)


def _without_attempts(text: bytes) -> Any:
    tree = decode(text)
    for result in tree["results"]:
        result["error"]["data"].pop("attempt")
    return tree
