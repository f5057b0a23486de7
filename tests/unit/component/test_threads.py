"""The thread pool of sync components, with calls that return when the test lets them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from support import wait_until

from stepflow.component import threads as module
from stepflow.component.threads import Threads

if TYPE_CHECKING:
    import pytest


class Held:
    """A call that runs until `end`."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.ended = threading.Event()
        self._may_end = threading.Event()

    def run_in_thread(self) -> None:
        self.began.set()
        self._may_end.wait()
        self.ended.set()

    def end(self, pool: Threads, *, abandoned: bool = False) -> None:
        """Let the function return, and tell the pool as its loop does."""
        self._may_end.set()
        assert self.ended.wait(10)
        pool.note_finished(abandoned=abandoned)


def submit(pool: Threads, count: int = 1) -> list[Held]:
    calls = [Held() for _ in range(count)]
    for call in calls:
        pool.submit(call)
    return calls


def begun(call: Held) -> bool:
    return call.began.wait(10)


def test_an_abandoned_thread_is_replaced_up_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPLACED_MAX", 3)
    pool = Threads(1)
    calls = submit(pool, 6)
    for call in calls[:3]:
        assert begun(call)
        pool.note_abandoned()
    assert begun(calls[3])

    # The fourth has no replacement: the next call waits until one of them has returned.
    pool.note_abandoned()
    assert pool.is_queued(calls[4])
    assert not calls[4].began.wait(0.05)
    calls[0].end(pool, abandoned=True)
    assert begun(calls[4])
    assert pool.is_queued(calls[5])
    for call in calls[1:]:
        assert begun(call)
        call.end(pool, abandoned=call in calls[:4])
    assert not pool.busy()


def test_the_surplus_threads_end_with_the_abandoned_calls() -> None:
    def workers() -> int:
        return sum(thread.name.startswith("component-") for thread in threading.enumerate())

    before = workers()
    pool = Threads(2)
    calls = submit(pool, 2)
    for call in calls:
        assert begun(call)
        pool.note_abandoned()
    more = submit(pool, 2)
    assert all(begun(call) for call in more)
    assert workers() == before + 4

    for call in calls:
        call.end(pool, abandoned=True)
    for call in more:
        call.end(pool)
    wait_until(lambda: workers() == before + 2, "two threads are left")
    (again,) = submit(pool)
    assert begun(again)
    again.end(pool)


def test_a_withdrawn_call_never_runs_and_the_next_one_does() -> None:
    pool = Threads(1)
    running, withdrawn, behind = submit(pool, 3)
    assert begun(running)
    assert not pool.withdraw(running)
    assert pool.withdraw(withdrawn)
    assert not pool.withdraw(withdrawn)
    running.end(pool)
    assert begun(behind)
    behind.end(pool)
    assert not withdrawn.began.is_set()
    assert not pool.busy()
