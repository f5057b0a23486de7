"""The component host's guarantees for calls: executed once, joined, held, released; with two executors where needed.

The backend is scripted (behind the interface of `component_host.backend`); blobs and frames are real.
"""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest
from support import wait_until_async
from support.scripted_host import (
    ECHO,
    RUN,
    ExecutorEnd,
    error_of,
    run_async,
    scripted,
    settle_down,
)

from component_host import call_table
from component_host.call import LOOP_BYTES_MAX, Call
from component_host.held_results import HOLD_BYTES
from component_host.results import MESSAGE_CHARS_MAX
from stepflow import telemetry
from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX, blob_id, encode
from stepflow.errors import Code, FailedPrecondition, Failure, Unavailable
from stepflow.mesh.v1 import host_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.store.blobs import BlobStore

if TYPE_CHECKING:
    from pathlib import Path

    from component_host.backend import HostCall
    from component_host.host import ComponentHost

LARGE = encode("x" * INLINE_BYTES_MAX)


class GatedBlobs(BlobStore):
    """A real store in memory; operations wait for `gate`, then raise `error` if set."""

    def __init__(self) -> None:
        super().__init__(BlobStore.open("memory://")._backend)
        self.gate = asyncio.Event()
        self.waiting = 0
        self.error: Exception | None = None

    async def put(self, content: bytes, *, scope: str = "shared", blob_type: str = "data") -> str:
        await self._pass()
        return await super().put(content, scope=scope, blob_type=blob_type)

    async def get(self, identity: str, *, scope: str = "shared") -> tuple[bytes, str]:
        await self._pass()
        return await super().get(identity, scope=scope)

    async def _pass(self) -> None:
        self.waiting += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error


def calls_alive(host: ComponentHost) -> list[Call]:
    """Return the calls of the host that are still in memory."""
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, Call) and each._owner is host]


def assert_nothing_is_left(host: ComponentHost, *streams: ExecutorEnd) -> None:
    assert host.calls_held == 0
    assert host.calls_in_flight == 0
    assert len(host.held_results) == 0
    assert host.held_results.bytes == 0
    for end in streams:
        assert end.stream.calls == {}
    assert [run for run in host._table._partitions.values() if run.calls] == []


# --- once -----------------------------------------------------------------------------------------------------------


def test_a_call_is_given_to_its_backend_and_its_result_comes_back() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            result = await executor.result(executor.call(component=ECHO, json=b'{"n":1}'))
            assert result.result.json == b'{"n":1}'
            assert result.key == f"{RUN}/0/s"
            assert result.attempt == 1
            assert result.started_at_ms > 0
            assert backend.executed[0].request.path == "/echo"

    run_async(main)


def test_what_gathers_in_one_turn_goes_out_as_one_frame() -> None:
    async def main() -> None:
        async with scripted() as (_, _, executor):
            executor.send(calls=[executor.request(f"s{n}", ECHO) for n in range(20)])
            await settle_down()
            assert [len(frame.results) for frame in executor.frames] == [20]

    run_async(main)


def test_the_same_attempt_asked_for_twice_is_executed_once() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            executor.call()
            again = executor.call()
            backend.executed[0].succeed(b"1")
            assert (await executor.result(again)).result.json == b"1"
            assert backend.attempts == [("s", 1)]
            assert len(executor.results) == 1

    run_async(main)


def test_an_attempt_whose_result_is_held_is_answered_from_the_hold() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            first = await executor.result(executor.call(component=ECHO))
            second = await executor.result(executor.call(component=ECHO))
            assert len(backend.executed) == 1
            assert second.result == first.result
            assert second.started_at_ms == first.started_at_ms

    run_async(main)


def test_a_higher_attempt_cancels_the_older_one_in_flight() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            executor.call(attempt=1)
            second = executor.call(attempt=2)
            assert backend.cancelled == backend.executed[:1]
            backend.executed[0].succeed(b'"late"')
            backend.executed[1].succeed(b'"new"')
            assert (await executor.result(second)).result.json == b'"new"'
            await settle_down()
            assert len(executor.results) == 1
            executor.ack(attempt=2)
            assert_nothing_is_left(host, executor)

    run_async(main)


