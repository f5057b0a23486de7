"""The engine's invariants over a corpus of small flows: completion orders and crash points are searched at random.

Method: `support.engine.World` runs a flow with components that are pure functions; hypothesis picks the order of
answers and the crash points of the owner; the invariants below must hold on every path.
"""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpus import CORPUS, EXPECTED, ref, step, world
from support.engine import World

from stepflow.codec import blob_id, encode
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.retry import RETRY_AFTER_MS_MAX
from stepflow.run.state import ADOPTIONS_FRUITLESS_MAX, ADOPTIONS_IN_A_ROW_MAX, ENGINE_VERSION, POISON_WINDOW_MS
from stepflow.run.views import list_steps

VERSIONS = (1, ENGINE_VERSION)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_flow_without_trouble_gives_its_result(name, version):
    assert world(name, engine_version=version).run() == EXPECTED[name]


choices = st.lists(st.integers(min_value=-1, max_value=7), max_size=40).filter(
    # A run whose owners die without any progress is given up: that has a test of its own.
    lambda found: all(sum(c < 0 for c in found[i : i + 5]) < 3 for i in range(len(found)))
)


@settings(max_examples=60, deadline=None)
@given(choices=choices, window=st.integers(1, 4), version=st.sampled_from(VERSIONS))
@pytest.mark.parametrize("name", sorted(CORPUS))
def test_neither_order_nor_crashes_change_the_result(name, choices, window, version):
    """Also: nothing journaled runs again, no attempt number is used twice, the window holds, replay agrees."""
    calm = world(name, engine_version=1)
    expected = calm.run()
    stormy = world(name, window=window, engine_version=version)
    assert stormy.run(choices) == expected
    assert len(set(stormy.dispatched)) == len(stormy.dispatched), "an attempt was dispatched twice"
    completed = stormy.completed_keys()
    assert len(set(completed)) == len(completed), "a step completed twice"
    assert sorted(completed) == sorted(calm.completed_keys()), "other steps ran"
    assert stormy.slots_peak <= window
    again = stormy.replayed()
    assert again.status == stormy.state.status
    assert [stormy.shown(item.outcome) for item in again.root.items] == expected


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", sorted(CORPUS))
def test_every_prefix_of_a_journal_leads_to_the_same_result(name, version):
    whole = world(name, engine_version=version)
    expected = whole.run()
    for cut in range(1, len(whole.journal)):
        other = world(name, engine_version=version)
        other.journal, other.blobs = whole.journal[:cut], dict(whole.blobs)
        done = set()
        for raw in other.journal:
            entry = pb.Entry.FromString(raw)
            if entry.WhichOneof("kind") == "step_completed":
                done.add((entry.scope, entry.item, entry.step))
        other.dispatched.clear()
        taken = sum(pb.Entry.FromString(raw).WhichOneof("kind") == "inbox_taken" for raw in other.journal)
        other.signals = other.signals[taken:]
        other.crash()
        assert other.run() == expected, f"cut after {cut} entries"
        later = [pb.Entry.FromString(raw) for raw in other.journal[cut:]]
        assert not done & {(e.scope, e.item, e.step) for e in later if e.WhichOneof("kind") == "step_completed"}


def test_a_step_is_dispatched_only_after_what_its_input_needs():
    diamond = world("diamond")
    diamond.run([1, 0, 1])
    order = [key.rpartition("/")[2] for key, _ in diamond.dispatched]
    assert order[0] == "a"
    assert order[-1] == "d"


def test_only_the_chosen_branch_runs():
    late = world("late discovery")
    late.run()
    assert {key.rpartition("/")[2] for key, _ in late.dispatched} == {"c", "a"}


def test_a_parent_lends_its_place_so_a_window_of_one_suffices():
    callback = world("call-back", window=1)
    assert callback.run() == EXPECTED["call-back"]
    assert callback.slots_peak == 1


def test_attempts_count_failures_and_adoptions():
    flaky = World({"steps": [step("f", "/c/flaky", 5, onError={"action": "retry"})], "output": ref("f")})
    flaky.step(0)
    flaky.crash()
    assert flaky.run() == [5]
    attempts = [attempt for _, attempt in flaky.dispatched]
    assert attempts == [1, 3]  # one failure and one adoption lie between them


