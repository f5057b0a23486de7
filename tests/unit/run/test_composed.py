"""Composed values of a run of engine version 2: their bounds, and what of them must be in memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from support.corpus import ref, step
from support.engine import World

from stepflow.codec import RESULT_BYTES_MAX, decode, encode
from stepflow.flow.values import Composed, Journaled, Part, Stored, flat
from stepflow.run.state import ENGINE_VERSION

MIB = 1024 * 1024


def world(tree: dict[str, Any], **options: Any) -> World:
    return World(tree, engine_version=ENGINE_VERSION, **options)


def outcome(world: World) -> Any:
    return world.state.root.items[0].outcome


def drive(world: World) -> None:
    """Drive a run to its end without a look at its results, which may be large."""
    while world.state.status is None:
        world.step(0)


def test_an_output_far_larger_than_memory_takes_none() -> None:
    text = "x" * 15 * MIB
    steps = [step("a", "/c/id", text)]
    large = world({"steps": steps, "output": [ref("a")] * 60})
    tracemalloc.start()
    drive(large)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(outcome(large), Composed)
    assert outcome(large).size > 60 * 15 * MIB
    assert peak_bytes < 12 * 15 * MIB


def test_an_output_above_the_limit_of_results_fails() -> None:
    too_large = world({"steps": [step("a", "/c/id", "x" * 15 * MIB)], "output": [ref("a")] * 80})
    ((code, message),) = too_large.run()
    assert (code, f"{RESULT_BYTES_MAX:,}" in message) == ("EXPRESSION_FAILURE", True)


def test_an_output_of_a_few_kilobytes_cannot_have_more_parts_than_memory_can_hold() -> None:
    """Each step multiplies the number of parts."""
    flow = {"output": [{"$input": "$"}] * 10}
    inner: dict[str, Any] = flow
    for _ in range(8):
        inner = {
            "steps": [step("e", "/builtin/map", {"workflow": {"$literal": inner}, "items": ["x" * 10]})],
            "output": [ref("e")] * 10,
        }
    (result,) = world(inner).run()
    assert b"has more than 1,000,000 parts" in encode(result)


def test_an_input_above_the_limit_names_its_size_and_the_way_out_and_is_not_joined() -> None:
    steps = [step("a", "/c/id", "x" * 9 * MIB), step("b", "/c/id", [ref("a")] * 3)]
    run = world({"steps": steps, "output": ref("b")})
    ((code, message),) = run.run()
    assert code == "EXPRESSION_FAILURE"
    for told in ("28,311,", "16,777,216", "path", "put_blob"):
        assert told in message
    assert [key.rpartition("/")[2] for key, _ in run.dispatched] == ["a"]


def test_a_small_run_is_told_of_an_input_above_the_limit_in_the_same_words() -> None:
    steps = [step("b", "/c/id", [{"$input": "$"}] * 3)]
    ((_, message),) = world({"steps": steps, "output": ref("b")}, inputs=["x" * 9 * MIB]).run()
    assert "28,311," in message
    assert "put_blob" in message


def test_an_output_refers_to_the_results_that_it_has() -> None:
    steps = [step("a", "/c/medium", 1), step("b", "/c/big", 2)]
    output = [ref("a"), ref("a", "text"), ref("b"), ref("b", "text"), ref("b", "n")]
    run = world({"steps": steps, "output": output})
    drive(run)
    kinds = [type(piece) for piece in outcome(run).pieces if not isinstance(piece, bytes)]
    assert kinds == [Journaled, Part, Stored, Part]
    assert not outcome(run).pieces[5].loaded
    assert decode(run.text(outcome(run)))[4] == 2


def test_a_map_keeps_no_copy_of_large_results_of_its_items() -> None:
    item = {"steps": [step("b", "/c/huge", {"$input": "$"})], "output": {"text": ref("b", "text")}}
    steps = [step("m", "/builtin/map", {"workflow": {"$literal": item}, "items": list(range(30))})]
    run = world({"steps": steps, "output": ref("m", "successful")})
    run.components["huge"] = lambda value, attempt: {"text": "x" * MIB, "n": value}
    assert run.run() == [30]
    mapped = run.state.root.items[0].env.results[0]
    assert isinstance(mapped, Composed)
    pieces = list(flat(mapped))
    assert sum(len(piece) for piece in pieces if isinstance(piece, bytes)) < 4_000
    parts = [piece for piece in pieces if isinstance(piece, Part)]
    assert (len(parts), any(part.source.raw for part in parts)) == (30, False)


def test_new_texts_of_an_output_are_moved_to_the_blob_store() -> None:
    steps = [step("a", "/c/big", 1), step("b", "/c/id", ref("a"))]
    output = {"$if": ref("b"), "then": [{"$input": "list"}, "y" * 40_000], "else": 0}
    run = world({"steps": steps, "output": output}, inputs=[{"list": [1.5] * 20_000}])
    assert run.run() == [[[1.5] * 20_000, "y" * 40_000]]
    assert not run.state.unstored
    value = outcome(run)
    assert isinstance(value, Stored)
    assert not value.loaded


def test_a_step_of_a_derived_result_has_no_result_in_the_journal() -> None:
    run = world(
        {"steps": [step("m", "/builtin/map", {"workflow": {"$literal": {}}, "items": [1]})], "output": ref("m")}
    )
    assert run.run() == [{"results": [{"outcome": "success", "result": None}], "successful": 1, "failed": 0}]
    (done,) = [entry.step_completed for entry in run.entries() if entry.HasField("step_completed")]
    assert done.of_sub_run
    assert done.WhichOneof("outcome") is None


def test_a_next_input_above_the_limit_fails_its_iterate() -> None:
    flow = {"steps": [step("a", "/c/id", {"$input": "text"})], "output": {"next": {"text": [ref("a")] * 3}}}
    input = {"flow": {"$literal": flow}, "initial_input": {"text": "x" * 9 * MIB}}
    run = world({"steps": [step("i", "/builtin/iterate", input)], "output": ref("i")})
    ((code, message),) = run.run()
    assert code == "EXPRESSION_FAILURE"
    assert "16,777,216" in message


@pytest.mark.parametrize("version", [1, ENGINE_VERSION])
def test_a_value_that_grows_deeper_every_round_is_stopped(version: int) -> None:
    deeper = {"output": {"next": [{"$input": "$"}]}}
    input = {"flow": {"$literal": deeper}, "initial_input": "x" * 600}
    tree = {"steps": [step("i", "/builtin/iterate", input)], "output": ref("i")}
    ((code, message),) = World(tree, engine_version=version).run()
    assert code == "EXPRESSION_FAILURE"
    assert "deeper" in message