def test_a_higher_attempt_drops_the_held_result_of_the_older_one() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            await executor.result(executor.call(component=ECHO, json=b"1"))
            assert (await executor.result(executor.call(component=ECHO, attempt=2, json=b"2"))).result.json == b"2"
            assert len(host.held_results) == 1
            assert backend.cancelled == []

    run_async(main)


def test_a_lower_attempt_is_refused() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            executor.call(attempt=2)
            result = await executor.result(executor.call(attempt=1))
            assert error_of(result) == ("UNREACHABLE", "STALE_ATTEMPT")
            assert result.failure.origin == pb.ORIGIN_DISPATCH
            assert result.attempt == 1
            assert backend.attempts == [("s", 2)]

    run_async(main)


# --- executors come and go ------------------------------------------------------------------------------------------


def test_a_second_executor_joins_a_call_in_flight_after_the_first_stream_closed() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, first):
            first.call()
            first.stream.close()
            second = ExecutorEnd(host, epoch=2)
            held = (await second.attach()).calls
            assert [(call.run_id, call.key, call.attempt) for call in held] == [(RUN, f"{RUN}/0/s", 1)]
            joined = second.call()
            backend.executed[0].succeed(b'"done"')
            assert (await second.result(joined)).result.json == b'"done"'
            assert backend.attempts == [("s", 1)]
            assert backend.cancelled == []
            assert first.results == []

    run_async(main)


def test_a_second_executor_gets_the_result_that_came_while_nobody_listened() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, first):
            first.call()
            first.stream.close()
            backend.executed[0].fail(Failure(Code.COMPONENT_FAILED, "no", b'{"a":1}'))
            second = ExecutorEnd(host, epoch=2)
            assert len((await second.attach()).calls) == 1
            result = await second.result(second.call())
            assert (result.failure.message, result.failure.data_json) == ("no", b'{"a":1}')
            assert len(backend.executed) == 1
            second.ack()
            assert_nothing_is_left(host, first, second)

    run_async(main)


def test_after_a_join_only_the_new_stream_can_cancel_the_call() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, first):
            second = ExecutorEnd(host, epoch=2)
            old = first.call()
            new = second.call()
            first.cancel(old)
            assert backend.cancelled == []
            second.cancel(new)
            assert backend.cancelled == backend.executed
            assert_nothing_is_left(host, first, second)

    run_async(main)


def test_after_a_join_the_former_owner_cannot_acknowledge_what_the_new_one_needs() -> None:
    async def main() -> None:
        async with scripted() as (host, _, first):
            await first.result(first.call(component=ECHO))
            second = ExecutorEnd(host, epoch=2)
            await second.result(second.call(component=ECHO))
            first.ack()
            assert len(host.held_results) == 1
            second.ack()
            assert_nothing_is_left(host, first, second)

    run_async(main)


def test_an_executor_that_connects_again_acknowledges_on_its_new_stream() -> None:
    async def main() -> None:
        async with scripted() as (host, _, first):
            await first.result(first.call(component=ECHO))
            first.stream.close()
            again = ExecutorEnd(host)
            again.ack()
            assert_nothing_is_left(host, first, again)

    run_async(main)


def test_a_call_joined_while_its_output_is_being_stored_is_answered_under_its_new_id() -> None:
    async def main() -> None:
        blobs = GatedBlobs()
        async with scripted(blobs=blobs) as (host, backend, first):
            for _ in range(5):
                first.call("other")  # so that the ids of the two streams differ
            first.call()
            backend.executed[1].succeed(LARGE)
            await wait_until_async(lambda: blobs.waiting, "the output is being stored")
            second = ExecutorEnd(host, epoch=2)
            joined = second.call()
            blobs.gate.set()
            assert (await second.result(joined)).result.blob == blob_id(LARGE)
            assert [result for result in first.results if result.key.endswith("/s")] == []

    run_async(main)