def test_a_held_call_is_joined_under_its_attempt():
    chain = world("chain")
    assert chain.dispatched[-1][1] == 1
    chain.crash(keep=1)
    assert chain.dispatched[-1][1] == 1
    assert chain.run() == EXPECTED["chain"]


def test_component_failures_are_retried_within_their_budget_and_not_beyond():
    tree = {"steps": [step("f", "/c/fail", 0, onError={"action": "retry", "maxRetries": 2})], "output": ref("f")}
    failing = World(tree)
    assert failing.run() == [("COMPONENT_FAILED", "failed on 0")]
    assert [attempt for _, attempt in failing.dispatched] == [1, 2, 3]


def test_a_default_after_retries_replaces_what_they_leave():
    on_error = {"action": "retry", "maxRetries": 1, "then": {"action": "useDefault", "defaultValue": "d"}}
    failing = World({"steps": [step("f", "/c/fail", 0, onError=on_error)], "output": ref("f")})
    assert failing.run() == ["d"]
    assert len(failing.dispatched) == 2


def test_invalid_input_is_never_retried():
    failing = World({"steps": [step("f", "/c/bad", 0, onError={"action": "retry"})], "output": ref("f")})
    assert failing.run() == [("INVALID_INPUT", "bad input")]
    assert len(failing.dispatched) == 1


def test_a_lost_call_is_retried_before_a_default_applies():
    tree = {"steps": [step("g", "/c/gone", 0, onError={"action": "useDefault", "defaultValue": 1})], "output": ref("g")}
    lost = World(tree, transport_retries=2)
    assert lost.run() == [1]
    assert len(lost.dispatched) == 3


def test_a_timeout_takes_the_default_at_once():
    tree = {"steps": [step("s", "/c/slow", 0, onError={"action": "useDefault"})], "output": ref("s")}
    slow = World(tree)
    assert slow.run() == [None]
    assert len(slow.dispatched) == 1


def test_retries_wait_for_their_back_off():
    lost = world("transport")
    before = lost.now_ms
    lost.run()
    assert lost.now_ms >= before + 1000


@pytest.mark.parametrize(
    ("asked_ms", "least_ms", "most_ms"),
    [
        (60_000, 60_000, 60_000),
        (5, 1_000, 1_200),
        (RETRY_AFTER_MS_MAX * 10, RETRY_AFTER_MS_MAX, RETRY_AFTER_MS_MAX),
        (-60_000, 1_000, 1_200),
        ("soon", 1_000, 1_200),
        (1e300, 1_000, 1_200),
        (True, 1_000, 1_200),
    ],
)
def test_a_retry_waits_at_least_as_long_as_the_service_asks(asked_ms, least_ms, most_ms):
    on_error = {"action": "retry", "maxRetries": 1}
    busy = World({"steps": [step("f", "/c/busy", asked_ms, onError=on_error)], "output": ref("f")})
    before = busy.now_ms
    assert busy.run() == [("RESOURCE_UNAVAILABLE", "busy")]
    assert least_ms <= busy.now_ms - before <= most_ms + 100


def test_retry_budgets_survive_the_owner():
    tree = {"steps": [step("f", "/c/fail", 0, onError={"action": "retry", "maxRetries": 2})], "output": ref("f")}
    failing = World(tree)
    failing.step(0)
    failing.crash()
    failing.run()
    failed = [e for e in failing.entries() if e.WhichOneof("kind") == "attempt_failed"]
    assert len(failed) == 2


def test_a_step_of_an_unknown_route_fails_and_ignores_its_default():
    tree = {"steps": [step("n", "/nowhere/x", 0, onError={"action": "useDefault"})], "output": ref("n")}
    assert World(tree).run() == [("ORCHESTRATOR_ERROR", "error routing component")]


def test_a_failing_input_ignores_the_default():
    tree = {
        "steps": [step("n", "/c/id", {"$input": "nope"}, onError={"action": "useDefault"})],
        "output": ref("n"),
    }
    assert World(tree).run() == [("EXPRESSION_FAILURE", "Input path $.nope not found")]


