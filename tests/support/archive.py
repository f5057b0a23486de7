"""A leader's archive for tests: terms of leadership one after the other, with a hook around each operation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from control_plane.archive.counters import ArchiveCounters
from control_plane.archive.ended_runs import EndedRuns
from control_plane.archive.led_segments import LedSegments
from control_plane.archive.packer import Packer
from control_plane.archive.policy import RetentionPolicy
from control_plane.archive.tombstones import finish_deletions
from control_plane.archive.upkeep import Upkeep
from stepflow.store import Delete, Txn, created_at, keys, put
from stepflow.store.blobs import BlobStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stepflow.store import Compare, Store
    from stepflow.store.blobs.memory import MemoryBackend

FAR_MS = 2**50
"""A time after all ends."""


class Crash(asyncio.CancelledError):
    """The leader dies here."""


class Hooked:
    """An object whose coroutine methods call a hook before and after they are carried out."""

    def __init__(self, inner: Any, hook: Callable[[str], Awaitable[None]], names: tuple[str, ...]) -> None:
        self._inner = inner
        self._hook = hook
        self._names = names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._names:
            return found

        async def hooked(*arguments: Any, **options: Any) -> Any:
            await self._hook(f"before {name}")
            result = await found(*arguments, **options)
            await self._hook(f"after {name}")
            return result

        return hooked


STORE_CALLS = ("get", "range", "txn")
BLOB_CALLS = ("write", "write_stream", "read_range", "delete", "delete_folder")


async def nothing(_: str) -> None:
    """Hook of an undisturbed leader."""


class Term:
    """One term of leadership over a store and a blob backend."""

    def __init__(self, store: Any, blobs: BlobStore, fence: Compare, policy: RetentionPolicy) -> None:
        self.ended_runs = EndedRuns()
        self.counters = ArchiveCounters()
        self.segments = LedSegments(store, blobs, fence)
        self.packer = Packer(store, blobs, self.segments, self.ended_runs, fence, self.counters)
        self.upkeep = Upkeep(store, blobs, self.segments, policy, fence, self.counters)
        self._store = store
        self._fence = fence

    async def begin(self) -> None:
        self.ended_runs.begin()
        await self.segments.load()
        await self.ended_runs.list_all(self._store)

    async def work(self, now_ms: int = FAR_MS, *, before_ms: int = FAR_MS) -> None:
        """End the deletions, pack all that has ended, and keep the segments up."""
        await finish_deletions(self._store, self.segments, self._fence)
        while (oldest := self.ended_runs.oldest_ms()) is not None and oldest <= before_ms:
            await self.packer.pack(before_ms, FAR_MS)
            await finish_deletions(self._store, self.segments, self._fence)
        await finish_deletions(self._store, self.segments, self._fence)
        while await self.upkeep.step(now_ms):
            pass

    async def all(self, now_ms: int = FAR_MS) -> None:
        await self.begin()
        await self.work(now_ms)


class ArchiveLeaders:
    """Makes terms over a store and a blob backend; each ends the one before."""

    def __init__(self, store: Store, backend: MemoryBackend, policy: RetentionPolicy | None = None) -> None:
        self.store = store
        self.backend = backend
        self.policy = policy or RetentionPolicy(runs_s=1e15, journals_s=1e15)

    async def term(self, hook: Callable[[str], Awaitable[None]] = nothing) -> Term:
        await self.store.txn(Txn((), (Delete(keys.leader()),)))
        await put(self.store, keys.leader(), b"test")
        found = await self.store.get(keys.leader())
        assert found is not None
        store = Hooked(self.store, hook, STORE_CALLS)
        blobs = BlobStore(Hooked(self.backend, hook, BLOB_CALLS))  # type: ignore[arg-type]  # a backend with hooks
        return Term(store, blobs, created_at(keys.leader(), found.create_revision), self.policy)

    async def undisturbed(self, now_ms: int = FAR_MS) -> Term:
        """Work with a leader that nothing disturbs, until nothing is left to do."""
        term = await self.term()
        async with asyncio.timeout(60):
            await term.all(now_ms)
        return term

    def objects(self) -> set[str]:
        return {path.removeprefix("segments/") for path in self.backend._blobs if path.startswith("segments/")}


class AtStep:
    """A hook that does something at one step, and counts the steps."""

    def __init__(self, step: int, work: Callable[[], Awaitable[None]]) -> None:
        self.steps = 0
        self._step = step
        self._work = work
        self._working = False

    @property
    def reached(self) -> bool:
        return self.steps > self._step

    async def __call__(self, _: str) -> None:
        if self._working:
            return
        self.steps += 1
        if self.steps == self._step + 1:
            self._working = True
            await self._work()
            self._working = False


__all__ = ["FAR_MS", "ArchiveLeaders", "AtStep", "Crash", "Term"]
