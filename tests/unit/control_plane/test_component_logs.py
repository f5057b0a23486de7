"""Log lines from hosts to a control plane: kept lines first, nothing lost before a sync, old hosts ignored."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
from support import wait_until_async

from component_host.log_stream import WAITING_BYTES_MAX, LogStream
from component_host.logged_lines import LineOrigin, LoggedLines
from component_host.logs import HostLogs
from control_plane.component_logs import ComponentLogs
from stepflow.log_lines import LogLine
from stepflow.mesh.v1 import host_pb2, state_pb2
from stepflow.store import keys
from stepflow.store.protocol import put
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from stepflow.log_lines import StepLog

RUN = "01890a5d-ac96-774b-bcce-b302099a8057"
LINE_BYTES = 1_000


def within(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def call(step: str = "ask", run_id: str = RUN) -> Any:
    request = host_pb2.Call(
        plugin="p", root_run_id=run_id, run_id=run_id, step_id=step, item=2, attempt=3, depth=1, step_index=4,
        path="/p/x", secrets_complete=True,
    )  # fmt: skip
    return SimpleNamespace(request=request, queued=False, settled=False, logged=None)


def say(logs: HostLogs, *texts: str, run_id: str = RUN) -> None:
    logs.of("p").add_lines(call(run_id=run_id), [LogLine(1, "info", text) for text in texts])


@asynccontextmanager
async def host(store: SqliteStore, name: str, logs: HostLogs | None, port: int = 0) -> AsyncIterator[int]:
    """Serve the logs of a host; None: a host of an earlier version, without the method."""
    server = grpc.aio.server()
    if logs is not None:

        async def serve(requests: AsyncIterator[host_pb2.FollowLogsRequest], context: Any) -> None:
            await LogStream(logs).run(requests, context)

        method = grpc.stream_stream_rpc_method_handler(
            serve,
            request_deserializer=host_pb2.FollowLogsRequest.FromString,
            response_serializer=None,
        )
        service = "stepflow.mesh.v1.ComponentHostService"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"FollowLogs": method}),))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    session = state_pb2.HostSession(address=f"127.0.0.1:{port}").SerializeToString()
    await put(store, keys.session_host(name), session)
    try:
        yield port
    finally:
        await server.stop(0)


@asynccontextmanager
async def following(store: SqliteStore) -> AsyncIterator[tuple[ComponentLogs, list[StepLog]]]:
    logs = ComponentLogs(store)
    found: list[StepLog] = []
    end = logs.follow(RUN, found.append)
    try:
        yield logs, found
    finally:
        end()
        await logs.close()


def texts(found: list[StepLog]) -> list[str]:
    return [line.text for log in found for line in log.lines]


def test_kept_lines_come_first_and_a_sync_waits_for_all_of_them() -> None:
    async def work() -> None:
        store = await SqliteStore.open(":memory:")
        first, second = HostLogs(), HostLogs()
        say(first, "kept")
        say(first, "of another run", run_id="other")
        async with (
            host(store, "a", first),
            host(store, "b", second),
            host(store, "old", None),
            following(store) as (logs, found),
        ):
            await logs.sync()
            assert texts(found) == ["kept"]
            origin = found[0]
            assert (origin.run_id, origin.item, origin.step_id, origin.step_index) == (RUN, 2, "ask", 4)
            assert (origin.component, origin.depth, origin.attempt) == ("/p/x", 1, 3)

            say(first, "new")
            say(second, "of the second host")
            await logs.sync()
            assert sorted(texts(found)) == ["kept", "new", "of the second host"]
        await store.close()

    within(work())


def test_a_follower_that_has_ended_gets_no_more_lines() -> None:
    async def work() -> None:
        store = await SqliteStore.open(":memory:")
        kept = HostLogs()
        async with host(store, "a", kept):
            logs = ComponentLogs(store)
            found: list[StepLog] = []
            end = logs.follow(RUN, found.append)
            await logs.sync()
            end()
            await logs.sync()
            say(kept, "too late")
            await logs.sync()
            assert found == []
            assert kept._followers == {}
            await logs.close()
        await store.close()

    within(work())


def test_a_stream_that_broke_is_opened_again() -> None:
    async def work() -> None:
        store = await SqliteStore.open(":memory:")
        kept = HostLogs()
        async with following(store) as (_, found):
            async with host(store, "a", kept) as port:
                await wait_until_async(lambda: bool(kept._followers), "the host is followed")
            say(kept, "while it was away")
            async with host(store, "a", kept, port):
                await wait_until_async(lambda: texts(found) == ["while it was away"], "the line has come")
        await store.close()

    within(work())


def test_a_reader_that_is_behind_loses_lines_and_is_told_how_many() -> None:
    """A reader that does not read must cost the host no memory."""

    async def work() -> None:
        written: list[host_pb2.FollowLogsResponse] = []
        reads = asyncio.Event()

        class Context:
            async def write(self, message: bytes) -> None:
                written.append(host_pb2.FollowLogsResponse.FromString(message))
                await reads.wait()

        async def requests() -> AsyncIterator[host_pb2.FollowLogsRequest]:
            await asyncio.Event().wait()
            yield host_pb2.FollowLogsRequest()

        stream = LogStream(HostLogs())
        running = asyncio.create_task(stream.run(requests(), Context()))
        origin = LineOrigin("p", RUN, RUN)
        count = 4 * WAITING_BYTES_MAX // LINE_BYTES
        for _ in range(count):
            stream.send_log(LoggedLines(origin, (LogLine(1, "", "x" * LINE_BYTES),)))
            await asyncio.sleep(0)
        assert stream._queue.waiting_bytes < 2 * WAITING_BYTES_MAX

        reads.set()
        await wait_until_async(lambda: not stream._queue.waiting_bytes, "the reader has read")
        stream.send_log(LoggedLines(origin, (LogLine(1, "", "the last"),)))
        await wait_until_async(lambda: written[-1].logs[-1].lines[-1].text == "the last", "the last line has come")
        told = [log for message in written for log in message.logs]
        assert sum(len(log.lines) for log in told) + sum(log.dropped for log in told) == count + 1
        assert told[-1].dropped > 0
        running.cancel()

    within(work())