def test_a_cycle_in_an_embedded_flow_fails_its_item():
    cyclic = {"steps": [step("a", "/c/id", ref("b")), step("b", "/c/id", ref("a"))], "output": ref("a")}
    tree = {"steps": [step("m", "/builtin/map", {"workflow": {"$literal": cyclic}, "items": [1]})], "output": ref("m")}
    (result,) = World(tree).run()
    assert result["failed"] == 1
    assert result["results"][0]["error"]["code"] == "ORCHESTRATOR_ERROR"


def test_a_flow_that_maps_itself_without_end_is_stopped():
    endless = {
        "steps": [step("e", "/builtin/eval", {"flow_id": {"$input": "$"}, "input": {"$input": "$"}})],
        "output": ref("e"),
    }
    document = encode(endless)
    tree = {
        "steps": [step("e", "/builtin/eval", {"flow_id": blob_id(document), "input": blob_id(document)})],
        "output": ref("e"),
    }
    result = World(tree, blobs={blob_id(document): document}).run()[0]
    for _ in range(200):
        if result["result"]["outcome"] == "failed":
            break
        result = result["result"]["result"]
    assert result["result"]["error"]["code"] == "ORCHESTRATOR_ERROR"


def test_eval_of_a_missing_flow_says_so():
    tree = {"steps": [step("e", "/builtin/eval", {"flow_id": "0" * 64, "input": None})], "output": ref("e")}
    ((code, message),) = World(tree).run()
    assert code == "RESOURCE_UNAVAILABLE"
    assert "0" * 64 in message


def test_an_engine_component_with_wrong_input_fails_at_once():
    tree = {"steps": [step("z", "/builtin/sleep", {"duration_ms": "long"})], "output": ref("z")}
    ((code, message),) = World(tree).run()
    assert code == "INVALID_INPUT"
    assert "duration_ms" in message


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        ({"output": {"result": None, "next": 1}}, {"result": None, "iterations": 1, "terminated": False}),
        ({"output": {"next": {"$input": "$"}}}, {"result": 5, "iterations": 3, "terminated": True}),
    ],
)
def test_iterate_ends_by_result_or_by_its_bound(flow, expected):
    input = {"flow": {"$literal": flow}, "initial_input": 5, "max_iterations": 3}
    assert World({"steps": [step("i", "/builtin/iterate", input)], "output": ref("i")}).run() == [expected]


def test_iterate_without_result_or_next_fails():
    input = {"flow": {"$literal": {"output": {"other": 1}}}, "initial_input": 0}
    ((code, _),) = World({"steps": [step("i", "/builtin/iterate", input)], "output": ref("i")}).run()
    assert code == "INVALID_INPUT"


def test_a_failing_iteration_fails_the_step_with_its_error():
    failing = {"steps": [step("f", "/c/fail", 3)], "output": ref("f")}
    input = {"flow": {"$literal": failing}, "initial_input": 0}
    assert World({"steps": [step("i", "/builtin/iterate", input)], "output": ref("i")}).run() == [
        ("COMPONENT_FAILED", "failed on 3")
    ]


def test_an_empty_map_has_no_results():
    input = {"workflow": {"$literal": {}}, "items": []}
    assert World({"steps": [step("m", "/builtin/map", input)], "output": ref("m")}).run() == [
        {"results": [], "successful": 0, "failed": 0}
    ]


def test_a_sub_flows_input_is_checked_against_its_schema():
    typed = {"schemas": {"properties": {"input": {"type": "integer"}}}, "output": {"$input": "$"}}
    input = {"workflow": {"$literal": typed}, "items": [1, "two"]}
    ((code, message),) = World({"steps": [step("m", "/builtin/map", input)], "output": ref("m")}).run()
    assert code == "INVALID_INPUT"
    assert "item 1" in message


def test_cancel_stops_everything_and_gives_every_item_its_outcome():
    diamond = World(CORPUS["diamond"], inputs=[{"n": 1}, {"n": 2}])
    diamond.step(0)
    diamond.cancel()
    assert diamond.state.status == pb.RUN_STATUS_CANCELLED
    assert [code for code, _ in diamond.outcomes()] == ["CANCELLED", "CANCELLED"]
    assert diamond.flight == []


