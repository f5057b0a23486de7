"""The queue of a plugin with pull workers, without sockets and with a simulated clock."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import pytest
from support.host_side import Call

from component_host.backend import ComponentInfo
from component_host.stepflow_bridge.pull import queue, timeouts
from component_host.stepflow_bridge.pull.messages import encode_input
from component_host.stepflow_bridge.pull.process import must_end
from component_host.stepflow_bridge.pull.queue import TaskQueue
from component_host.stepflow_bridge.pull.timeouts import QueueTimeouts
from stepflow.errors import Code, Failure, Invalid
from stepflow.pull.v1 import pull_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from component_host.stepflow_bridge.pull.records import Outbox, Worker

ADD = ComponentInfo("add", "/add")


class Kit:
    """A queue, its clock, and the workers' side of it."""

    def __init__(self, *, queue_timeout_s: float = 30.0, execution_timeout_s: float | None = None) -> None:
        self.now = 1_000.0
        self.queue = TaskQueue("kit", clock=lambda: self.now)
        self.timeouts = QueueTimeouts(
            self.queue, queue_timeout_s=queue_timeout_s, execution_timeout_s=execution_timeout_s
        )

    def connect(self, name: str = "w1", *, group: object = None, concurrency: int = 2, lends: bool = False) -> Hand:
        worker, outbox = self.queue.connect_worker(
            name, group=group, address="127.0.0.1:1", concurrency=concurrency, lends=lends
        )
        hand = Hand(self, worker, outbox)
        (question,) = hand.take()
        assert question.HasField("list_components")
        self.queue.take_listing(question.task_id, (ADD,), complete=True)
        return hand

    def call(self, component: str = "add") -> Call:
        call = Call(component, {"a": 1})
        self.queue.offer_call(call, encode_input(call))
        return call

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.timeouts.tick()


