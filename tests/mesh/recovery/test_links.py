"""Executor and host connected by real gRPC on loopback, in one process: streams, credits, and network faults.

`LinkedWorld` is the world of `support.parts` with gRPC between the parts; a `TcpProxy` simulates the network.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_for_value, wait_until_async
from support.parts import RULES, Work, World, echo, gated, kinds, of, step
from support.proxy import TcpProxy

from component_host import service as service_module
from component_host.host import ComponentHost
from component_host.registration import Registration
from component_host.service import HostService
from executor.executor import Executor
from executor.hosts import link
from executor.hosts.link import HostLinks
from stepflow.codec import decode, encode
from stepflow.config import BuiltinPlugin, Config, MockPlugin
from stepflow.errors import FailedPrecondition
from stepflow.mesh.v1 import host_pb2, state_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.routing.table import Rule
from stepflow.rpc import options
from stepflow.rpc.channel import open_channel
from stepflow.rpc.errors import error_of
from stepflow.rpc.server import RpcServer
from stepflow.store import delete, keys, put, range_all
from stepflow.store.blobs import BlobStore
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence

MOCK = MockPlugin(components={})
PLUGINS = {"work": MOCK, "absent": MOCK, "builtin": BuiltinPlugin()}


def config(routes: Mapping[str, Sequence[Rule]] = RULES) -> Config:
    return Config(
        working_directory=Path("/"), plugins=PLUGINS, routes={name: tuple(all_) for name, all_ in routes.items()}
    )


@dataclass
class LinkedHost:
    host: ComponentHost
    work: Work
    server: RpcServer
    service: HostService
    registration: Registration
    proxy: TcpProxy

    async def close(self) -> None:
        await self.registration.close()
        await self.host.close()
        await self.server.stop()
        await wait_until_async(lambda: not self.proxy.open_connections, "the last connection is closed")
        await self.proxy.__aexit__(None, None, None)


class LinkedWorld(World):
    """Hosts behind gRPC, each with a proxy before it, and executors that find them in the store."""

    def __init__(self, store: SqliteStore, blobs: BlobStore) -> None:
        super().__init__(store, blobs)
        self.linked: list[LinkedHost] = []
        self.links: list[HostLinks] = []

    async def serve_host(self, *, capacity: int = 1_000, listen: str = "127.0.0.1:0") -> LinkedHost:
        work = Work()
        host = ComponentHost(f"host-{len(self.linked)}", {"work": work}, self.blobs)
        await host.start()
        server = RpcServer(link=True)
        service = HostService(host, capacity=capacity)
        service.add_to(server)
        address = await server.start(listen)
        proxy = await TcpProxy(int(address.rpartition(":")[2])).__aenter__()
        registration = Registration(self.store, host, config(), address=proxy.endpoint, capacity=capacity)
        await registration.start()
        linked = LinkedHost(host, work, server, service, registration, proxy)
        self.linked.append(linked)
        self.hosts.append((host, work))
        return linked

    async def add_linked_executor(self) -> Executor:
        executor = Executor(self.store, self.blobs, rules={}, builtins={}, queue_timeout_s=30.0)
        links = HostLinks(self.store, executor)
        await links.start()
        await executor.start()
        links.connect()
        self.executors.append(executor)
        self.links.append(links)
        await self.seen(executor)
        return executor

    async def close(self) -> None:
        for executor in self.executors:
            await executor.close()
        for executor_links in self.links:
            await executor_links.close()
        for linked in self.linked:
            await linked.close()
        for plane in self.planes:
            await plane.close()


@asynccontextmanager
async def world(*, hosts: int = 1, executors: int = 1, capacity: int = 1_000) -> AsyncIterator[LinkedWorld]:
    store = await SqliteStore.open(":memory:")
    made = LinkedWorld(store, BlobStore.open("memory://"))
    try:
        for _ in range(hosts):
            await made.serve_host(capacity=capacity)
        await made.add_plane()
        for _ in range(executors):
            await made.add_linked_executor()
        yield made
    finally:
        await made.close()
        await store.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def fan(count: int, component: str = "/kit/gated") -> list[dict[str, Any]]:
    """Steps side by side, and one that gathers their results."""
    steps = [step(f"s{n}", component, n) for n in range(count)]
    return [*steps, echo("end", [of(each["id"]) for each in steps])]


async def in_flight(work: Work, count: int = 1) -> None:
    await wait_until_async(lambda: len(work.in_flight) >= count, f"{count} calls are in flight")


# --- the stream -------------------------------------------------------------------------------------------------------


def test_a_run_goes_over_the_stream_and_back() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            run_id = await mesh.submit(echo("a", 7), echo("b", of("a")))
            assert (await mesh.ended(run_id)).status == "completed"
            assert await mesh.results(run_id) == [{"outcome": "success", "result": 7}]

    run(scenario())


def test_calls_go_on_when_the_stream_is_cut_and_are_joined_when_it_is_back() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            (host,) = mesh.linked
            run_id = await mesh.submit(*fan(5))
            await in_flight(host.work, 5)
            accepted = host.proxy.accepted
            host.proxy.cut()
            await wait_until_async(lambda: host.proxy.accepted > accepted, "the executor connects again")
            host.work.release_all()
            assert (await mesh.ended(run_id)).status == "completed"
            assert [attempt for _, attempt in host.work.executed] == [1] * 6

    run(scenario())


def test_a_result_that_came_while_there_was_no_stream_is_delivered_when_it_is_back() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            (host,) = mesh.linked
            run_id = await mesh.submit(gated("a", 1), echo("b", of("a")))
            await in_flight(host.work)
            host.proxy.refuse()  # accepts and resets: the address is alive, so the calls are not given up
            await wait_until_async(
                lambda: not host.host.held_results and not host.service._connections, "the stream is gone"
            )
            host.work.release_all()
            assert not (await mesh.control.get_run(run_id)).terminal
            host.proxy.refuse(refusing=False)
            assert (await mesh.ended(run_id)).status == "completed"
            assert host.work.executions("a") == [1]

    run(scenario())


def test_calls_are_given_up_when_the_address_refuses_connections() -> None:
    async def scenario() -> None:
        async with world(hosts=2, capacity=10) as mesh:
            run_id = await mesh.submit(gated("a", 1))
            await wait_until_async(lambda: any(host.work.in_flight for host in mesh.linked), "the call is in flight")
            first, second = sorted(mesh.linked, key=lambda host: not host.work.in_flight)
            second.work.release_all()
            first.proxy._server.close()  # type: ignore[union-attr]  # it serves
            first.proxy.cut()
            assert (await mesh.ended(run_id)).status == "completed"
            assert first.work.executions("a") == [1]
            assert second.work.executions("a") == [2]

    run(scenario())


def test_calls_are_given_up_when_the_address_is_answered_by_another_host() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            (first,) = mesh.linked
            run_id = await mesh.submit(gated("a", 1))
            await in_flight(first.work)
            second = await mesh.serve_host()
            second.work.release_all()
            first.proxy._target_port = int(second.server.address.rpartition(":")[2])
            first.proxy.cut()
            assert (await mesh.ended(run_id)).status == "completed"
            assert second.work.executions("a") == [2]

    run(scenario())


def test_calls_are_given_up_when_the_session_of_the_host_is_gone() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            (first,) = mesh.linked
            run_id = await mesh.submit(gated("a", 1))
            await in_flight(first.work)
            second = await mesh.serve_host()
            second.work.release_all()
            await first.registration.close()
            assert (await mesh.ended(run_id)).status == "completed"
            assert second.work.executions("a") == [2]

    run(scenario())


def test_calls_are_given_up_when_the_host_is_out_of_reach_for_the_length_of_a_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "OUT_OF_REACH_S_MAX", 0.2)

    async def scenario() -> None:
        async with world() as mesh:
            (first,) = mesh.linked
            run_id = await mesh.submit(gated("a", 1))
            await in_flight(first.work)
            second = await mesh.serve_host()
            second.work.release_all()
            first.proxy.refuse()  # accepts and resets: the address is alive
            assert (await mesh.ended(run_id)).status == "completed"
            assert second.work.executions("a") == [2]

    run(scenario())


def test_after_a_lost_acknowledgement_the_next_attempt_is_really_executed() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            (host,) = mesh.linked
            may_fail = asyncio.Event()

            async def ask(call: Any) -> Any:
                if call.request.attempt == 1:
                    await may_fail.wait()
                    raise RuntimeError("the first time")
                return "the second time"

            host.work.asks = ask
            run_id = await mesh.submit(step("a", "/kit/ask", onError={"action": "retry"}))
            await wait_until_async(lambda: host.work.executed, "attempt 1 is executed")
            for connection in host.proxy._connections:
                connection.up.open.clear()  # what the executor sends from here on is lost
            may_fail.set()
            journal = partial(mesh.journal, run_id)
            await wait_for_value(journal, "it has failed", lambda entries: "attempt_failed" in kinds(entries))
            assert host.host.calls_held == 1, "the host keeps the result of attempt 1"
            (peer,) = mesh.executors[0].hosts._peers.values()
            await wait_until_async(lambda: peer._acks, "the acknowledgement is on its way")
            peer._acks.clear()  # nor is it said again
            host.proxy.cut()
            assert (await mesh.ended(run_id)).status == "completed"
            assert await mesh.results(run_id) == [{"outcome": "success", "result": "the second time"}]
            assert host.work.executions("a") == [1, 2]

    run(scenario())


def test_each_component_gets_the_answer_to_its_own_question_over_a_cut_stream() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            (host,) = mesh.linked

            async def ask(call: Any) -> Any:
                value = decode(call.input)
                request = host_pb2.StartRun(wait=True)
                request.flow.json = encode({"steps": [gated("inner", value)], "output": of("inner")})
                request.inputs.json = b"[null]"
                report = await call.start_run(request)
                return decode(report.items[0].flow_result.json)["result"]

            host.work.asks = ask
            run_id = await mesh.submit(*fan(3, "/kit/ask"))
            await in_flight(host.work, 3)
            (stream,) = [connection.stream for connection in host.service._connections.values()]
            asked = set(stream._callbacks)
            host.proxy.cut()
            await wait_until_async(
                lambda: any(
                    len(each.stream._callbacks) == 3
                    for each in host.service._connections.values()
                    if each.stream is not stream
                ),
                "the questions are asked again",
            )
            (again,) = [each.stream for each in host.service._connections.values() if each.stream is not stream]
            assert not asked & set(again._callbacks)
            host.work.release_all()
            await mesh.ended(run_id)
            assert await mesh.results(run_id) == [{"outcome": "success", "result": [0, 1, 2]}]

    run(scenario())


def test_a_component_that_waits_for_a_flow_gets_its_answer_over_a_cut_stream() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            (host,) = mesh.linked
            flow = {"steps": [gated("inner", 3)], "output": of("inner")}

            async def ask(call: Any) -> Any:
                request = host_pb2.StartRun(wait=True)
                request.flow.json = encode(flow)
                request.inputs.json = b"[null]"
                report = await call.start_run(request)
                return len(report.items)

            host.work.asks = ask
            run_id = await mesh.submit(step("a", "/kit/ask"))
            await in_flight(host.work)
            accepted = host.proxy.accepted
            host.proxy.cut()
            await wait_until_async(lambda: host.proxy.accepted > accepted, "the executor connects again")
            host.work.release_all()
            assert (await mesh.ended(run_id)).status == "completed"
            assert await mesh.results(run_id) == [{"outcome": "success", "result": 1}]
            assert sorted(attempt for _, attempt in host.work.executed) == [1, 1]

    run(scenario())


def test_what_is_larger_than_a_frame_goes_in_several() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            text = "x" * 30_000
            run_id = await mesh.submit(echo("a", {"$input": "$"}), inputs=[text] * 200, concurrency_max=200)
            assert (await mesh.ended(run_id)).status == "completed"
            results = await mesh.results(run_id)
            assert [result["result"] for result in results] == [text] * 200

    run(scenario())


def test_a_stream_that_does_not_begin_with_a_hello_is_refused() -> None:
    async def scenario() -> None:
        import grpc

        async with world(executors=0) as mesh:
            channel = open_channel(mesh.linked[0].server.address)
            connect: Any = channel.stream_stream(
                "/stepflow.mesh.v1.ComponentHostService/Connect",
                request_serializer=host_pb2.ExecutorFrame.SerializeToString,
                response_deserializer=host_pb2.HostFrame.FromString,
            )
            stream = connect()
            await stream.write(host_pb2.ExecutorFrame(acks=[host_pb2.Ack(key="k", attempt=1)]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            error = error_of(caught.value)
            assert isinstance(error, FailedPrecondition)
            assert error.reason == "STREAM_INVALID"
            await channel.close()

    run(scenario())


def test_a_host_gives_a_silent_connection_up_sooner_than_executors_give_up_the_calls_in_it() -> None:
    assert options.LINK_PING_MS + options.LINK_PING_TIMEOUT_MS < 1_000 * link.OUT_OF_REACH_S_MAX


def test_a_host_gives_up_a_connection_that_has_fallen_silent_and_what_was_on_its_way_there() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            (host,) = mesh.linked
            await mesh.ended(await mesh.submit(echo("before", 1)))
            host.proxy.freeze()
            run_id = await mesh.submit(echo("a", 7))
            before = next(iter(host.service._connections.values()))
            await wait_until_async(lambda: before.stream.closed, "the host has given up the connection")
            host.proxy.speak()
            assert (await mesh.ended(run_id)).status == "completed"
            assert host.work.executions("a") == [1]

    run(scenario())


def test_a_call_on_its_way_when_the_host_lost_its_session_is_never_begun() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            (host,) = mesh.linked
            await mesh.ended(await mesh.submit(echo("before", 1)))
            host.proxy.freeze()
            run_id = await mesh.submit(echo("a", 7))
            executor = mesh.executors[0]
            await wait_until_async(lambda: executor.hosts._calls, "the call is sent, and does not arrive")
            session = await mesh.store.get(keys.session_host(host.host.id))
            assert session is not None
            await mesh.store.lease_revoke(session.lease)
            assert (await mesh.ended(run_id)).status == "completed"
            host.proxy.speak()
            await wait_until_async(lambda: not host.proxy.holds_back, "what was late has arrived")
            await mesh.ended(await mesh.submit(echo("after", 1)))
            assert host.work.executions("a") == [2]

    run(scenario())


def test_a_stranger_that_claims_a_run_with_an_epoch_of_no_owner_does_not_fail_the_run() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            (host,) = mesh.linked
            run_id = await mesh.submit(gated("a", 1), echo("b", of("a")))
            await in_flight(host.work)
            async with open_channel(host.server.address) as channel:
                connect: Any = channel.stream_stream(
                    link.CONNECT,
                    request_serializer=host_pb2.ExecutorFrame.SerializeToString,
                    response_deserializer=host_pb2.HostFrame.FromString,
                )
                stream = connect()
                asked = host_pb2.AttachRun(run_id=run_id, epoch=2**62)
                await stream.write(host_pb2.ExecutorFrame(hello=host_pb2.Hello(executor_id="stranger")))
                await stream.write(host_pb2.ExecutorFrame(attaches=[host_pb2.Attach(runs=[asked])]))
                while not (await stream.read()).attached:
                    pass
                host.work.release_all()
                assert (await mesh.ended(run_id)).status == "completed"
                stream.cancel()
            assert host.work.executed == [(f"{run_id}/0/a", 1), (f"{run_id}/0/b", 1)]

    run(scenario())


# --- credits ----------------------------------------------------------------------------------------------------------


def test_what_has_no_credit_waits_in_the_executor() -> None:
    async def scenario() -> None:
        async with world(capacity=4) as mesh:
            (host,) = mesh.linked
            run_id = await mesh.submit(*fan(12), concurrency_max=12)
            await in_flight(host.work, 4)
            assert host.host.calls_in_flight == 4
            for done in range(1, 13):
                host.work.release(1)
                await in_flight(host.work, min(4, 12 - done))
            assert (await mesh.ended(run_id)).status == "completed"
            assert host.work.in_flight_max == 4
            assert [key.rpartition("/")[2] for key, _ in host.work.executed] == [*(f"s{n}" for n in range(12)), "end"]

    run(scenario())


def test_a_call_of_a_sub_run_is_taken_although_the_host_is_full_of_those_that_wait_for_it() -> None:
    async def scenario() -> None:
        async with world(capacity=1) as mesh:
            (host,) = mesh.linked
            flow = {"steps": [echo("inner", 3)], "output": of("inner")}

            async def ask(call: Any) -> Any:
                request = host_pb2.StartRun(wait=True)
                request.flow.json = encode(flow)
                request.inputs.json = b"[null]"
                return len((await call.start_run(request)).items)

            host.work.asks = ask
            run_id = await mesh.submit(*fan(3, "/kit/ask"))
            assert (await mesh.ended(run_id)).status == "completed"
            assert await mesh.results(run_id) == [{"outcome": "success", "result": [1, 1, 1]}]

    run(scenario())


def test_calls_go_to_the_host_with_the_most_credit() -> None:
    async def scenario() -> None:
        async with world(hosts=2, capacity=4) as mesh:
            first, second = mesh.linked
            run_id = await mesh.submit(*fan(8), concurrency_max=8)
            await in_flight(first.work, 4)
            await in_flight(second.work, 4)
            for host in mesh.linked:
                host.work.release_all()
            assert (await mesh.ended(run_id)).status == "completed"

    run(scenario())


def test_two_executors_share_a_host_and_neither_starves() -> None:
    async def scenario() -> None:
        async with world(executors=2, capacity=1) as mesh:
            (host,) = mesh.linked
            host.work.release_all()
            run_ids = [await mesh.submit(*fan(5)) for _ in range(6)]
            for run_id in run_ids:
                assert (await mesh.ended(run_id)).status == "completed"
            assert all(attempt == 1 for _, attempt in host.work.executed)

    run(scenario())


def test_a_draining_host_gets_no_new_calls_and_is_drained_when_the_last_result_is_acknowledged() -> None:
    async def scenario() -> None:
        async with world(hosts=1) as mesh:
            (first,) = mesh.linked
            run_id = await mesh.submit(gated("a", 1), echo("b", of("a")))
            await in_flight(first.work)
            second = await mesh.serve_host()
            first.registration.set_draining(True)
            drained = asyncio.create_task(first.service.drain(20.0))
            peers = mesh.executors[0].hosts._peers
            await wait_until_async(lambda: peers[first.host.id].draining, "the executor knows")
            assert not drained.done()
            first.work.release_all()
            assert (await mesh.ended(run_id)).status == "completed"
            assert await drained
            assert second.work.executions("b") == [1]
            assert first.work.executions("b") == []

    run(scenario())


def test_a_draining_host_does_not_wait_for_results_that_nobody_comes_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "DRAIN_HELD_S", 0.1)

    async def scenario() -> None:
        async with world() as mesh:
            (host,) = mesh.linked
            await mesh.submit(gated("a", 1))
            await in_flight(host.work)
            await mesh.links[0].close()
            host.work.release_all()
            await wait_until_async(lambda: len(host.host.held_results) == 1, "the result is held")
            assert await host.service.drain(3_600.0)
            assert len(host.host.held_results) == 1

    run(scenario())


# --- registration -----------------------------------------------------------------------------------------------------


def other_rules() -> Config:
    return config({**RULES, "/kit": (Rule("work", deny=frozenset({"/echo"})),)})


async def registration(mesh: LinkedWorld, host_id: str, rules: Config, **options: Any) -> Registration:
    host = ComponentHost(host_id, {}, mesh.blobs)
    return Registration(mesh.store, host, rules, address="127.0.0.1:1", capacity=1, **options)


def test_other_rules_are_refused_while_a_live_host_has_these_and_taken_when_it_is_gone() -> None:
    async def scenario() -> None:
        async with world(executors=0) as mesh:
            other = await registration(mesh, "other", other_rules())
            with pytest.raises(FailedPrecondition) as caught:
                await other.start()
            assert caught.value.reason == "ROUTES_CLAIMED"
            assert "host-0" in caught.value.message
            assert "other" in caught.value.message
            await other.close()
            assert await mesh.keys(keys.session_host("other")) == []
            await mesh.linked[0].registration.close()
            other = await registration(mesh, "other", other_rules())
            await other.start()
            await other.close()

    run(scenario())


def test_rules_are_replaced_when_that_is_asked_for_and_executors_follow() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            other = await registration(mesh, "other", other_rules(), replace_routes=True)
            await other.start()
            rules = mesh.executors[0].hosts.routes
            await wait_until_async(lambda: rules.rules["/kit"][0].deny is not None, "the executor has the new rules")
            run_id = await mesh.submit(echo("a", 1))
            assert (await mesh.ended(run_id)).status == "failed"
            await other.close()

    run(scenario())


def test_a_host_whose_session_is_deleted_registers_again_and_serves_on() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            (host,) = mesh.linked
            key = keys.session_host(host.host.id)
            before = await mesh.store.get(key)
            assert before is not None
            await mesh.store.lease_revoke(before.lease)
            host.registration._lost()  # what the next keep-alive would say
            run_id = await mesh.submit(echo("a", 1))
            assert (await mesh.ended(run_id)).status == "completed"
            after = await mesh.store.get(key)
            assert after is not None
            assert after.create_revision > before.create_revision

    run(scenario())


def test_the_session_says_what_the_host_offers() -> None:
    async def scenario() -> None:
        async with world(executors=0) as mesh:
            found = await mesh.store.get(keys.session_host("host-0"))
            assert found is not None
            session = state_pb2.HostSession.FromString(found.value)
            (plugin,) = session.plugins
            assert (plugin.plugin, plugin.type, plugin.state) == ("work", "mock", state_pb2.PluginListing.STATE_READY)
            assert "/echo" in [component.path for component in plugin.components]
            assert set(session.route_hashes) == set(RULES)

    run(scenario())


def test_a_session_that_is_deleted_and_an_executor_that_comes_later_find_each_other() -> None:
    async def scenario() -> None:
        async with world(executors=0, hosts=0) as mesh:
            executor = await mesh.add_linked_executor()
            host = await mesh.serve_host()
            await delete(mesh.store, keys.session_host(host.host.id))
            await wait_until_async(lambda: host.host.id not in executor.hosts._peers, "the host is gone")
            host.registration._lost()
            run_id = await mesh.submit(echo("a", 1))
            assert (await mesh.ended(run_id)).status == "completed"

    run(scenario())


def test_the_failure_of_a_lost_call_names_the_host() -> None:
    async def scenario() -> None:
        async with world() as mesh:
            (host,) = mesh.linked
            run_id = await mesh.submit(gated("a", 1), transport_retries_max=0)
            await in_flight(host.work)
            await host.registration.close()
            assert (await mesh.ended(run_id)).status == "failed"
            entries = await mesh.journal(run_id)
            (failed,) = [entry.step_completed for entry in entries if entry.HasField("step_completed")]
            assert failed.failure.code == pb.FAILURE_CODE_UNREACHABLE
            assert host.host.id in failed.failure.message

    run(scenario())


def test_a_host_whose_session_was_deleted_or_set_back_writes_it_again() -> None:
    async def main() -> None:
        async with world() as made:
            (host,) = made.linked
            key = keys.session_host(host.host.id)
            written = await made.store.get(key)
            assert written is not None

            await put(made.store, key, b"", lease=written.lease)
            await value_becomes(made, key, written.value)
            await delete(made.store, key)
            await value_becomes(made, key, written.value)
            run_id = await made.submit(echo("a"))
            assert (await made.ended(run_id)).status == "completed"

    run(main())


async def value_becomes(made: LinkedWorld, key: str, value: bytes) -> None:
    watch = made.store.watch(key)
    async with asyncio.timeout(10):
        while True:
            found = await made.store.get(key)
            if found is not None and found.value == value:
                break
            await anext(watch)
    watch.close()


def test_rules_that_a_wiped_store_lacks_are_kept_until_hosts_register_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with world() as made:
            (links,) = made.links
            links._routes_listed([])
            run_id = await made.submit(echo("a"))
            assert (await made.ended(run_id)).status == "completed"

            monkeypatch.setattr(link, "ROUTES_KEPT_S", 0.0)
            links._routes_listed([])
            run_id = await made.submit(echo("a"))
            assert (await made.ended(run_id)).status == "failed"

    run(main())


def test_changes_of_a_host_are_followed_in_a_restored_store_with_lower_revisions() -> None:
    async def main() -> None:
        async with world() as made:
            (host,) = made.linked
            (links,) = made.links
            (host_link,) = links._links.values()
            host_link.modified = 10_000
            links._sessions_listed([item async for item in range_all(made.store, keys.HOST_SESSIONS)])
            host.registration.set_draining(True)
            await wait_until_async(lambda: host_link.peer.draining, "it is seen to drain")

    run(main())
