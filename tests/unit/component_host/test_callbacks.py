"""Call-backs from components to the owner of the run: resent after a join, answered once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_until_async
from support.scripted_host import RUN, ExecutorEnd, error_from, run_async, scripted, settle_down

from component_host import results
from stepflow.codec import INLINE_BYTES_MAX, blob_id, encode
from stepflow.errors import FailedPrecondition, Invalid, NotFound, Unavailable
from stepflow.mesh.v1 import host_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.store.blobs import BlobStore

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from component_host.backend import HostCall

LARGE = encode(["x" * INLINE_BYTES_MAX])
SUB_RUN = "01890a5d-ac96-774b-bcce-000000000001"
FLOW: dict[str, Any] = {"flow": pb.Payload(json=b"{}"), "inputs": pb.Payload(json=b"[1]")}


def report(*payloads: pb.Payload) -> host_pb2.RunReport:
    return host_pb2.RunReport(run_id=SUB_RUN, items=[host_pb2.ReportItem(flow_result=each) for each in payloads])


def task(asking: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(asking)


def test_a_component_asks_the_owner_of_its_run_and_gets_the_answer() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            number = executor.call()
            call = backend.executed[0]
            started = task(call.start_run(host_pb2.StartRun(key="k", wait=True, **FLOW)))
            asked = task(call.get_run(SUB_RUN, wait=False))
            read = task(call.get_flow("f1"))
            callbacks = await executor.asked(3)
            assert [callback.call_id for callback in callbacks] == [number] * 3
            assert len({callback.callback_id for callback in callbacks}) == 3
            assert callbacks[0].start_run.key == "k"
            assert callbacks[1].get_run == host_pb2.GetRun(run_id=SUB_RUN)
            executor.answer(callbacks[2], flow_json=b'{"steps":[]}')
            executor.answer(callbacks[0], report=report())
            executor.answer(callbacks[1], report=host_pb2.RunReport(run_id="other"))
            assert (await started).run_id == SUB_RUN
            assert (await asked).run_id == "other"
            assert await read == b'{"steps":[]}'

    run_async(main)


def test_requests_without_a_key_are_counted_for_each_attempt() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            executor.call(attempt=1)
            asking = [task(backend.executed[0].start_run(host_pb2.StartRun(key=key, **FLOW))) for key in ("", "k", "")]
            assert [callback.start_run.key for callback in await executor.asked(3)] == ["#0", "k", "#1"]
            executor.call(attempt=2)
            asking.append(task(backend.executed[1].start_run(host_pb2.StartRun(**FLOW))))
            assert (await executor.asked(4))[3].start_run.key == "#0"
            executor.cancel(2)
            assert [(await error_from(each)).reason for each in asking] == ["CALL_ENDED"] * 4

    run_async(main)


def test_large_inputs_of_a_sub_run_travel_as_a_blob_of_the_run() -> None:
    async def main() -> None:
        blobs = BlobStore.open("memory://")
        async with scripted(blobs=blobs) as (_, backend, executor):
            executor.call()
            request = host_pb2.StartRun(flow=pb.Payload(json=b"{}"), inputs=pb.Payload(json=LARGE))
            asked = task(backend.executed[0].start_run(request))
            callback = (await executor.asked())[0]
            assert callback.start_run.inputs == pb.Payload(blob=blob_id(LARGE), blob_bytes=len(LARGE))
            assert callback.start_run.flow.json == b"{}"
            assert (await blobs.get(blob_id(LARGE), scope=RUN))[0] == LARGE
            executor.answer(callback, report=report())
            await asked

    run_async(main)


@pytest.mark.parametrize("scope", [RUN, "shared"])
def test_results_that_travelled_as_blobs_are_in_the_report_that_the_component_gets(scope: str) -> None:
    text = b'{"outcome":"success","result":1}'

    async def main() -> None:
        blobs = BlobStore.open("memory://")
        await blobs.put(text, scope=scope)
        async with scripted(blobs=blobs) as (_, backend, executor):
            executor.call()
            call = backend.executed[0]
            for asking in (call.start_run(host_pb2.StartRun(**FLOW)), call.get_run(SUB_RUN, wait=True)):
                asked = task(asking)
                await settle_down()
                payloads = (pb.Payload(blob=blob_id(text)), pb.Payload(json=b"2"), pb.Payload())
                executor.answer(executor.callbacks[-1], report=report(*payloads))
                results = [item.flow_result for item in (await asked).items]
                assert [result.json for result in results] == [text, b"2", b""]
                assert [result.blob for result in results] == [""] * 3

    run_async(main)


def test_a_result_that_the_blob_store_has_lost_is_an_error_of_the_request() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            executor.call()
            asked = task(backend.executed[0].get_run(SUB_RUN, wait=True))
            executor.answer((await executor.asked())[0], report=report(pb.Payload(blob=blob_id(b"gone"))))
            assert (await error_from(asked)).reason == "BLOB_NOT_FOUND"

    run_async(main)


def test_a_report_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "REPORT_BYTES_MAX", 10)

    async def main() -> None:
        blobs = BlobStore.open("memory://")
        blob = await blobs.put(b'"123456"', scope=RUN)
        async with scripted(blobs=blobs) as (_, backend, executor):
            executor.call()
            asked = task(backend.executed[0].get_run(SUB_RUN, wait=True))
            executor.answer((await executor.asked())[0], report=report(*[pb.Payload(blob=blob)] * 2))
            assert (await error_from(asked)).reason == "REPORT_TOO_LARGE"

    run_async(main)


def test_an_error_of_the_owner_becomes_one_of_the_request() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            executor.call()
            call = backend.executed[0]
            missing, wrong, odd = task(call.get_run("x", wait=True)), task(call.get_flow("f")), task(call.get_flow("g"))
            callbacks = await executor.asked(3)
            error: dict[str, Any] = {"reason": "RUN_NOT_FOUND", "message": "no such run", "not_found": True}
            executor.answer(callbacks[0], error=host_pb2.CallbackError(**error))
            executor.answer(callbacks[1], error=host_pb2.CallbackError(reason="FLOW_INVALID", message="bad"))
            executor.answer(callbacks[2], report=report())
            first, second, third = await error_from(missing), await error_from(wrong), await error_from(odd)
            assert (type(first), first.reason, first.message) == (NotFound, "RUN_NOT_FOUND", "no such run")
            assert (type(second), second.reason) == (Invalid, "FLOW_INVALID")
            assert (type(third), third.reason) == (Unavailable, "REPLY_UNUSABLE")

    run_async(main)


def test_a_second_answer_is_ignored_and_so_is_one_to_nothing() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            executor.call()
            asked = task(backend.executed[0].get_flow("f"))
            callback = (await executor.asked())[0]
            executor.send(
                replies=[
                    host_pb2.CallbackReply(callback_id=callback.callback_id, flow_json=b"1"),
                    host_pb2.CallbackReply(callback_id=callback.callback_id, flow_json=b"2"),
                    host_pb2.CallbackReply(callback_id=77, flow_json=b"3"),
                ]
            )
            assert await asked == b"1"

    run_async(main)


# --- the owner changes ----------------------------------------------------------------------------------------------


def test_open_call_backs_move_to_whoever_joins_the_call_and_are_answered_once() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, first):
            first.call("other")
            first.call()
            call = backend.executed[1]
            asked = task(call.start_run(host_pb2.StartRun(wait=True, **FLOW)))
            old = (await first.asked())[0]
            second = ExecutorEnd(host, epoch=2)
            joined = second.call()
            new = (await second.asked())[0]
            assert new.call_id == joined
            assert new.start_run == old.start_run, "the same key: the new owner finds the same sub-run"
            first.answer(old, report=host_pb2.RunReport(run_id="stale"))
            await settle_down()
            assert not asked.done()
            second.answer(new, report=report())
            assert (await asked).run_id == SUB_RUN
            assert first.stream._callbacks == {}
            assert second.stream._callbacks == {}

    run_async(main)


def test_what_is_asked_while_no_owner_listens_reaches_the_next_one() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, first):
            first.call()
            first.stream.close()
            asked = task(backend.executed[0].get_flow("f"))
            await settle_down()
            assert first.frames == []
            second = ExecutorEnd(host, epoch=2)
            second.call()
            second.answer((await second.asked())[0], flow_json=b"{}")
            assert await asked == b"{}"
            assert first.stream._callbacks == {}

    run_async(main)


def test_an_executor_that_adopts_its_run_anew_on_the_same_stream_is_asked_again() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            executor.call()
            asked = task(backend.executed[0].get_flow("f"))
            await executor.asked()
            executor.epoch = 2
            again = executor.call()
            callback = (await executor.asked(2))[1]
            assert callback.call_id == again
            executor.answer(callback, flow_json=b"{}")
            assert await asked == b"{}"
            assert executor.stream._callbacks == {}

    run_async(main)


def test_a_component_does_not_wait_for_ever_for_an_owner_that_never_comes() -> None:
    async def main() -> None:
        async with scripted(held_s_max=0.05) as (host, backend, executor):
            executor.call()
            call = backend.executed[0]
            before = task(call.get_flow("f"))
            await executor.asked()
            executor.stream.close()
            during = task(call.get_flow("g"))
            for asked in (before, during, task(error_after(before, call.get_flow("h")))):
                error = await error_from(asked)
                assert isinstance(error, Unavailable)
                assert error.reason == "RUN_WITHOUT_OWNER"
            assert host.calls_in_flight == 1, "the call itself goes on"
            assert host._streams == set()
            second = ExecutorEnd(host, epoch=2)
            joined = second.call()
            call.succeed(b"1")
            assert (await second.result(joined)).result.json == b"1"

    run_async(main)


async def error_after(other: asyncio.Task[Any], asking: Coroutine[Any, Any, Any]) -> Any:
    await asyncio.wait([other])
    return await asking


# --- the call ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["succeeds", "is cancelled", "is superseded", "expires", "host is closed"])
def test_the_call_backs_of_a_call_end_with_it(end: str) -> None:
    async def main() -> None:
        async with scripted() as (host, backend, executor):
            number = executor.call(timeout_ms=20 if end == "expires" else 0)
            call = backend.executed[0]
            asked = [task(call.get_flow("f")), task(call.start_run(host_pb2.StartRun(**FLOW)))]
            callbacks = await executor.asked(2)
            if end == "succeeds":
                call.succeed(b"1")
            elif end == "is cancelled":
                executor.cancel(number)
            elif end == "is superseded":
                executor.call(attempt=2)
            elif end == "host is closed":
                await host.close()
            for each in asked:
                error = await error_from(each)
                assert isinstance(error, FailedPrecondition)
                assert error.reason == "CALL_ENDED"
            executor.answer(callbacks[0], flow_json=b"{}")
            assert executor.stream._callbacks == {}
            assert call.callbacks == ()  # type: ignore[attr-defined]  # of the host's own class
            assert (await error_from(call.get_flow("g"))).reason == "CALL_ENDED"

    run_async(main)


def test_a_backend_that_stops_waiting_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            executor.call()
            call = backend.executed[0]
            asked = task(call.get_flow("f"))
            callback = (await executor.asked())[0]
            asked.cancel()
            await wait_until_async(asked.done, "it has stopped waiting")
            executor.answer(callback, flow_json=b"{}")
            assert executor.stream._callbacks == {}
            assert call.callbacks == ()  # type: ignore[attr-defined]  # of the host's own class

    run_async(main)


def test_a_call_cancelled_together_with_the_task_that_asks_complains_to_nobody() -> None:
    async def main() -> None:
        async with scripted() as (_, backend, executor):
            number = executor.call()
            asked = task(backend.executed[0].get_flow("f"))
            await executor.asked()

            def stop_asking(call: HostCall) -> None:
                asked.cancel()

            backend.on_cancel = stop_asking
            executor.cancel(number)
            await wait_until_async(asked.done, "it has stopped waiting")
            assert executor.stream._callbacks == {}

    run_async(main)
