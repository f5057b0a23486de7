"""Leases of a real etcd, kept alive by a thread: a busy event loop keeps its lease, a hanging one loses it."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from support import wait_until_async
from support.etcd import FAST, running_etcd

from stepflow.errors import NotFound, Unavailable
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore
from stepflow.store.lease import LeaseKeeper, RenewsFromThread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.etcd import EtcdServer

    from stepflow.store.lease import Renewer

TTL_S = 3.0  # long enough that a busy machine does not decide the test


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path_factory.mktemp("etcd"), "--unsafe-no-fsync", *FAST) as server:
        yield server


async def keeper_of(store: EtcdStore, lost: asyncio.Event) -> LeaseKeeper:
    assert isinstance(store, RenewsFromThread)
    keeper = LeaseKeeper(store, lost.set, ttl_s=TTL_S)
    await keeper.start()
    return keeper


async def open_store(etcd: EtcdServer) -> EtcdStore:
    return await EtcdStore.open(EtcdConfig.parse(etcd.endpoint, prefix=f"{uuid4().hex[:8]}/"))


def test_a_loop_that_is_busy_for_longer_than_the_time_to_live_keeps_its_lease(etcd: EtcdServer) -> None:
    async def scenario() -> None:
        store, lost = await open_store(etcd), asyncio.Event()
        keeper = await keeper_of(store, lost)
        time.sleep(1.05 * TTL_S)  # noqa: ASYNC251  # the loop being busy is what is tested
        assert keeper.valid()
        assert await store.lease_keep_alive(keeper.lease) > 0
        assert not lost.is_set()
        await keeper.stop(revoke=True)
        await store.close()

    asyncio.run(scenario())


def test_a_loop_that_hangs_loses_its_lease_and_is_told_when_it_goes_on(etcd: EtcdServer) -> None:
    async def scenario() -> None:
        store, lost = await open_store(etcd), asyncio.Event()
        keeper = await keeper_of(store, lost)
        time.sleep(2.5 * TTL_S)  # noqa: ASYNC251  # the loop hanging is what is tested
        assert not keeper.valid()
        async with asyncio.timeout(10):
            await lost.wait()
        with pytest.raises(NotFound):
            await store.lease_keep_alive(keeper.lease)
        await keeper.stop(revoke=True)
        await store.close()

    asyncio.run(scenario())


def test_the_holder_of_a_revoked_lease_is_told(etcd: EtcdServer) -> None:
    async def scenario() -> None:
        store, lost = await open_store(etcd), asyncio.Event()
        keeper = await keeper_of(store, lost)
        await store.lease_revoke(keeper.lease)
        async with asyncio.timeout(10):
            await lost.wait()
        assert not keeper.valid()
        await keeper.stop(revoke=False)
        await store.close()

    asyncio.run(scenario())


def test_stopping_does_not_wait_for_an_etcd_that_does_not_answer(etcd: EtcdServer) -> None:
    async def scenario() -> None:
        store, lost = await open_store(etcd), asyncio.Event()
        keeper = await keeper_of(store, lost)
        renewer = store.lease_renewer()
        etcd.stop()
        try:
            with pytest.raises(Unavailable):
                await asyncio.to_thread(renewer.renew, keeper.lease)
            renewer.close()
            with pytest.raises(Unavailable):
                renewer.renew(keeper.lease)
            async with asyncio.timeout(5):
                await keeper.stop(revoke=False)
        finally:
            etcd.go_on()
        await store.close()

    asyncio.run(scenario())


class FailingAtFirst:
    """A renewer that fails three times, and then does not."""

    def __init__(self, renewer: Renewer, error: BaseException) -> None:
        self._renewer = renewer
        self._error = error
        self.tries = 0

    def renew(self, lease: int) -> float:
        self.tries += 1
        if self.tries <= 3:
            raise self._error
        return self._renewer.renew(lease)

    def close(self) -> None:
        self._renewer.close()


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("STORE_UNAVAILABLE", "nobody answers"),
        OSError(errno.EMFILE, "Too many open files"),
        ImportError("cannot open a module"),
        RuntimeError("can't start new thread"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_keep_alive_that_failed_is_tried_again_long_before_the_next_one_is_due(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def scenario() -> None:
        store, lost = await open_store(etcd), asyncio.Event()
        renewer = FailingAtFirst(store.lease_renewer(), error)
        monkeypatch.setattr(store, "lease_renewer", lambda: renewer)
        keeper = await keeper_of(store, lost)
        granted_until_s = keeper._valid_until_s
        await wait_until_async(lambda: renewer.tries > 4, "it was kept alive, and again")
        assert keeper._valid_until_s > granted_until_s
        assert not lost.is_set()
        await keeper.stop(revoke=True)
        await store.close()

    asyncio.run(scenario())


def test_the_holder_is_told_if_the_renewing_thread_ends(etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        store, lost = await open_store(etcd), asyncio.Event()
        renewer = FailingAtFirst(store.lease_renewer(), SystemExit())
        monkeypatch.setattr(store, "lease_renewer", lambda: renewer)
        keeper = await keeper_of(store, lost)
        async with asyncio.timeout(10):
            await lost.wait()
        assert not keeper.valid()
        await keeper.stop(revoke=True)
        await store.close()

    asyncio.run(scenario())


def test_a_lease_whose_thread_cannot_start_is_given_back(etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        store, lost = await open_store(etcd), asyncio.Event()
        keeper = LeaseKeeper(store, lost.set, ttl_s=TTL_S)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError):
                await keeper.start()
        lease = keeper.lease
        async with asyncio.timeout(5):
            await keeper.stop(revoke=True)
        with pytest.raises(NotFound):
            await store.lease_keep_alive(lease)
        await store.close()

    asyncio.run(scenario())