def test_an_owner_with_a_smaller_epoch_is_refused_once_a_greater_one_was_seen() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, old):
            old.call("a")
            new = ExecutorEnd(host, epoch=2)
            new.call("b")
            assert error_of(await old.result(old.call("c"))) == ("UNREACHABLE", "STALE_EPOCH")
            assert error_of(await old.result(old.call("b", attempt=5))) == ("UNREACHABLE", "STALE_EPOCH")
            assert backend.attempts == [("a", 1), ("b", 1)]
            assert (await old.attach()).calls == []

    run_async(main)


def test_a_question_what_is_held_already_shuts_the_former_owner_out() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, old):
            await ExecutorEnd(host, epoch=7).attach()
            assert error_of(await old.result(old.call())) == ("UNREACHABLE", "STALE_EPOCH")
            assert backend.executed == []

    run_async(main)


def test_the_partitions_of_a_run_have_epochs_of_their_own() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            executor.call("a", epoch=5, partition=0)
            executor.call("b", epoch=9, partition=1)
            executor.call("c", epoch=5, partition=0)
            assert len(backend.executed) == 3
            held = await executor.attach(epoch=9, partition=1)
            assert [call.key for call in held.calls] == [f"{RUN}/0/b"]

    run_async(main)


def test_a_run_that_the_host_does_not_know_is_answered_with_nothing_held() -> None:
    async def main() -> None:
        async with scripted() as (_, _, executor):
            executor.call()
            answer = await executor.attach("unknown", RUN)
            assert list(answer.run_ids) == ["unknown", RUN]
            assert [call.run_id for call in answer.calls] == [RUN]

    run_async(main)


def test_the_epochs_of_idle_runs_are_bounded_and_those_with_calls_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_table, "PARTITIONS_MAX", 10)

    async def main() -> None:
        async with scripted() as (host, _, executor):
            executor.call("kept", run="busy", epoch=5)
            for number in range(100):
                step = f"s{number}"
                await executor.result(executor.call(step, ECHO, run=f"r{number}"))
                executor.ack(step, run=f"r{number}")
            assert host._table.partitions <= 10
            assert error_of(await executor.result(executor.call("late", run="busy", epoch=4))) == (
                "UNREACHABLE",
                "STALE_EPOCH",
            )

    run_async(main)


def test_the_table_of_runs_shrinks_again_after_many_had_calls_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_table, "PARTITIONS_MAX", 10)

    async def main() -> None:
        async with scripted() as (host, _, executor):
            for number in range(50):
                executor.call(run=f"r{number}")
            assert host._table.partitions == 50
            for number in range(50):
                executor.ack(run=f"r{number}")
            for number in range(100):
                executor.call("x", ECHO, run=f"later{number}")
                executor.ack("x", run=f"later{number}")
            assert host._table.partitions == 10

    run_async(main)


# --- forgotten ------------------------------------------------------------------------------------------------------


def test_an_acknowledged_result_is_forgotten() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            await executor.result(executor.call(component=ECHO))
            assert (host.calls_held, host.calls_in_flight, len(host.held_results)) == (1, 0, 1)
            executor.ack(attempt=0)
            assert host.calls_held == 1
            executor.ack()
            assert_nothing_is_left(host, executor)
            assert len(calls_alive(host)) == 1, "the backend's"
            backend.executed.clear()
            assert calls_alive(host) == []

    run_async(main)


def test_a_call_in_flight_that_is_acknowledged_as_superseded_is_cancelled() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            executor.call(attempt=2)
            executor.ack(attempt=3)
            assert backend.cancelled == backend.executed
            assert_nothing_is_left(host, executor)

    run_async(main)


def test_a_cancelled_call_is_forgotten_and_nothing_comes_back() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            executor.cancel(executor.call())
            call = backend.executed[0]
            assert backend.cancelled == [call]
            call.progress(1, 2, "late")
            call.succeed(b"1")
            await settle_down()
            assert executor.frames == []
            assert_nothing_is_left(host, executor)

    run_async(main)


