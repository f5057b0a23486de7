"""Every implementation of the store, for the contract tests.

Add a new implementation to `STORES`; no test changes. The scenarios expect an empty store at revision 1: an
implementation that shares a server between tests gives each a view under its own prefix with shifted revisions
(`support.shifted`).
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import pytest
from support.etcd import FAST, EtcdServer, running_etcd
from support.shifted import Shifted

from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from stepflow.store import Store

STORES = ["sqlite-file", "sqlite-memory", "etcd"]

SCENARIO_TIMEOUT_S = 30.0


class WithStore(Protocol):
    """Runs a scenario in an event loop of its own, with an empty store, and closes the store behind it."""

    ttl_s: float
    """The shortest time to live that the store grants as asked."""

    def __call__(self, scenario: Callable[[Store], Awaitable[None]]) -> None: ...


@dataclass
class _WithStore:
    name: str
    folder: Path
    ttl_s: float = 0.5

    def __call__(self, scenario: Callable[[Any], Awaitable[None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(SCENARIO_TIMEOUT_S), self._open() as store:
                await scenario(store)

        asyncio.run(bounded())

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Store]:
        store = await SqliteStore.open(":memory:" if self.name == "sqlite-memory" else self.folder / "store.db")
        try:
            yield store
        finally:
            await store.close()


@dataclass
class _WithEtcd:
    server: EtcdServer
    prefix: str
    ttl_s: float = 1.0

    def __call__(self, scenario: Callable[[Any], Awaitable[None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(SCENARIO_TIMEOUT_S), self._open() as store:
                await scenario(store)

        self.server.revoke_leases()  # of the test before: their end would be a revision of this one
        asyncio.run(bounded())

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Store]:
        store = await EtcdStore.open(EtcdConfig.parse(self.server.endpoint, prefix=self.prefix))
        try:
            yield Shifted(store, await store.revision() - 1)
        finally:
            await store.close()


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """Give one server to all tests of this process."""
    with running_etcd(tmp_path_factory.mktemp("etcd"), *FAST, "--unsafe-no-fsync") as server:
        yield server


@pytest.fixture(params=STORES)
def with_store(request: pytest.FixtureRequest, tmp_path: Path) -> WithStore:
    if request.param == "etcd":
        # Of one server's tests, each has its own prefix: uuid-like, short, and not part of another.
        return _WithEtcd(request.getfixturevalue("etcd"), f"{uuid4().hex[:16]}/")
    return _WithStore(request.param, tmp_path)
