"""Disputes about the owner of a partition: the store decides, and no stranger shuts an owner out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from support import wait_until_async
from support.scripted_host import RUN, ExecutorEnd, error_of, run_async, scripted

from stepflow.errors import Unavailable
from stepflow.mesh.v1 import host_pb2

if TYPE_CHECKING:
    from component_host.disputes import IsOwner


def judged_by(owners: dict[str, int]) -> IsOwner:
    """Return a judge for whom each executor has one assignment, of this epoch."""

    async def is_owner(executor_id: str, _run_id: str, _partition: int, epoch: int, /) -> bool:
        await asyncio.sleep(0)
        return owners.get(executor_id) == epoch

    return is_owner


def test_an_epoch_that_no_owner_has_does_not_shut_the_owner_out() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, _):
            host.disputes.is_owner = judged_by({"owner": 5})
            owner = ExecutorEnd(host, epoch=5, executor_id="owner")
            first = owner.call("a")
            stranger = ExecutorEnd(host, epoch=2**62, executor_id="stranger")

            # 1. Its questions are answered in order, and its calls are executed.
            await stranger.attach()
            owner.send(attaches=[host_pb2.Attach(runs=[host_pb2.AttachRun(run_id=RUN, epoch=5)])])
            owner.send(attaches=[host_pb2.Attach(runs=[host_pb2.AttachRun(run_id="other", epoch=5)])])
            await wait_until_async(lambda: len(owner.attached) == 2, "both questions are answered")
            assert [list(answer.run_ids) for answer in owner.attached] == [[RUN], ["other"]]
            assert [call.key for call in owner.attached[0].calls] == [f"{RUN}/0/a"]

            await stranger.attach()
            owner.call("b", component="echo")
            await wait_until_async(lambda: len(owner.results) == 1, "the call is executed")
            assert owner.results[0].result.json == b"{}"

            # 2. A call in flight is joined, not repeated.
            await stranger.attach()
            owner.call("a")
            await wait_until_async(lambda: owner.last_call_id in owner.stream.calls, "the call is joined")
            assert first not in owner.stream.calls
            assert backend.attempts == [("a", 1), ("b", 1)]

    run_async(main)


def test_a_former_owner_is_refused_after_a_look_at_the_store() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, _):
            owners = {"new": 6}
            host.disputes.is_owner = judged_by(owners)
            old = ExecutorEnd(host, epoch=5, executor_id="old")
            old.call("a")
            await ExecutorEnd(host, epoch=6, executor_id="new").attach()
            assert error_of(await old.result(old.call("b"))) == ("UNREACHABLE", "STALE_EPOCH")
            assert (await old.attach()).calls == []
            assert backend.attempts == [("a", 1)]

    run_async(main)


def test_an_owner_that_comes_during_a_dispute_keeps_the_partition() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, _):
            asked, may_answer = asyncio.Event(), asyncio.Event()

            async def is_owner(_executor_id: str, _run_id: str, _partition: int, epoch: int, /) -> bool:
                asked.set()
                if not may_answer.is_set():
                    await may_answer.wait()
                    return True  # the answer of a moment ago
                return epoch == 9

            host.disputes.is_owner = is_owner
            await ExecutorEnd(host, epoch=8).attach()
            old = ExecutorEnd(host, epoch=5)
            old.call("b")
            await asked.wait()
            await ExecutorEnd(host, epoch=9).attach()
            may_answer.set()
            assert error_of(await old.result(old.last_call_id)) == ("UNREACHABLE", "STALE_EPOCH")
            assert backend.executed == []

    run_async(main)


def test_a_store_that_does_not_answer_is_asked_again() -> None:
    async def main() -> None:
        async with scripted() as (host, backend, _):
            answers: list[bool | Exception] = [Unavailable("STORE_UNAVAILABLE", "nobody answers"), True]

            async def is_owner(*_: object) -> bool:
                answer = answers.pop(0)
                if isinstance(answer, Exception):
                    raise answer
                return answer

            host.disputes.is_owner = is_owner
            await ExecutorEnd(host, epoch=8).attach()
            owner = ExecutorEnd(host, epoch=5)
            owner.call("a", component="echo")
            await wait_until_async(lambda: len(owner.results) == 1, "the call is executed")
            assert backend.attempts == [("a", 1)]

    run_async(main)
