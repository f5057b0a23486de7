"""Parts of a service that must not die: watches, registrations, links, and real services short of descriptors."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from support import free_port, wait_until, wait_until_async
from support.etcd import FAST, running_etcd
from support.health import NOT_SERVING, SERVING, health_of
from support.mesh import processes
from support.parts import World, echo

from control_plane.cluster import Cluster
from executor import executor as executor_module
from executor.executor import Executor
from executor.hosts.link import HostLinks
from executor.session import Session
from stepflow.rpc.health import LIVENESS, READINESS
from stepflow.store import keys, put
from stepflow.store.blobs import BlobStore
from stepflow.store.follow import follow
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from stepflow.store import KeyValue, StoreEvent

DESCRIPTORS = 64
SERVICES = ("control_plane", "executor", "component_host")


def run(scenario: Callable[[SqliteStore], Coroutine[Any, Any, None]]) -> None:
    async def opened() -> None:
        store = await SqliteStore.open(":memory:")
        try:
            async with asyncio.timeout(60):
                await scenario(store)
        finally:
            await store.close()

    asyncio.run(opened())


# --- watches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["listed", "changed"])
def test_a_follower_with_a_defect_lists_again_and_misses_nothing(place: str) -> None:
    async def scenario(store: SqliteStore) -> None:
        known: set[str] = set()
        defects, listings = [KeyError("a defect")], list[int]()

        def listed(items: list[KeyValue]) -> None:
            listings.append(len(items))
            if place == "listed" and defects:
                raise defects.pop()
            known.update(item.key for item in items)

        def changed(events: Sequence[StoreEvent]) -> None:
            if defects:
                raise defects.pop()
            known.update(event.kv.key for event in events)

        following = asyncio.create_task(follow(store, "f/", listed=listed, changed=changed))
        await wait_until_async(lambda: bool(listings), "it watches")
        await put(store, "f/1", b"")
        await wait_until_async(lambda: "f/1" in known, "the key is known")
        await put(store, "f/2", b"")
        await wait_until_async(lambda: "f/2" in known, "the watch goes on")
        assert not defects
        assert not following.done()
        following.cancel()

    run(scenario)


def test_keys_that_cannot_be_read_harm_only_themselves() -> None:
    """As a later version may write them."""

    async def scenario(store: SqliteStore) -> None:
        await put(store, f"{keys.ASSIGNED}later/form", b"")
        await put(store, f"{keys.INBOX}later", b"")
        await put(store, f"{keys.HOST_SESSIONS}later", b"\xff")
        await put(store, f"{keys.EXECUTOR_SESSIONS}later", b"\xff")
        links = HostLinks(store, Executor(store, BlobStore.open("memory://"), rules={}, builtins={}))
        async with World.open(store=store) as world:
            async with asyncio.timeout(5):
                await links.start()
            run_id = await world.submit(echo("a", 1))
            assert (await world.ended(run_id)).status == "completed"
            assert (links.ended(), world.control.ended(), world.executors[0].vitals().ended) == ([], [], [])
            await links.close()

    run(scenario)


def test_a_replica_knows_that_one_of_its_watches_has_ended() -> None:
    async def scenario(store: SqliteStore) -> None:
        cluster = Cluster(store, lambda: None)
        await cluster.start()
        world = World(store, BlobStore.open("memory://"))
        control = await world.add_plane()
        assert control.ended() == []
        control.cluster.tasks[0].cancel()
        await wait_until_async(lambda: control.ended() == ["follow the cluster"], "it is known")
        await world.close()
        await cluster.close()

    run(scenario)


# --- registration -----------------------------------------------------------------------------------------------------


def test_an_executor_that_cannot_register_for_any_reason_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "REGISTER_RETRY_S", 0.01)
    errors: list[Exception] = [OSError(errno.EMFILE, "Too many open files"), RuntimeError("can't start new thread")]
    open_session = Session.open

    async def fail_at_first(*args: Any, **options: Any) -> Session:
        if errors:
            raise errors.pop()
        return await open_session(*args, **options)

    async def scenario(store: SqliteStore) -> None:
        executor = Executor(store, BlobStore.open("memory://"), rules={}, builtins={})
        await executor.start()
        first = executor.id
        assert executor.vitals() == ("", [])
        session = await store.get(keys.session_executor(first))
        assert session is not None
        with monkeypatch.context() as patch:
            patch.setattr(Session, "open", fail_at_first)
            await store.lease_revoke(session.lease)
            await wait_until_async(lambda: not executor.vitals().problem and executor.id != first, "it is back")
        assert errors == []
        assert await store.get(keys.session_executor(executor.id)) is not None
        await executor.close()

    run(scenario)


# --- a real shortage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_short_of_descriptors_says_so_and_works_again_when_it_has_them(service: str, tmp_path: Path) -> None:
    with (
        running_etcd(tmp_path / "etcd", "--unsafe-no-fsync", *FAST) as etcd,
        processes(etcd, tmp_path, f"{uuid4().hex[:8]}/") as mesh,
        ExitStack() as connections,
    ):
        probe = f"127.0.0.1:{free_port()}"
        started = mesh.start(service, "--health-listen", probe)
        host, _, port = started.address.rpartition(":")
        wait_until(lambda: health_of(probe, READINESS) == SERVING, "it is ready")

        # 1. Idle connections take all descriptors, and etcd hangs up: no connection can be made.
        resource.prlimit(started.process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        for _ in range(DESCRIPTORS + 16):
            connections.enter_context(socket.create_connection((host, int(port)), timeout=5))
        etcd.kill()
        wait_until(lambda: "not ready" in started.log, "it knows that it cannot work", 30)
        etcd.start()

        # 2. They go: the service works, without a restart.
        connections.close()
        wait_until(lambda: health_of(probe, READINESS) == SERVING, "it is ready again", 30)
        assert health_of(probe, LIVENESS) == SERVING
        prefix = {"control_plane": "leader", "executor": "sessions/executors/", "component_host": "sessions/hosts/"}

        async def is_registered() -> bool:
            async with mesh.store() as store:
                return bool((await store.range(prefix[service])).items)

        wait_until(lambda: asyncio.run(is_registered()), "it is in the cluster", 30)
        assert "Traceback" not in started.log
        assert "defect" not in started.log
        assert health_of(probe, READINESS) != NOT_SERVING