def test_a_cancel_for_a_call_that_has_its_result_changes_nothing() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            number = executor.call(component=ECHO)
            executor.cancel(number)
            executor.cancel(99)
            await executor.result(number)
            assert backend.cancelled == []
            assert len(host.held_results) == 1

    run_async(main)


def test_a_call_and_its_cancel_in_one_frame_leave_nothing() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            request = executor.request()
            executor.send(calls=[request], cancels=[host_pb2.Cancel(call_id=request.call_id)])
            assert len(backend.cancelled) == 1
            assert_nothing_is_left(host, executor)

    run_async(main)


def test_a_call_cancelled_while_its_input_is_fetched_is_never_executed() -> None:
    async def main() -> None:
        blobs = GatedBlobs()
        async with scripted(blobs=blobs) as (host, backend, executor):
            number = executor.call(blob=blob_id(LARGE))
            await wait_until_async(lambda: blobs.waiting, "the input is being fetched")
            executor.cancel(number)
            blobs.gate.set()
            await settle_down()
            assert (backend.executed, backend.cancelled, executor.results) == ([], [], [])
            assert_nothing_is_left(host, executor)

    run_async(main)


def test_an_output_stored_after_its_call_was_superseded_is_not_taken_for_the_new_attempts() -> None:
    async def main() -> None:
        blobs = GatedBlobs()
        async with scripted(blobs=blobs) as (host, backend, executor):
            executor.call()
            backend.executed[0].succeed(LARGE)
            await wait_until_async(lambda: blobs.waiting, "the output is being stored")
            second = executor.call(attempt=2)
            backend.executed[1].succeed(b'"new"')
            blobs.gate.set()
            assert (await executor.result(second)).result.json == b'"new"'
            await settle_down()
            assert len(executor.results) == 1
            assert backend.cancelled == [], "the first one had ended"
            executor.ack(attempt=2)
            assert_nothing_is_left(host, executor)

    run_async(main)


# --- held -----------------------------------------------------------------------------------------------------------


def test_above_the_bytes_that_may_be_held_the_oldest_results_go() -> None:
    text = encode("x" * 1000)

    async def main() -> None:
        async with scripted(held_bytes_max=20 * HOLD_BYTES) as (host, backend, executor):
            for number in range(30):
                await executor.result(executor.call(f"s{number}", ECHO, json=text))
            assert host.held_results.bytes <= 20 * HOLD_BYTES
            held = {call.key for call in (await executor.attach()).calls}
            assert f"{RUN}/0/s29" in held
            assert f"{RUN}/0/s0" not in held
            await executor.result(executor.call("s29", ECHO))
            assert len(backend.executed) == 30
            await executor.result(executor.call("s0", ECHO))
            assert len(backend.executed) == 31, "given up: executed once more"

    run_async(main)


def test_results_in_the_blob_store_count_as_what_the_process_keeps_for_them() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            executor.call(json=b"12345678")
            backend.executed[0].succeed(LARGE)
            await wait_until_async(lambda: executor.results, "the result comes")
            assert host.held_results.bytes == HOLD_BYTES + 8

    run_async(main)


def test_results_that_nobody_asks_for_go_when_they_are_old() -> None:
    async def main() -> None:
        async with scripted(held_s_max=0.05) as (host, _, executor):
            executor.call(component=ECHO)
            executor.stream.close()
            assert len(host.held_results) == 1
            await wait_until_async(lambda: not host.calls_held, "the hold is too old")
            assert_nothing_is_left(host, executor)

    run_async(main)


def test_results_that_are_not_old_stay() -> None:
    async def main() -> None:
        async with scripted() as (host, _, executor):
            executor.call(component=ECHO)
            host.held_results._sweep()
            assert len(host.held_results) == 1

    run_async(main)


# --- inputs and outputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [RUN, "shared"])
def test_an_input_that_travelled_as_a_blob_reaches_the_backend_in_full(scope: str) -> None:
    async def main() -> None:
        blobs = BlobStore.open("memory://")
        await blobs.put(LARGE, scope=scope)
        async with scripted(blobs=blobs) as (_, backend, executor):
            result = await executor.result(executor.call(component=ECHO, blob=blob_id(LARGE)))
            assert result.result.blob == blob_id(LARGE)
            assert len(backend.executed) == 1

    run_async(main)


