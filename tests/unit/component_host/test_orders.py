"""The component host against a model of its guarantees, over random orders of actions of executors and a backend.

The model is a dictionary: by step, the live attempt, the last executor to request it, and whether its result is held.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support.scripted_host import RUN, ExecutorEnd, Scripted, run_async, scripted, settle_down

from stepflow.codec import INLINE_BYTES_MAX, encode
from stepflow.errors import Code, Failure

if TYPE_CHECKING:
    from component_host.host import ComponentHost

STEPS = "abc"
LARGE = encode("x" * INLINE_BYTES_MAX)

_step = st.sampled_from(STEPS)
_attempt = st.integers(1, 3)
_which = st.integers(0, 5)

ORDERS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), _which, _step, _attempt),
        st.tuples(st.just("call"), _which, _step, _attempt),
        st.tuples(st.just("settle"), _which, st.sampled_from(["small", "large", "fail"])),
        st.tuples(st.just("settle"), _which, st.sampled_from(["small", "large", "fail"])),
        st.tuples(st.just("ack"), _which, _step, _attempt),
        st.tuples(st.just("cancel"), _which, _which),
        st.tuples(st.just("connect"), st.booleans()),
        st.tuples(st.just("close"), _which),
        st.tuples(st.just("attach"), _which),
    ),
    max_size=40,
)


@dataclass
class Alive:
    attempt: int
    end: ExecutorEnd
    call_id: int
    execution: int
    """Index of the execution."""
    held: bool = False


@dataclass
class Model:
    alive: dict[str, Alive] = field(default_factory=dict)
    epoch: int = 0
    executions: list[tuple[str, int]] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    answers: dict[tuple[int, int], str] = field(default_factory=dict)
    """What each call id of each stream gets: `result` or `refused`."""

    def call(self, end: ExecutorEnd, call_id: int, step: str, attempt: int) -> None:
        if end.epoch < self.epoch:
            self.answers[id(end), call_id] = "refused"
            return
        self.epoch = end.epoch
        known = self.alive.get(step)
        if known is not None and known.attempt > attempt:
            self.answers[id(end), call_id] = "refused"
        elif known is not None and known.attempt == attempt:
            known.end, known.call_id = end, call_id
            if known.held:
                self.answer(known)
        else:
            self.drop(step)
            self.alive[step] = Alive(attempt, end, call_id, len(self.executions))
            self.executions.append((step, attempt))

    def answer(self, alive: Alive) -> None:
        if not alive.end.stream.closed:
            self.answers[id(alive.end), alive.call_id] = "result"

    def settle(self, execution: int) -> None:
        for alive in self.alive.values():
            if alive.execution == execution and not alive.held:
                alive.held = True
                self.answer(alive)

    def ack(self, end: ExecutorEnd, step: str, attempt: int) -> None:
        known = self.alive.get(step)
        if known is not None and known.attempt <= attempt and (known.end is end or known.end.stream.closed):
            self.drop(step)

    def cancel(self, end: ExecutorEnd, call_id: int) -> None:
        for step, alive in list(self.alive.items()):
            if alive.end is end and alive.call_id == call_id and not alive.held:
                self.drop(step)

    def drop(self, step: str) -> None:
        known = self.alive.pop(step, None)
        if known is not None and not known.held:
            self.cancelled.append(known.execution)


async def play(order: list[Any], host: ComponentHost, backend: Scripted, ends: list[ExecutorEnd]) -> Model:
    model = Model()
    for name, *arguments in order:
        if name == "connect":
            ends.append(ExecutorEnd(host, epoch=model.epoch + arguments[0]))
            continue
        if name == "settle":
            number, kind = arguments
            if not backend.executed:
                continue
            number %= len(backend.executed)
            call = backend.executed[-1 - number]
            if kind == "fail":
                call.fail(Failure(Code.COMPONENT_FAILED, "no"))
            else:
                call.succeed(b"1" if kind == "small" else LARGE)
            model.settle(len(backend.executed) - 1 - number)
        else:
            end = ends[arguments[0] % len(ends)]
            open_ = not end.stream.closed
            if name == "call":
                call_id = end.call(*arguments[1:2], attempt=arguments[2])
                if open_:
                    model.call(end, call_id, *arguments[1:])
            elif name == "ack":
                end.ack(*arguments[1:])
                if open_:
                    model.ack(end, *arguments[1:])
            elif name == "cancel":
                call_id = max(1, end.last_call_id - arguments[1])
                end.cancel(call_id)
                if open_:
                    model.cancel(end, call_id)
            elif name == "close":
                await settle_down()
                end.stream.close()
            elif open_:
                held = {call.key for call in (await end.attach()).calls}
                if end.epoch >= model.epoch:
                    model.epoch = end.epoch
                    assert held == {f"{RUN}/0/{step}" for step in model.alive}
                else:
                    assert held == set()
        await settle_down()
    return model


@settings(max_examples=150, deadline=None)
@given(ORDERS)
def test_whatever_the_order_each_attempt_is_executed_once_and_answered_to_whoever_asked_last(order: list[Any]) -> None:
    async def main() -> None:
        async with scripted() as (host, backend, first):
            ends = [first]
            model = await play(order, host, backend, ends)
            assert backend.attempts == model.executions
            assert [backend.executed.index(call) for call in backend.cancelled] == model.cancelled
            answers = [
                ((id(end), result.call_id), "refused" if b"STALE" in result.failure.data_json else "result")
                for end in ends
                for result in end.results
            ]
            assert len(answers) == len(dict(answers)), "a call id was answered twice"
            assert dict(answers) == model.answers

            assert host.calls_held == len(model.alive)
            assert len(host.held_results) == sum(alive.held for alive in model.alive.values())
            assert host.calls_in_flight == sum(not alive.held for alive in model.alive.values())
            last = ExecutorEnd(host, epoch=model.epoch + 1)
            for step, alive in list(model.alive.items()):
                last.call(step, attempt=alive.attempt)
                last.ack(step, alive.attempt)
            assert (host.calls_held, host.calls_in_flight, host.held_results.bytes) == (0, 0, 0)
            assert [end for end in (*ends, last) if end.stream.calls] == []
            assert len(backend.executed) == len(model.executions)

    run_async(main)
