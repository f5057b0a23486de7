"""A marked value of a run is in none of its journaled failures, whatever the flow does with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support.corpus import ref, step
from support.engine import World

from stepflow.codec import blob_id, encode
from stepflow.flow.values import Stored
from stepflow.mesh.v1 import journal_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stepflow.run.state import RunState

MARKED = {
    "type": "object",
    "properties": {
        "input": {"type": "object", "properties": {"pw": {"type": "string", "is_secret": True}}},
        "variables": {"type": "object", "properties": {"key": {"type": "string", "is_secret": True}}},
    },
}
PW, KEY = "hunter2-the-input", "hunter2-the-variable"
ASKED = {"pw": {"$input": "pw"}, "key": {"$variable": "key"}}
FAILING: dict[str, Any] = {"steps": [step("s", "/c/fail", {"$input": "$"})], "output": ref("s")}
ITERATING: dict[str, Any] = {
    "steps": [step("i", "/builtin/iterate", {"flow": {"$literal": FAILING}, "initial_input": ASKED})],
    "output": ref("i"),
}


def failures(world: World) -> Iterator[pb.Failure]:
    for raw in world.journal:
        entry = pb.Entry.FromString(raw)
        if entry.HasField("step_completed"):
            yield from (entry.step_completed.failure, entry.step_completed.replaced)
        elif entry.HasField("attempt_failed"):
            yield entry.attempt_failed.failure


def said(world: World) -> str:
    found = [failure for failure in failures(world) if failure.code]
    assert found, "nothing failed"
    return " ".join(f"{failure.message} {failure.data_json.decode()}" for failure in found)


def run(tree: dict[str, Any], choices: tuple[int, ...] = (), kind: type[World] = World) -> str:
    world = kind({"schemas": MARKED, **tree}, inputs=[{"pw": PW}], variables={"key": KEY})
    world.run(choices)
    text = said(world)
    assert PW not in text
    assert KEY not in text
    return text


def test_marked_inputs_and_variables_are_taken_out_of_every_attempt() -> None:
    retried = step("s", "/c/fail", ASKED, onError={"action": "retry", "maxRetries": 2})
    text = run({"steps": [retried], "output": ref("s")})
    assert text.count("[REDACTED]") == 2 * 3


def test_marked_values_are_taken_out_of_a_failure_that_a_default_replaces() -> None:
    run(
        {
            "steps": [step("s", "/c/fail", ASKED, onError={"action": "useDefault", "defaultValue": 1})],
            "output": ref("s"),
        }
    )


def test_marked_values_are_taken_out_of_failures_of_sub_runs_also_after_a_crash() -> None:
    for choices in ((), (-1,)):
        for kind in (World, StoredInput):
            assert run(ITERATING, choices, kind).count("[REDACTED]") == 2 * 2


def test_a_marked_value_of_two_characters_is_taken_out_where_it_stands_alone() -> None:
    fail = step("s", "/c/fail", {"text": {"$input": "pw"}, "other": "k9 or k9x"})
    world = World({"schemas": MARKED, "steps": [fail], "output": ref("s")}, inputs=[{"pw": "k9"}])
    world.run()
    text = said(world)
    assert "[REDACTED] or k9x" in text
    assert "k9" not in text.replace("k9x", "")


class StoredInput(World):
    """The input is in the blob store."""

    def _fresh(self) -> RunState:
        state = super()._fresh()
        raw = encode(self.inputs[0])
        self.blobs[blob_id(raw)] = raw
        state.root.inputs[:] = [Stored(blob_id(raw))]
        return state


def test_a_marked_value_of_an_input_in_the_blob_store_is_known_too() -> None:
    for choices in ((), (-1,)):
        text = run({"steps": [step("s", "/c/fail", ASKED)], "output": ref("s")}, choices, StoredInput)
        assert text.count("[REDACTED]") == 2


def test_a_flow_without_marks_keeps_its_failures() -> None:
    world = World({"steps": [step("s", "/c/fail", {"$input": "$"})], "output": ref("s")}, inputs=[{"pw": PW}])
    world.run()
    assert PW in said(world)