def test_an_input_that_does_not_exist_fails_the_call_for_good() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            result = await executor.result(executor.call(blob=blob_id(b"nothing")))
            assert error_of(result) == ("ORCHESTRATOR_ERROR", "BLOB_NOT_FOUND")
            assert result.failure.origin == pb.ORIGIN_DISPATCH
            assert backend.executed == []

    run_async(main)


@pytest.mark.parametrize("reason", ["BLOB_STORE_UNAVAILABLE", "BLOB_STORE_FULL", "BLOB_STORE_REFUSED"])
def test_a_call_waits_for_a_blob_store_that_is_away_and_is_executed_once(reason: str) -> None:
    async def main() -> None:
        blobs = GatedBlobs()
        blobs.gate.set()
        await blobs.put(LARGE, scope=RUN)
        family = FailedPrecondition if reason == "BLOB_STORE_REFUSED" else Unavailable
        blobs.error = family(reason, "away")
        async with scripted(blobs=blobs) as (host, backend, executor):
            read = executor.call("a", ECHO, blob=blob_id(LARGE))
            written = executor.call("b")
            backend.executed[0].succeed(LARGE)
            await wait_until_async(lambda: host.held_results.bytes > len(LARGE), "the output counts as held")
            assert executor.results == []
            assert host.calls_in_flight == 2

            blobs.error = None
            for number in (read, written):
                assert (await executor.result(number)).result.blob == blob_id(LARGE)
            assert len(backend.executed) == 2
            executor.ack("a")
            executor.ack("b")
            assert_nothing_is_left(host, executor)

    run_async(main)


def test_a_cancelled_call_does_not_keep_the_output_that_waits_for_the_blob_store() -> None:
    async def main() -> None:
        blobs = GatedBlobs()
        blobs.gate.set()
        blobs.error = Unavailable("BLOB_STORE_FULL", "away")
        async with scripted(blobs=blobs) as (host, backend, executor):
            number = executor.call()
            backend.executed[0].succeed(LARGE)
            await wait_until_async(lambda: host.held_results.bytes, "the output waits")
            executor.cancel(number)
            assert_nothing_is_left(host, executor)
            await wait_until_async(lambda: not host._tasks._tasks, "nothing keeps the output")

    run_async(main)


def test_the_oldest_output_that_waits_for_the_blob_store_is_given_up_when_the_host_holds_too_many() -> None:
    async def main() -> None:
        blobs = GatedBlobs()
        blobs.gate.set()
        blobs.error = Unavailable("BLOB_STORE_FULL", "no space left")
        async with scripted(blobs=blobs, held_bytes_max=3 * len(LARGE)) as (_, backend, executor):
            numbers = [executor.call(step) for step in "abc"]
            for call in backend.executed:
                call.succeed(LARGE)
            await wait_until_async(lambda: executor.results, "one result is given up")
            assert error_of(await executor.result(numbers[0]))[0] == "UNREACHABLE"
            assert len(executor.results) == 1

            blobs.error = None
            for number in numbers[1:]:
                assert (await executor.result(number)).result.blob == blob_id(LARGE)
            assert len(backend.executed) == 3

    run_async(main)


def test_a_mistake_in_the_blob_store_fails_the_call_and_not_the_host() -> None:
    async def main() -> None:
        blobs = GatedBlobs()
        blobs.gate.set()
        blobs.error = ZeroDivisionError("secret payload")
        async with scripted(blobs=blobs) as (_, backend, executor):
            read = executor.call("a", blob=blob_id(LARGE))
            written = executor.call("b")
            backend.executed[0].succeed(LARGE)
            for number in (read, written):
                result = await executor.result(number)
                assert error_of(result)[0] == "ORCHESTRATOR_ERROR"
                assert "ZeroDivisionError" in result.failure.message
                assert "secret" not in result.failure.message

    run_async(main)