def test_steps_that_the_end_of_a_run_cuts_off_are_listed_as_cancelled():
    tree = {
        "steps": [
            step("flying", "/c/id", 1),
            step("queued", "/c/id", 2),
            step("asleep", "/builtin/sleep", {"duration_ms": 60_000}),
            step("done", "/builtin/sleep", {"duration_ms": 0}),
        ],
        "output": [ref("flying"), ref("queued"), ref("asleep"), ref("done")],
    }
    world = World(tree, window=1)
    world.turn()
    before = {view.step_id: view.status for view in list_steps(world.state, world.entries())}
    assert before == {"flying": "running", "queued": "running", "asleep": "running", "done": "completed"}

    world.cancel()
    for state in (world.state, world.replayed()):
        after = {view.step_id: view for view in list_steps(state, world.entries())}
        assert {view.status for view in after.values() if view.step_id != "done"} == {"cancelled"}
        assert (len(after), after["done"].status) == (4, "completed")
        assert {view.completed_at_ms for view in after.values()} == {world.now_ms}
        assert after["flying"].outcome is None


def test_a_cancel_that_comes_after_the_end_is_not_taken():
    chain = world("chain")
    chain.run()
    with pytest.raises(Exception, match="has ended"):
        chain.cancel()


def test_a_run_that_kills_its_owners_is_given_up():
    chain = world("chain")
    for _ in range(ADOPTIONS_IN_A_ROW_MAX):
        assert chain.state.status is None
        chain.crash()
    assert chain.state.status == pb.RUN_STATUS_RECOVERY_FAILED
    assert len(chain.dispatched) == ADOPTIONS_IN_A_ROW_MAX


def test_a_run_that_waits_long_is_not_given_up_because_its_owners_lost_their_sessions_again_and_again():
    nap = World(
        {
            "steps": [step("z", "/builtin/sleep", {"duration_ms": 86_400_000}), step("a", "/c/id", ref("z"))],
            "output": ref("a"),
        }
    )
    nap.turn()
    for _ in range(3 * ADOPTIONS_IN_A_ROW_MAX):
        nap.now_ms += POISON_WINDOW_MS + 1
        nap.crash()
    assert nap.run() == [{"duration_ms": 86_400_000}]


def test_a_run_whose_owners_survive_it_is_given_up_much_later():
    chain = world("chain")
    for _ in range(ADOPTIONS_FRUITLESS_MAX):
        assert chain.state.status is None
        chain._feed(pb.Entry(at_ms=chain.now_ms, survived=pb.Survived()))
        chain.crash()
    assert chain.state.status == pb.RUN_STATUS_RECOVERY_FAILED


def test_hand_overs_do_not_count_against_a_run():
    chain = world("chain")
    for _ in range(3 * ADOPTIONS_IN_A_ROW_MAX):
        chain.crash(handed_over=True)
    assert chain.run() == EXPECTED["chain"]


def test_the_window_spans_all_items_and_sub_runs():
    batch = World(CORPUS["diamond"], inputs=[{"n": n} for n in range(10)], window=3)
    batch.run([5, 3, 1, 0, 7] * 20)
    assert batch.slots_peak == 3


def test_ready_steps_start_in_order_of_item_and_step():
    batch = World(
        {"steps": [step("a", "/c/id", 1), step("b", "/c/id", 2)], "output": [ref("a"), ref("b")]},
        inputs=[{}, {}],
        window=1,
    )
    batch.run()
    assert [key.split("/", 1)[1] for key, _ in batch.dispatched] == ["0/a", "0/b", "1/a", "1/b"]


def test_a_sleep_holds_no_place_and_survives_a_crash():
    tree = {
        "steps": [step("z", "/builtin/sleep", {"duration_ms": 60_000}), step("a", "/c/id", 1)],
        "output": [ref("z"), ref("a")],
    }
    sleeper = World(tree, window=1)
    began = sleeper.now_ms
    sleeper.step(0)
    sleeper.now_ms += 30_000
    sleeper.crash()
    assert sleeper.run() == [[{"duration_ms": 60_000}, 1]]
    assert sleeper.now_ms == began + 60_000


WAIT = {
    "steps": [step("w", "/builtin/wait_for_signal", {"name": "go", "timeout_ms": 60_000}), step("a", "/c/id", 1)],
    "output": [ref("w"), ref("a")],
}


