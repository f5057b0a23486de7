"""The table of phase transitions: complete, enforced, exercised by the corpus, and documented."""

from __future__ import annotations

from itertools import product

import pytest
import run_states
from support import ROOT
from support.corpus import CORPUS, step, world
from support.engine import World

from stepflow.codec import JSON_DEPTH_MAX, decode
from stepflow.errors import DataLoss, FailedPrecondition
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run import Phase, StepRun, apply
from stepflow.run.apply import ENTRY_KINDS
from stepflow.run.phases import TRANSITIONS, IllegalTransition

LEGAL = {(each.source, each.target) for each in TRANSITIONS}


def test_every_kind_of_entry_has_a_function_that_records_it() -> None:
    assert set(ENTRY_KINDS) == {field.name for field in pb.Entry.DESCRIPTOR.oneofs_by_name["kind"].fields}


def test_an_entry_without_a_known_kind_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="not known to this version") as refused:
        apply(world("chain").state, pb.Entry(at_ms=1))
    assert refused.value.reason == "ENTRY_UNKNOWN"


def test_the_table_names_each_transition_once() -> None:
    assert len(LEGAL) == len(TRANSITIONS)


def test_every_phase_is_reached_and_all_but_the_last_are_left() -> None:
    assert {source for source, _ in LEGAL} == set(Phase) - {Phase.DONE}
    assert {Phase.READY} | {target for _, target in LEGAL} == set(Phase)


@pytest.mark.parametrize(("source", "target"), list(product(Phase, Phase)), ids=lambda phase: phase.name)
def test_a_step_makes_the_transitions_of_the_table_and_no_others(source: Phase, target: Phase) -> None:
    step = active_step()
    step.phase = source
    if (source, target) in LEGAL:
        step.enter(target)
        assert step.phase is target
    else:
        with pytest.raises(IllegalTransition, match=f"'a' cannot go from {source.name} to {target.name}"):
            step.enter(target)
        assert step.phase is source


def test_an_entry_that_makes_an_illegal_transition_is_refused_as_loss_of_data() -> None:
    calling = world("chain")
    calling.turn()
    with pytest.raises(DataLoss, match="cannot go from IN_FLIGHT to SLEEPING"):
        apply(calling.state, pb.Entry(at_ms=calling.now_ms, timer_set=pb.TimerSet(fire_at_ms=1)))


FAILING = {"steps": [step("f", "/c/fail")], "output": {"$step": "f"}}

RETRIED = {
    name: {"steps": [step("a", f"/builtin/{name}", input, onError={"action": "retry"})], "output": {"$step": "a"}}
    for name, input in {
        "eval": {"flow_id": "0" * 64, "input": None},
        "iterate": {"flow": {"$literal": FAILING}, "initial_input": 0},
        "wait_for_signal": {"name": "go"},
    }.items()
}
"""Engine components whose attempts fail: a missing flow, a failing iteration, an output nested too deep."""

NOT_MADE = {
    (Phase.RETRYING, Phase.SLEEPING): "the path of a failed step must be routed to `sleep` by the next owner",
    (Phase.SLEEPING, Phase.RETRYING): "the output of a `sleep` must exceed a limit that its input does not exceed",
}
"""Legal transitions that no run below makes, with what it would take."""


def test_runs_and_replays_make_every_transition_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    made: set[tuple[Phase, Phase]] = set()
    enter = StepRun.enter

    def noted(step: StepRun, phase: Phase) -> None:
        made.add((step.phase, phase))
        enter(step, phase)

    monkeypatch.setattr(StepRun, "enter", noted)
    for name in CORPUS:
        run_and_replay(world(name))
    deep = decode(b"[" * JSON_DEPTH_MAX + b"]" * JSON_DEPTH_MAX)
    for tree in RETRIED.values():
        run_and_replay(World(tree, signals=[(0, "go", deep)] * 4))
    assert LEGAL - made == set(NOT_MADE)


def run_and_replay(whole: World) -> None:
    whole.run()
    for cut in range(1, len(whole.journal) + 1):
        whole.replayed(cut)


def active_step() -> StepRun:
    return World({"steps": [{"id": "a", "component": "/c/id"}], "output": {"$step": "a"}}).state.root.items[0].active[0]


def test_the_page_on_states_is_drawn_from_the_table() -> None:
    page = (ROOT / "docs" / "explanation" / "run-states.md").read_text("utf-8")
    assert page == run_states.page(), "run: python tests/run_states.py > docs/explanation/run-states.md"
