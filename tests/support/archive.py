"""A leader's archive for tests: terms of leadership one after the other, with a hook around each operation."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from control_plane.archive.counters import ArchiveCounters
from control_plane.archive.due_runs import DueRuns
from control_plane.archive.led_segments import LedSegments
from control_plane.archive.packer import Packer
from control_plane.archive.policy import RetentionPolicy
from control_plane.archive.step_index import StepIndexWriter
from control_plane.archive.tombstones import finish_deletions
from control_plane.archive.upkeep import Upkeep
from control_plane.control_plane import ControlPlane
from control_plane.replay.replays import Replays
from control_plane.run_list import RunFilter
from stepflow.journal import blob_reader
from stepflow.store import Delete, Txn, created_at, keys, put, range_all
from stepflow.store.blobs import BlobStore
from stepflow.store.blobs.memory import MemoryBackend
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore
from stepflow.store.sqlite.store import SqliteStore
from support.corpus import CORPUS
from support.packing import answers, listings, run_world, store_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from stepflow.store import Compare, Store
    from support.etcd import EtcdServer

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
        self.due_runs = DueRuns()
        self.counters = ArchiveCounters()
        self.segments = LedSegments(store, blobs, fence)
        step_index = StepIndexWriter(Replays(store, blob_reader(store, blobs)))
        self.packer = Packer(store, blobs, self.segments, self.due_runs, fence, self.counters, step_index)
        self.upkeep = Upkeep(store, blobs, self.segments, policy, fence, self.counters)
        self._store = store
        self.fence = fence

    async def begin(self) -> None:
        self.due_runs.begin()
        await self.segments.load()
        await self.due_runs.list_all(self._store)

    async def work(self, now_ms: int = FAR_MS, *, before_ms: int = FAR_MS) -> None:
        """End the deletions, pack all that has ended, and keep the segments up."""
        await finish_deletions(self._store, self.segments, self.fence)
        while (oldest := self.due_runs.oldest_ms()) is not None and oldest <= before_ms:
            await self.packer.pack(before_ms, FAR_MS)
            await finish_deletions(self._store, self.segments, self.fence)
        await finish_deletions(self._store, self.segments, self.fence)
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
        blobs = BlobStore(Hooked(self.backend, hook, BLOB_CALLS))
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


FLOWS = ("chain", "map", "large values")
"""Flows of the corpus that the runs have: small, with sub-runs, with blobs."""


class PackingWorld:
    """A store with a few ended runs, and the leaders and readers over it."""

    def __init__(self, store: Store, policy: RetentionPolicy | None = None) -> None:
        self.store = store
        self.backend = MemoryBackend()
        self.blobs = BlobStore(self.backend)
        self.leaders = ArchiveLeaders(store, self.backend, policy)
        self.control = ControlPlane(store, self.blobs)
        self.run_ids: list[str] = []

    async def fill(self, *names: str) -> None:
        """Put a run into the store for each of the flows, and further ones of the first."""
        for number, name in enumerate(names or FLOWS, 1):
            world = run_world(number, CORPUS[name], inputs=[{"n": 1}])
            world.run()
            self.run_ids.append(await store_run(self.store, self.blobs, world, [1, 2], created_at_ms=900_000 + number))

    async def answers(self, run_ids: list[str] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {
            run_id: await answers(self.control, self.blobs, run_id) for run_id in run_ids or self.run_ids
        }
        return found | await listings(self.control)

    async def glance(self) -> None:
        """Check that each run is there, once, with its items."""
        for run_id in self.run_ids:
            assert (await self.control.get_run(run_id)).terminal
            assert await self.control.items(run_id)
        page, token = await self.control.run_list.page(RunFilter(), 1000, "")
        assert sorted(view.run_id for view in page) == sorted(self.run_ids)
        assert not token

    async def kept(self) -> set[str]:
        """Return the kinds of keys of runs that the store has."""
        kinds = (keys.RUNS, keys.STATUS, keys.RESULTS, keys.JOURNAL, keys.INBOX, keys.BY_AGE, keys.DELETED)
        return {kind for kind in kinds if (await self.store.range(kind, limit=1)).items}

    async def manifests(self) -> set[str]:
        return {keys.parse_segment(item.key) async for item in range_all(self.store, keys.SEGMENTS)}


@asynccontextmanager
async def opened(etcd: EtcdServer | None, policy: RetentionPolicy | None = None) -> AsyncIterator[PackingWorld]:
    store: Any
    if etcd is None:
        store = await SqliteStore.open(":memory:")
    else:
        store = await EtcdStore.open(EtcdConfig.parse(etcd.endpoint, prefix=f"{uuid4().hex[:16]}/"))
    world = PackingWorld(store, policy)
    try:
        await world.control.start(lead=False)
        yield world
    finally:
        await world.control.close()
        await store.close()


async def check_left(world: PackingWorld) -> None:
    """Check that nothing is left in the store, and no object that no manifest names, after a day."""
    assert await world.kept() == set()
    last = await world.leaders.term()
    await last.begin()
    await last.upkeep.delete_orphans(now_s=FAR_MS / 1000)
    assert world.leaders.objects() == await world.manifests()


__all__ = ["FAR_MS", "ArchiveLeaders", "AtStep", "Crash", "PackingWorld", "Term", "check_left", "opened"]