def test_waiting_for_a_signal_holds_no_place_and_ends_at_its_time_whoever_owns_the_run():
    waiting = World(WAIT, window=1)
    began = waiting.now_ms
    waiting.step(0)
    waiting.now_ms += 30_000
    waiting.crash()
    assert waiting.run() == [[{"payload": None, "timed_out": True}, 1]]
    assert waiting.now_ms == began + 60_000


def test_a_signal_ends_the_waiting_and_its_timer():
    waiting = World(WAIT)
    waiting.signal(0, "go", {"by": "Ada"})
    assert waiting.run() == [[{"payload": {"by": "Ada"}, "timed_out": False}, 1]]
    assert waiting.state.next_wake_ms() is None


def test_a_signal_after_the_time_is_left_for_the_next_step_that_waits():
    again = step("v", "/builtin/wait_for_signal", {"name": "go", "after": ref("w")})
    late = World({"steps": [*WAIT["steps"], again], "output": [ref("w", "timed_out"), ref("v", "payload")]})
    late.step(0)
    late.now_ms += 60_000
    late.turn()
    late.signal(0, "go", 3)
    assert late.run() == [[True, 3]]


def test_each_item_gets_its_own_signals_also_in_its_sub_runs():
    inner = {"steps": [step("w", "/builtin/wait_for_signal", {"name": "go"})], "output": ref("w", "payload")}
    tree = {
        "steps": [step("m", "/builtin/map", {"workflow": {"$literal": inner}, "items": [1]})],
        "output": ref("m", "results[0].result"),
    }
    batch = World(tree, inputs=[{}, {}])
    batch.signal(1, "go", "second")
    batch.turn()
    assert [item.outcome is None for item in batch.state.root.items] == [True, False]
    batch.signal(0, "stop", "nobody waits for it")
    batch.signal(0, "go", "first")
    assert batch.run() == ["first", "second"]


@pytest.mark.parametrize("input", [{}, {"name": ""}, {"name": "x" * 129}, {"name": "x", "timeout_ms": -1}])
def test_waiting_for_what_cannot_come_fails_at_once(input):
    ((code, _),) = World({"steps": [step("w", "/builtin/wait_for_signal", input)], "output": ref("w")}).run()
    assert code == "INVALID_INPUT"


def test_a_cancel_ends_the_waiting():
    waiting = World(WAIT)
    waiting.cancel()
    assert [code for code, _ in waiting.outcomes()] == ["CANCELLED"]


def test_a_thousand_steps_in_a_row_do_not_exhaust_the_stack():
    steps = [step("s0", "/c/id", 0)] + [step(f"s{n}", "/c/id", ref(f"s{n - 1}")) for n in range(1, 3000)]
    assert World({"steps": steps, "output": ref("s2999")}).run() == [0]


def test_a_sub_run_id_is_the_same_for_every_owner():
    first, second = world("map"), world("map")
    first.run()
    second.crash()
    second.run()
    assert [scope.run_id for scope in first.state.scopes] == [scope.run_id for scope in second.state.scopes]


def test_a_value_that_grows_deeper_every_round_is_stopped_and_not_a_crash():
    deeper = {"output": {"next": [{"$input": "$"}]}}
    input = {"flow": {"$literal": deeper}, "initial_input": 0}
    ((code, message),) = World({"steps": [step("i", "/builtin/iterate", input)], "output": ref("i")}).run()
    assert code == "EXPRESSION_FAILURE"
    assert "deeper" in message


def test_the_results_of_a_map_are_measured_before_they_are_joined():
    item_bytes = 6_000_000
    flow = {"$literal": {"output": "x" * item_bytes}}
    steps = [step("m", "/builtin/map", {"workflow": flow, "items": [0] * 60})]
    tracemalloc.start()
    ((code, message),) = World({"steps": steps, "output": ref("m")}).run()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (code, "the limit is 16,777,216" in message) == ("COMPONENT_FAILED", True)
    assert peak_bytes < 30 * item_bytes


def test_a_composed_input_above_the_payload_limit_fails_its_step():
    steps = [step("a", "/c/id", "x" * 2_000_000), step("b", "/c/id", [ref("a")] * 9)]
    ((code, message),) = World({"steps": steps, "output": ref("b")}).run()
    assert code == "EXPRESSION_FAILURE"
    assert "the limit is" in message