class Hand:
    """One connection of a worker."""

    def __init__(self, kit: Kit, worker: Worker, outbox: Outbox) -> None:
        self.kit = kit
        self.worker = worker
        self.outbox = outbox

    def take(self) -> list[pb.TaskAssignment]:
        taken = [pb.TaskAssignment.FromString(message) for message in self.outbox.messages]
        self.outbox.messages.clear()
        return taken

    def claim(self, task: pb.TaskAssignment, name: str = "", **more: Any) -> pb.TaskHeartbeatResponse | None:
        request = pb.TaskHeartbeatRequest(task_id=task.task_id, worker_id=name or self.worker.id, **more)
        return self.kit.queue.take_heartbeat(request)

    def leave(self) -> None:
        self.kit.queue.disconnect_worker(self.worker, self.outbox)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in an event loop: the calls of these tests hold futures."""

    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


@in_loop
async def test_a_worker_gets_no_more_tasks_than_its_concurrency() -> None:
    kit = Kit()
    hand = kit.connect(concurrency=2)
    for _ in range(5):
        kit.call()
    first = hand.take()
    assert len(first) == 2
    kit.queue.complete_task(first[0].task_id)
    assert len(hand.take()) == 1


@in_loop
async def test_a_task_that_waits_for_a_flow_lends_its_place_where_the_worker_has_more() -> None:
    kit = Kit()
    for lends, room in ((False, 0), (True, 1)):
        hand = kit.connect(f"w{lends}", concurrency=1, lends=lends)
        kit.call()
        (task,) = hand.take()
        parent = kit.queue.tasks.task_of_token(task.context.root_run_id)
        assert parent is not None
        parent.runs_awaited += 1
        assert hand.worker.room == room


@in_loop
async def test_the_first_to_claim_a_task_has_it() -> None:
    kit = Kit()
    hand = kit.connect()
    kit.call()
    (task,) = hand.take()
    assert hand.claim(task) == pb.TaskHeartbeatResponse(status=pb.TASK_STATUS_IN_PROGRESS)
    assert hand.claim(task, "another") == queue.ALREADY_CLAIMED
    assert hand.claim(task) == pb.TaskHeartbeatResponse(status=pb.TASK_STATUS_IN_PROGRESS)


@in_loop
async def test_an_unclaimed_task_goes_to_another_worker_when_the_stream_breaks() -> None:
    kit = Kit()
    first = kit.connect("w1", concurrency=2)
    calls = [kit.call(), kit.call()]
    claimed, unclaimed = first.take()
    first.claim(claimed)
    second = kit.connect("w2")
    first.leave()
    (again,) = second.take()
    assert again.task_id != unclaimed.task_id
    assert first.claim(unclaimed) is None, "the old sending is void"
    assert second.claim(again) is not None
    assert kit.queue.complete_task(again.task_id) is calls[1]
    assert kit.queue.complete_task(claimed.task_id) is calls[0], "what was claimed may still be completed"


@in_loop
async def test_a_worker_that_comes_back_in_time_keeps_what_it_has_claimed() -> None:
    kit = Kit()
    hand = kit.connect("w1", concurrency=1)
    call = kit.call()
    (task,) = hand.take()
    hand.claim(task)
    hand.leave()
    kit.later(10)
    back = kit.connect("w1", concurrency=1)
    assert back.worker is hand.worker
    kit.later(60)
    kit.call()
    assert back.take() == [], "its only slot is taken"
    assert kit.queue.complete_task(task.task_id) is call
    assert len(back.take()) == 1


@in_loop
async def test_a_worker_that_stays_away_loses_what_it_has_claimed() -> None:
    kit = Kit()
    hand = kit.connect()
    call = kit.call()
    (task,) = hand.take()
    hand.claim(task)
    hand.leave()
    kit.later(timeouts.GONE_S - 1)
    assert not call.settled
    hand.claim(task)  # a heartbeat without a stream is a sign of life
    kit.later(timeouts.GONE_S - 1)
    assert not call.settled
    kit.later(2)
    failure = await call.outcome()
    assert failure.code is Code.UNREACHABLE
    assert kit.queue.complete_task(task.task_id) is None


@in_loop
async def test_silence_alone_costs_a_connected_worker_nothing() -> None:
    kit = Kit()
    hand = kit.connect()
    call = kit.call()
    (task,) = hand.take()
    hand.claim(task)
    kit.later(3_600)  # a component that blocks the worker's loop
    assert kit.queue.complete_task(task.task_id) is call


@in_loop
async def test_a_task_that_its_worker_forgot_while_it_works_on_others_fails() -> None:
    kit = Kit()
    hand = kit.connect(concurrency=2)
    forgotten, other = kit.call(), kit.call()
    one, two = hand.take()
    hand.claim(one)
    hand.claim(two)
    kit.now += timeouts.SILENT_S + 1
    hand.claim(two)
    kit.timeouts.tick()
    assert (await forgotten.outcome()).code is Code.UNREACHABLE
    assert not other.settled
    assert hand.worker.room == 1


@in_loop
async def test_a_call_waits_for_a_worker_no_longer_than_the_queue_timeout() -> None:
    kit = Kit(queue_timeout_s=30)
    call = kit.call()
    kit.later(29)
    assert not call.settled
    kit.later(2)
    failure = await call.outcome()
    assert failure.code is Code.UNREACHABLE
    assert "30 s" in failure.message


@in_loop
async def test_a_call_waits_as_long_as_it_must_while_workers_are_there_and_busy() -> None:
    kit = Kit(queue_timeout_s=30)
    hand = kit.connect(concurrency=1)
    kit.call()
    (task,) = hand.take()
    hand.claim(task)
    waiting = kit.call()
    kit.later(3_600)
    assert not waiting.settled


@in_loop
async def test_a_task_that_is_not_claimed_in_time_goes_to_a_worker_with_room() -> None:
    kit = Kit(queue_timeout_s=30)
    blocked = kit.connect("blocked", concurrency=1)
    call = kit.call()
    blocked.take()
    kit.later(40)
    assert not call.settled
    other = kit.connect("other")
    kit.later(1)
    (task,) = other.take()
    assert kit.queue.complete_task(task.task_id) is call


@in_loop
async def test_a_task_that_runs_too_long_fails_with_a_timeout_and_its_worker_is_told() -> None:
    kit = Kit(execution_timeout_s=60)
    hand = kit.connect()
    call = kit.call()
    (task,) = hand.take()
    hand.claim(task)
    kit.later(61)
    assert (await call.outcome()).code is Code.TIMEOUT
    reply = hand.claim(task)
    assert reply is not None
    assert reply.should_abort


@in_loop
async def test_an_aborted_task_keeps_its_place_until_it_is_completed() -> None:
    kit = Kit()
    hand = kit.connect(concurrency=1)
    call = kit.call()
    (task,) = hand.take()
    hand.claim(task)
    kit.queue.abort_call(call)
    call.fail(Failure(Code.CANCELLED, "cancelled"))
    reply = hand.claim(task)
    assert reply is not None
    assert reply.should_abort
    assert hand.worker.room == 0
    kit.queue.complete_task(task.task_id)
    assert hand.worker.room == 1


@in_loop
async def test_a_task_cancelled_before_it_is_claimed_is_refused_and_frees_its_place() -> None:
    kit = Kit()
    hand = kit.connect(concurrency=1)
    call = kit.call()
    (task,) = hand.take()
    kit.queue.abort_call(call)
    call.fail(Failure(Code.CANCELLED, "cancelled"))
    reply = hand.claim(task)
    assert reply is not None
    assert reply.should_abort
    assert hand.worker.room == 1, "a worker that may not begin, completes nothing"


@in_loop
async def test_progress_in_a_heartbeat_reaches_the_call_and_a_bare_heartbeat_is_none() -> None:
    kit = Kit()
    hand = kit.connect()
    call = kit.call()
    (task,) = hand.take()
    hand.claim(task)
    assert call.progressed == []
    hand.claim(task, progress=0.5, status_message="half")
    assert call.progressed == [(0.5, 1.0, "half")]


@in_loop
async def test_the_end_of_a_process_fails_what_it_had_claimed_and_sends_the_rest_again() -> None:
    kit = Kit()
    process, other = object(), object()
    hand = kit.connect("w1", group=process)
    claimed, unclaimed = kit.call(), kit.call()
    one, _ = hand.take()
    hand.claim(one)
    kit.queue.lose_group(process, Failure(Code.UNREACHABLE, "it ended"))
    assert (await claimed.outcome()).message == "it ended"
    (again,) = kit.connect("w2", group=other).take()
    assert kit.queue.complete_task(again.task_id) is unclaimed


@in_loop
async def test_each_worker_is_told_the_names_that_it_has_listed() -> None:
    kit = Kit()
    for name in ("add", "/add"):
        worker, outbox = kit.queue.connect_worker(name, group=None, address="a:1", concurrency=1, lends=False)
        hand = Hand(kit, worker, outbox)
        (question,) = hand.take()
        kit.queue.take_listing(question.task_id, (ComponentInfo(name, "/add"),), complete=True)
        for asked in ("add", "/add"):
            kit.call(asked)
            (task,) = hand.take()
            assert task.execute.component_id == name
            kit.queue.complete_task(task.task_id)
        hand.leave()


@in_loop
async def test_calls_are_told_apart_by_what_their_callbacks_bring() -> None:
    kit = Kit()
    hand = kit.connect()
    calls = [kit.call(), kit.call()]
    tokens = [task.context.root_run_id for task in hand.take()]
    found = [kit.queue.tasks.task_of_token(token) for token in tokens]
    assert [task.offer.call for task in found if task is not None] == calls
    assert kit.queue.tasks.task_of_token("") is None, "two tasks are ambiguous"


@in_loop
async def test_a_worker_without_an_id_is_refused() -> None:
    with pytest.raises(Invalid):
        Kit().queue.connect_worker("", group=None, address="a:1", concurrency=1, lends=False)


@in_loop
async def test_only_a_worker_that_is_to_end_sees_its_stream_end_well() -> None:
    kit = Kit()
    started, stranger = kit.connect("ours", lends=True), kit.connect("theirs")
    again = kit.connect("theirs")
    assert stranger.outbox.broken, "it has connected again"
    kit.queue.closing = True
    kit.queue.workers.end_streams(started.worker.group)
    assert (started.outbox.ended, started.outbox.broken) == (True, False)
    kit.queue.fail_all(Failure(Code.UNREACHABLE, "stopped"))
    assert not started.outbox.broken
    assert again.outbox.ended


@in_loop
async def test_the_time_of_a_call_begins_when_it_is_sent_and_again_when_it_is_claimed() -> None:
    kit = Kit()
    call = kit.call()
    assert call.queued
    hand = kit.connect()
    assert not call.queued
    hand.claim(hand.take()[0])
    assert call.queue_notes == [True, False, True, False]


@in_loop
async def test_no_time_passes_while_a_claimed_task_waits_for_a_thread_of_its_worker() -> None:
    kit = Kit(execution_timeout_s=10)
    call = kit.call()
    hand = kit.connect()
    (task,) = hand.take()
    hand.claim(task)
    hand.claim(task, queued=True)
    assert call.queued
    kit.later(11)
    assert not call.settled

    hand.claim(task)
    hand.claim(task)
    assert call.queue_notes == [True, False, True, False, True, False]
    kit.later(9)
    assert not call.settled
    kit.later(2)
    assert (await call.outcome()).code is Code.TIMEOUT


@in_loop
async def test_a_stuck_worker_is_not_kept_for_tasks_that_have_not_begun() -> None:
    kit = Kit()
    worker = (hand := kit.connect(concurrency=2, lends=True)).worker
    stuck, _ = kit.call(), kit.call()
    for task in (tasks := hand.take()):
        hand.claim(task)
    hand.claim(tasks[1], queued=True)
    kit.queue.abort_call(stuck)
    stuck.fail(Failure(Code.CANCELLED, "cancelled"))
    assert must_end(worker, kit.now + 11, "kit")


@in_loop
async def test_a_worker_elsewhere_that_never_completes_aborted_tasks_gets_calls_again() -> None:
    kit = Kit()
    hand = kit.connect(concurrency=2)
    calls = [kit.call(), kit.call()]
    for task in hand.take():
        hand.claim(task)
    waiting = kit.call()
    for call in calls:
        kit.queue.abort_call(call)
        call.fail(Failure(Code.CANCELLED, "cancelled"))
    kit.later(9)
    assert hand.take() == []
    kit.later(2)
    (task,) = hand.take()
    assert hand.claim(task) is not None
    assert not waiting.queued


@in_loop
async def test_a_worker_full_of_aborted_tasks_gets_no_more_and_ends_once_the_live_one_has_ended() -> None:
    kit = Kit()
    worker = (hand := kit.connect(concurrency=3, lends=True)).worker
    live, *others = kit.call(), kit.call(), kit.call()
    first, *_ = tasks = hand.take()
    for task in tasks:
        hand.claim(task)
    for call in others:
        kit.queue.abort_call(call)
        call.fail(Failure(Code.CANCELLED, "cancelled"))
    assert not must_end(worker, kit.now + 9, "kit")
    assert worker.retired_at is None
    assert not must_end(worker, kit.now + 11, "kit")
    assert worker.room <= 0

    kit.queue.complete_task(first.task_id)
    live.succeed(b"1")
    waiting = kit.call()
    assert hand.take() == []
    assert waiting.queued
    assert must_end(worker, kit.now + 12, "kit")
