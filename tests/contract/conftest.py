"""Every implementation of the store, for the tests that hold all of them to one contract.

A new implementation joins `STORES`; no test changes. The scenarios expect an empty store at revision 1: one that
shares a server between tests hands them a view under a prefix of its own with shifted revisions.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from stepflow.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from stepflow.store import Store

STORES = ["sqlite-file", "sqlite-memory"]

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


@pytest.fixture(params=STORES)
def with_store(request: pytest.FixtureRequest, tmp_path: Path) -> WithStore:
    return _WithStore(request.param, tmp_path)