def test_a_large_inline_input_is_refused() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            result = await executor.result(executor.call(json=LARGE))
            assert error_of(result) == ("ORCHESTRATOR_ERROR", "INPUT_NOT_A_BLOB")
            assert backend.executed == []

    run_async(main)


@pytest.mark.parametrize(
    ("output", "result"),
    [
        (b'{ "a" : 1.0,\n "b": [1, 2] }', b'{"a":1.0,"b":[1,2]}'),
        (b" " * INLINE_BYTES_MAX + b"7", b"7"),
        (b" " * LOOP_BYTES_MAX + b"8", b"8"),
    ],
)
def test_an_output_is_compacted(output: bytes, result: bytes) -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            number = executor.call()
            backend.executed[0].succeed(output)
            assert (await executor.result(number)).result.json == result

    run_async(main)


@pytest.mark.parametrize("size", [INLINE_BYTES_MAX, LOOP_BYTES_MAX, 2 * LOOP_BYTES_MAX])
def test_a_large_output_is_in_the_blob_store_before_its_id_is_told(size: int) -> None:
    text = encode("x" * size)

    async def main() -> None:
        blobs = GatedBlobs()
        async with scripted(blobs=blobs) as (host, backend, executor):
            number = executor.call()
            backend.executed[0].succeed(text)
            await wait_until_async(lambda: blobs.waiting, "the output is being stored")
            assert executor.results == []
            assert host.calls_in_flight == 1
            blobs.gate.set()
            assert (await executor.result(number)).result.blob == blob_id(text)
            assert (await blobs.get(blob_id(text), scope=RUN))[0] == text

    run_async(main)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (b'{"a":', "JSON_INVALID"),
        (b"", "JSON_INVALID"),
        (b"[" * 300 + b"]" * 300, "JSON_TOO_DEEP"),
        (b'"' + b"x" * PAYLOAD_BYTES_MAX + b'"', "PAYLOAD_TOO_LARGE"),
        (b" " * LOOP_BYTES_MAX + b"{", "JSON_INVALID"),
    ],
)
def test_an_output_that_cannot_be_used_fails_the_component(output: bytes, reason: str) -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            number = executor.call(component="odd")
            backend.executed[0].succeed(output)
            result = await executor.result(number)
            assert error_of(result) == ("COMPONENT_FAILED", reason)
            assert "/odd" in result.failure.message
            assert result.failure.origin == pb.ORIGIN_COMPONENT

    run_async(main)


def test_a_failure_is_cut_to_what_a_frame_bears() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            number = executor.call()
            data = encode({"stack": "x" * INLINE_BYTES_MAX})
            backend.executed[0].fail(Failure(Code.COMPONENT_FAILED, "e" * 100_000, data))
            failure = (await executor.result(number)).failure
            assert failure.message == "e" * (MESSAGE_CHARS_MAX - 1) + "…"
            assert len(failure.data_json) < 200
            assert b"DETAILS_TOO_LARGE" in failure.data_json

    run_async(main)


def test_a_text_with_half_a_character_does_not_stop_a_failure_or_progress() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            number = executor.call()
            backend.executed[0].progress(1, 2, "half \ud800")
            backend.executed[0].fail(Failure(Code.COMPONENT_FAILED, "half \ud800 a character"))
            assert (await executor.result(number)).failure.message == "half ? a character"
            assert [report.message for report in executor.progress] == ["half ?"]

    run_async(main)


# --- backends at fault ----------------------------------------------------------------------------------------------


def test_the_first_outcome_of_a_call_counts() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            number = executor.call()
            call = backend.executed[0]
            call.succeed(b"1")
            call.succeed(b"2")
            call.fail(Failure(Code.COMPONENT_FAILED, "no"))
            call.progress(1)
            assert (await executor.result(number)).result.json == b"1"
            await settle_down()
            assert len(executor.results) == 1
            assert executor.progress == []
            assert len(host.held_results) == 1

    run_async(main)


