"""Start and stop of a component host, time limits of calls, end of the session. The backend is scripted."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_until_async
from support.scripted_host import (
    ECHO,
    ExecutorEnd,
    Scripted,
    error_from,
    error_of,
    run_async,
    scripted,
    settle_down,
)

from component_host import call_tasks
from component_host.call import LOOP_BYTES_MAX
from component_host.host import ComponentHost
from stepflow.codec import INLINE_BYTES_MAX, blob_id, encode
from stepflow.errors import FailedPrecondition, NotFound, Unavailable
from stepflow.store.blobs import BlobStore
from stepflow.timer_heap import EMPTY_MIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.backend import HostCall

SOON_MS = 30
LATE_MS = 3_600_000


class SlowBlobs(BlobStore):
    """A store with operations that hang."""

    def __init__(self) -> None:
        super().__init__(BlobStore.open("memory://")._backend)
        self.asked = 0

    async def put(self, content: bytes, *, scope: str = "shared", blob_type: str = "data") -> str:
        self.asked += 1
        await asyncio.Event().wait()
        raise AssertionError

    async def get(self, identity: str, *, scope: str = "shared") -> tuple[bytes, str]:
        self.asked += 1
        await asyncio.Event().wait()
        raise AssertionError


def stopped_backend(name: str = "kit", error: BaseException | None = None) -> Scripted:
    """Return a backend with a start that waits for `may_start`."""
    backend = Scripted(name, error)
    backend.may_start.clear()
    return backend


# --- start ----------------------------------------------------------------------------------------------------------


def test_start_returns_when_each_backend_is_ready_or_has_failed() -> None:
    async def main() -> None:
        broken = Scripted("broken", Unavailable("SERVER_EXITED", "it exited"))
        async with scripted(Scripted(), broken, start=False) as (host, _, _):
            changes: list[tuple[set[str], set[str]]] = []
            await host.start(changed=lambda: changes.append((set(host.plugins.listings()), set(host.plugins.failures))))
            assert set(host.plugins.listings()) == {"kit"}
            assert host.plugins.failures["broken"].reason == "SERVER_EXITED"
            assert len(changes) == 2
            assert changes[-1] == ({"kit"}, {"broken"})

    run_async(main)


def test_only_the_named_backends_are_started() -> None:
    async def main() -> None:
        other = Scripted("other")
        async with scripted(Scripted(), other, start=False) as (host, _, executor):
            await host.start(["kit"])
            assert set(host.plugins.listings()) == {"kit"}
            assert other.starts == 0
            result = await executor.result(executor.call(plugin="other"))
            assert error_of(result) == ("UNREACHABLE", "PLUGIN_NOT_STARTED")
        assert other.closed == 0

    run_async(main)


def test_a_backend_named_twice_is_started_once_and_waited_for_by_both() -> None:
    async def main() -> None:
        async with scripted(stopped_backend(), start=False) as (host, backend, _):
            first, second = asyncio.create_task(host.start()), asyncio.create_task(host.start(["kit"]))
            await settle_down()
            assert not first.done()
            assert not second.done()
            backend.may_start.set()
            await asyncio.gather(first, second)
            await host.start()
            assert backend.starts == 1

    run_async(main)


def test_who_stops_waiting_for_a_start_does_not_stop_it_for_the_others() -> None:
    async def main() -> None:
        async with scripted(stopped_backend(), start=False) as (host, backend, _):
            first, second = asyncio.create_task(host.start()), asyncio.create_task(host.start())
            await settle_down()
            first.cancel()
            backend.may_start.set()
            await second
            assert set(host.plugins.listings()) == {"kit"}

    run_async(main)


def test_a_plugin_that_the_host_does_not_have_cannot_be_started() -> None:
    async def main() -> None:
        async with scripted(start=False) as (host, backend, _):
            error = await error_from(host.start(["kit", "odd"]))
            assert isinstance(error, NotFound)
            assert (error.reason, error.details) == ("PLUGIN_UNKNOWN", {"plugin": "odd"})
            assert backend.starts == 0

    run_async(main)


def test_a_backend_that_breaks_at_its_start_by_mistake_is_a_failed_plugin() -> None:
    async def main() -> None:
        broken = Scripted("broken", KeyError("secret"))
        async with scripted(Scripted(), broken) as (host, _, executor):
            assert host.plugins.failures["broken"].reason == "PLUGIN_START_FAILED"
            assert "KeyError" in host.plugins.failures["broken"].message
            assert "secret" not in host.plugins.failures["broken"].message
            assert (await executor.result(executor.call(component=ECHO))).result.json == b"{}"

    run_async(main)


def test_calls_that_come_while_their_plugin_starts_wait_for_it_in_their_order() -> None:
    async def main() -> None:
        async with scripted(stopped_backend(), start=False) as (host, backend, executor):
            starting = asyncio.create_task(host.start())
            await settle_down()
            numbers = [executor.call(f"s{n}", ECHO) for n in range(3)]
            await settle_down()
            assert backend.executed == []
            backend.may_start.set()
            await starting
            for number in numbers:
                await executor.result(number)
            assert [step for step, _ in backend.attempts] == ["s0", "s1", "s2"]

    run_async(main)


def test_a_call_that_waits_for_its_plugin_can_be_cancelled_and_superseded() -> None:
    async def main() -> None:
        async with scripted(stopped_backend(), start=False) as (host, backend, executor):
            starting = asyncio.create_task(host.start())
            await settle_down()
            executor.cancel(executor.call("a"))
            executor.call("b", ECHO, attempt=1)
            second = executor.call("b", ECHO, attempt=2)
            assert len(host.plugins.find_plugin("kit").waiting) == 1, "cancelled and superseded calls leave the queue"
            backend.may_start.set()
            await starting
            await executor.result(second)
            assert backend.attempts == [("b", 2)]
            assert backend.cancelled == [], "it never had them"

    run_async(main)


def test_a_call_that_waits_for_its_plugin_is_listed_and_joined_like_any_other() -> None:
    async def main() -> None:
        async with scripted(stopped_backend(), start=False) as (host, backend, first):
            starting = asyncio.create_task(host.start())
            await settle_down()
            first.call(component=ECHO)
            first.stream.close()
            second = ExecutorEnd(host, epoch=2)
            assert len((await second.attach()).calls) == 1
            joined = second.call(component=ECHO)
            backend.may_start.set()
            await starting
            await second.result(joined)
            assert backend.attempts == [("s", 1)]

    run_async(main)


def test_the_calls_for_a_plugin_that_did_not_start_fail_with_its_reason_and_no_others() -> None:
    async def main() -> None:
        broken = stopped_backend("broken", Unavailable("SERVER_EXITED", "it exited"))
        async with scripted(Scripted(), broken, start=False) as (host, _, executor):
            starting = asyncio.create_task(host.start())
            await settle_down()
            early = executor.call("a", plugin="broken")
            broken.may_start.set()
            await starting
            late = executor.call("b", plugin="broken")
            for number in (early, late):
                result = await executor.result(number)
                assert error_of(result) == ("UNREACHABLE", "SERVER_EXITED")
                assert "it exited" in result.failure.message
            assert broken.executed == []
            await executor.result(executor.call("c", ECHO))

    run_async(main)


def test_a_call_for_a_plugin_that_the_host_does_not_run_fails_at_once() -> None:
    async def main() -> None:
        async with scripted() as (_, _, executor):
            result = await executor.result(executor.call(plugin="elsewhere"))
            assert error_of(result) == ("UNREACHABLE", "PLUGIN_UNKNOWN")
            assert "'elsewhere'" in result.failure.message
            assert result.started_at_ms == 0

    run_async(main)


# --- time limits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"timeout_ms": SOON_MS}, "timeout of 30 ms"),
        ({"idle_timeout_ms": SOON_MS}, "idle timeout of 30 ms"),
        ({"timeout_ms": SOON_MS, "idle_timeout_ms": LATE_MS}, "its timeout of 30 ms"),
        ({"timeout_ms": LATE_MS, "idle_timeout_ms": SOON_MS}, "idle timeout of 30 ms"),
    ],
)
def test_a_call_beyond_its_time_limit_fails_with_timeout_and_is_cancelled(limits: dict[str, Any], words: str) -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            result = await executor.result(executor.call(**limits))
            assert error_of(result)[0] == "TIMEOUT"
            assert words in result.failure.message
            assert backend.cancelled == backend.executed
            backend.executed[0].succeed(b"1")
            await settle_down()
            assert len(executor.results) == 1
            assert len(host.deadlines) == 0

    run_async(main)


def test_progress_puts_the_idle_timeout_off_and_the_absolute_one_not() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            idle = executor.call("idle", idle_timeout_ms=100)
            total = executor.call("total", timeout_ms=300, idle_timeout_ms=100)
            reports = 0
            while not executor.results:  # a sign of life every few milliseconds
                for call in backend.executed:
                    call.progress()
                reports += 1
                await asyncio.sleep(0.005)
            assert reports > 1
            assert [result.call_id for result in executor.results] == [total]
            assert "timeout of 300 ms" in executor.results[0].failure.message
            assert "idle" in (await executor.result(idle)).failure.message

    run_async(main)


def test_the_clock_of_a_call_starts_when_its_backend_gets_it() -> None:
    async def main() -> None:
        async with scripted(stopped_backend(), start=False) as (host, backend, executor):
            starting = asyncio.create_task(host.start())
            await settle_down()
            waiting = executor.call("waiting", timeout_ms=SOON_MS, idle_timeout_ms=SOON_MS)
            assert len(host.deadlines) == 0
            assert executor.results == []
            backend.may_start.set()
            await starting
            assert len(host.deadlines) == 1
            assert error_of(await executor.result(waiting))[0] == "TIMEOUT"
            assert len(backend.executed) == 1

    run_async(main)


def test_no_time_passes_while_a_call_waits_in_its_backend() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            backend.on_execute = lambda call: call.note_queued() if call.request.step_id == "waiting" else None
            waiting = executor.call("waiting", timeout_ms=SOON_MS, idle_timeout_ms=SOON_MS)
            other = executor.call("other", timeout_ms=3 * SOON_MS)
            assert error_of(await executor.result(other))[0] == "TIMEOUT"
            assert [result.call_id for result in executor.results] == [other]

            handed_over: Any = backend.executed[0]
            before_ms = handed_over.started_at_ms
            handed_over.note_begun()
            assert len(host.deadlines) == 1
            result = await executor.result(waiting)
            assert error_of(result)[0] == "TIMEOUT"
            assert result.started_at_ms >= before_ms + 3 * SOON_MS

    run_async(main)


def test_a_begin_that_is_told_late_or_twice_changes_nothing() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            executor.call("a", timeout_ms=LATE_MS)
            call: Any = backend.executed[0]
            started_ns = call.started_ns
            call.note_begun()
            assert call.started_ns == started_ns
            call.note_queued()
            call.succeed(b"1")
            call.note_begun()
            call.note_queued()
            assert call.clock is None

    run_async(main)


def test_the_idle_time_stands_still_while_a_call_back_of_the_component_is_open() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            number = executor.call("asks", idle_timeout_ms=SOON_MS)
            other = executor.call("idles", idle_timeout_ms=10 * SOON_MS)
            asking = asyncio.create_task(backend.executed[0].get_flow("f"))
            await executor.result(other)
            assert [result.call_id for result in executor.results] == [other]
            executor.answer((await executor.asked())[0], flow_json=b"{}")
            await asking
            assert "idle timeout" in (await executor.result(number)).failure.message

    run_async(main)


def test_the_idle_time_begins_anew_with_the_answer_to_a_call_back() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            executor.call(idle_timeout_ms=LATE_MS)
            call: Any = backend.executed[0]
            asking = asyncio.create_task(call.get_flow("f"))
            callback = (await executor.asked())[0]
            answered_at = time.monotonic()
            executor.answer(callback, flow_json=b"{}")
            await asking
            assert call.clock.active_at >= answered_at

    run_async(main)


def test_a_shorter_limit_that_comes_later_is_kept_too() -> None:
    async def main() -> None:
        async with scripted() as (_, _, executor):
            executor.call("long", timeout_ms=LATE_MS)
            short = executor.call("short", timeout_ms=SOON_MS)
            assert error_of(await executor.result(short))[0] == "TIMEOUT"
            assert len(executor.results) == 1

    run_async(main)


def test_calls_that_have_ended_leave_the_clock_long_before_their_limit() -> None:
    async def main() -> None:
        async with scripted() as (host, _, executor):
            executor.call("stays", timeout_ms=LATE_MS)
            for number in range(10 * EMPTY_MIN):
                executor.call(f"s{number}", ECHO, timeout_ms=LATE_MS)
            assert len(host.deadlines) <= 2 * EMPTY_MIN

    run_async(main)


def test_calls_that_expire_together_may_end_each_other() -> None:
    def cancel_the_other(executor: ExecutorEnd, numbers: list[int]) -> Callable[[HostCall], None]:
        return lambda call: executor.cancel(numbers[1 - numbers.index(call.request.call_id)])

    async def main() -> None:
        async with scripted() as (host, backend, executor):
            numbers = [executor.call("a", timeout_ms=SOON_MS), executor.call("b", timeout_ms=SOON_MS)]
            backend.on_cancel = cancel_the_other(executor, numbers)
            await wait_until_async(lambda: executor.results, "one has its result")
            await settle_down()
            assert len(executor.results) == 1
            assert host.calls_in_flight == 0

    run_async(main)


# --- close ----------------------------------------------------------------------------------------------------------


def test_close_fails_each_call_in_flight_once_whoever_has_it() -> None:
    async def main() -> None:
        blobs = SlowBlobs()
        forgetful = Scripted("forgetful")
        forgetful.fails_calls_at_close = False
        slow = stopped_backend("slow")
        async with scripted(Scripted(), forgetful, slow, blobs=blobs, start=False) as (host, backend, executor):
            starting = asyncio.create_task(host.start())
            await settle_down()
            numbers = {
                "by its backend": executor.call("a"),
                "forgotten by its backend": executor.call("b", plugin="forgetful"),
                "plugin starting": executor.call("c", plugin="slow"),
                "input being fetched": executor.call("d", blob=blob_id(b"x")),
                "output being stored": executor.call("e"),
                "output being checked": executor.call("f"),
            }
            backend.executed[-2].succeed(encode("x" * INLINE_BYTES_MAX))
            backend.executed[-1].succeed(encode("x" * LOOP_BYTES_MAX))
            await wait_until_async(lambda: blobs.asked >= 2, "blobs are in transit")
            await host.close()
            await starting
            outcomes = {result.call_id: error_of(result)[0] for result in executor.results}
            assert outcomes == dict.fromkeys(numbers.values(), "UNREACHABLE")
            assert len(executor.results) == len(numbers)
            assert host.calls_in_flight == 0
            assert host.plugins.failures["slow"].reason == "HOST_STOPPED"

    run_async(main)


def test_close_may_be_repeated_and_called_by_several_at_once() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            executor.call()
            await asyncio.gather(host.close(), host.close())
            await host.close()
            assert backend.closed == 1
            assert len(executor.results) == 1

    run_async(main)


def test_who_stops_waiting_for_the_close_does_not_stop_it() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, _):
            closing = asyncio.create_task(host.close())
            await asyncio.sleep(0)
            closing.cancel()
            await host.close()
            assert backend.closed == 1

    run_async(main)


def test_a_host_can_be_closed_before_it_was_started_and_in_the_moment_it_is() -> None:
    async def main() -> None:
        async with scripted(start=False) as (host, backend, _):
            starting = asyncio.create_task(host.start())
            await asyncio.sleep(0)
            await host.close()
            await starting
            assert backend.starts == backend.closed == 1
        never = Scripted()
        await ComponentHost("h2", {"kit": never}, BlobStore.open("memory://")).close()
        assert never.closed == 0

    run_async(main)


def test_a_backend_whose_close_fails_or_hangs_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_tasks, "CLOSE_WAIT_S", 0.05)
    released: list[asyncio.Event] = []

    class Stubborn(Scripted):
        async def close(self) -> None:
            released.append(asyncio.Event())
            await released[0].wait()

    class Broken(Scripted):
        async def close(self) -> None:
            raise RuntimeError

    async def main() -> None:
        last = Scripted("last")
        async with scripted(Stubborn("stubborn"), Broken("broken"), last) as (host, _, executor):
            executor.call("a", plugin="stubborn")
            executor.call("b", plugin="broken")
            await host.close()
            assert last.closed == 1
            assert [error_of(result) for result in executor.results] == [("UNREACHABLE", "HOST_STOPPED")] * 2
            released[0].set()
            await settle_down()

    run_async(main)


def test_a_stopped_host_takes_no_calls_and_starts_nothing() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            held = await executor.result(executor.call("held", ECHO))
            await host.close()
            refused = executor.call("new", ECHO)
            assert error_of(await executor.result(refused)) == ("UNREACHABLE", "HOST_STOPPED")
            again = await executor.result(executor.call("held", ECHO))
            assert again.result == held.result, "what it holds it still gives"
            assert len(backend.executed) == 1
            error = await error_from(host.start())
            assert isinstance(error, FailedPrecondition)
            assert error.reason == "HOST_STOPPED"

    run_async(main)


def test_nothing_is_timed_any_more_after_the_close() -> None:
    async def main() -> None:
        async with scripted() as (host, _, executor):
            executor.call("a", timeout_ms=LATE_MS)
            executor.call("b", ECHO)
            executor.stream.close()
            assert len(timers()) == 3, "time limits, holds, the closed stream"
            late = ExecutorEnd(host)
            await host.close()
            late.stream.close()
            assert timers() == []

    run_async(main)


def timers() -> list[str]:
    """Return the modules of the host with a timer in the event loop (asyncio's own)."""
    scheduled: list[Any] = getattr(asyncio.get_running_loop(), "_scheduled")  # noqa: B009  # no stub has it
    callbacks = [handle._callback for handle in scheduled if not handle.cancelled()]
    names = [type(getattr(callback, "__self__", None)).__module__ for callback in callbacks]
    return [name for name in names if name.startswith("component_host")]


# --- the session ----------------------------------------------------------------------------------------------------


def test_nothing_begins_while_the_host_does_not_count_as_registered() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            begun = executor.call("begun")
            host.dispatcher.may_begin = lambda: False
            waiting = executor.call("waiting")
            executor.call("again", ECHO)
            await settle_down()
            assert backend.attempts == [("begun", 1)]
            backend.executed[0].succeed(b"1")
            assert (await executor.result(begun)).result.json == b"1"
            host.dispatcher.may_begin = lambda: True
            await wait_until_async(lambda: len(backend.executed) == 3, "they begin in their order")
            assert backend.attempts == [("begun", 1), ("waiting", 1), ("again", 1)]
            assert executor.results[-1].call_id != waiting

    run_async(main)


def test_what_had_not_begun_when_the_session_ended_never_begins() -> None:
    async def main() -> None:
        hung_up: list[bool] = []
        async with scripted() as (host, backend, executor):
            host.connect(executor.frames.append, lambda: hung_up.append(True))
            begun = executor.call("begun")
            host.dispatcher.may_begin = lambda: False
            executor.call("late")
            host.end_session()
            host.dispatcher.may_begin = lambda: True
            again = executor.call("late", ECHO, attempt=2)
            assert (await executor.result(again)).attempt == 2
            backend.executed[0].succeed(b"1")
            assert (await executor.result(begun)).result.json == b"1", "what had begun goes on"
            assert backend.attempts == [("begun", 1), ("late", 2)]
            assert host.calls_in_flight == 0
            assert hung_up == [True]

    run_async(main)