def test_a_backend_that_raises_fails_that_call_and_no_other_of_the_frame(tmp_path: Path) -> None:
    def explode(call: HostCall) -> None:
        if call.request.step_id == "bad":
            raise KeyError("secret payload")

    async def main() -> None:
        async with scripted() as (host, backend, executor):
            backend.on_execute = explode
            requests = [executor.request("a", ECHO), executor.request("bad"), executor.request("b", ECHO)]
            executor.send(calls=requests)
            outcomes = [await executor.result(request.call_id) for request in requests]
            assert [outcome.WhichOneof("outcome") for outcome in outcomes] == ["result", "failure", "result"]
            assert error_of(outcomes[1])[0] == "WORKER_ERROR"
            assert "KeyError" in outcomes[1].failure.message
            assert "secret" not in outcomes[1].failure.message
            for step in ("a", "bad", "b"):
                executor.ack(step)
            assert_nothing_is_left(host, executor)

    path = tmp_path / "log"
    telemetry.configure("error", path)
    try:
        run_async(main)
    finally:
        telemetry.configure()
    text = path.read_text()
    assert "backend failed on a call by a defect" in text
    assert "explode" in text, "where it happened"
    assert "secret" not in text


def test_a_backend_that_answers_and_then_raises_has_answered() -> None:
    def explode(call: HostCall) -> None:
        raise RuntimeError

    async def main() -> None:
        async with scripted() as (_, backend, executor):
            backend.on_execute = explode
            assert (await executor.result(executor.call(component=ECHO, json=b"1"))).result.json == b"1"

    run_async(main)


def test_a_backend_that_cannot_cancel_does_not_disturb_the_others() -> None:
    def explode(call: HostCall) -> None:
        raise RuntimeError

    async def main() -> None:
        async with scripted() as (host, backend, executor):
            backend.on_cancel = explode
            numbers = [executor.call("a"), executor.call("b")]
            executor.send(cancels=[host_pb2.Cancel(call_id=number) for number in numbers])
            assert len(backend.cancelled) == 2
            assert_nothing_is_left(host, executor)

    run_async(main)


# --- streams --------------------------------------------------------------------------------------------------------


def test_a_closed_stream_delivers_nothing_and_takes_nothing_in() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            executor.call("a")
            executor.call("b", ECHO)
            executor.stream.close()
            executor.stream.close()
            executor.call("c")
            backend.executed[0].progress(1)
            backend.executed[0].succeed(b"1")
            await settle_down()
            assert executor.frames == []
            assert len(backend.executed) == 2
            assert len(host.held_results) == 2

    run_async(main)


def test_progress_reaches_the_executor_with_the_id_of_its_call() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            executor.call("a")
            number = executor.call("b")
            backend.executed[1].progress(1, 4, "m" * 10_000)
            await wait_until_async(lambda: executor.progress, "progress comes")
            report = executor.progress[0]
            assert (report.call_id, report.done, report.total) == (number, 1, 4)
            assert len(report.message) == MESSAGE_CHARS_MAX // 16

    run_async(main)


def test_of_a_flood_of_progress_some_reports_and_the_last_of_each_call_reach_the_executor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("component_host.progress_gate.PERIOD_S", 0.5)

    async def main() -> None:
        async with scripted() as (_, backend, executor):
            numbers = [executor.call("a"), executor.call("b")]
            for done in range(1, 5_001):
                for call in backend.executed:
                    call.progress(done, 5_000)
                if not done % 100:
                    await asyncio.sleep(0)
            last = {(number, 5_000.0) for number in numbers}
            await wait_until_async(
                lambda: last <= {(report.call_id, report.done) for report in executor.progress}, "the last are in"
            )
            assert len(executor.progress) < 2_500

    run_async(main)


def test_what_is_in_flight_and_what_is_held_is_counted_whatever_the_depth() -> None:
    async def main() -> None:
        async with scripted() as (host, _, executor):
            executor.call("a")
            executor.call("b", depth=1)
            executor.call("c", ECHO)
            assert (host.calls_in_flight, host.calls_held) == (2, 3)
            for step in "abc":
                executor.ack(step)
            assert_nothing_is_left(host, executor)

    run_async(main)
