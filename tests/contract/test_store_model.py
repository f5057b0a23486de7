"""The SQLite store against a model of etcd's semantics: a dict and its snapshots, one per revision.

Random transactions, leases, ranges at any revision, watches and reopenings; after each step the store must agree with
the model.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from msgspec.structs import replace

from stepflow.errors import Invalid
from stepflow.store import (
    Compare,
    Delete,
    DeletePrefix,
    Get,
    KeyValue,
    Op,
    Page,
    Put,
    Range,
    Response,
    StoreCompacted,
    StoreEvent,
    StoreWatch,
    Txn,
    TxnResult,
    WatchBatch,
    check_txn,
)
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

KEYS = ["a", "a/", "a/1", "a/2", "a0", "b", "\ud7ff", "\ue000", "\U0010ffff"]
PREFIXES = ["", "a", "a/", "b", "\ud7ff", "\U0010ffff", "zz"]

keys = st.sampled_from(KEYS)
prefixes = st.sampled_from(PREFIXES)
values = st.sampled_from([b"", b"1", b"\x00\xff"])
compares = st.builds(
    Compare,
    keys,
    st.sampled_from(["create_revision", "mod_revision", "version"]),
    st.sampled_from(["=", ">"]),
    st.integers(0, 6),
) | st.builds(Compare, keys, st.just("value"), st.just("="), values)


def ops(lease: int) -> st.SearchStrategy[Op]:
    return st.one_of(
        st.builds(Put, keys, values, st.sampled_from([0, lease])),
        st.builds(Put, keys, values, st.just(0), st.just(True)),
        st.builds(Delete, keys),
        st.builds(DeletePrefix, st.sampled_from(PREFIXES[1:])),
        st.builds(Get, keys),
        st.builds(Range, prefixes, st.integers(1, 4), st.sampled_from(["", *KEYS])),
    )


@dataclass
class Model:
    """`states[r]` is the whole content at revision r, `changes[r]` the events that made it."""

    states: dict[int, dict[str, KeyValue]] = field(default_factory=lambda: {1: {}})
    changes: dict[int, list[StoreEvent]] = field(default_factory=dict)
    oldest: int = 1

    @property
    def revision(self) -> int:
        return max(self.states)

    @property
    def now(self) -> dict[str, KeyValue]:
        return self.states[self.revision]

    def page(self, prefix: str, after: str, limit: int, revision: int, content: dict[str, KeyValue]) -> Page:
        found = [content[key] for key in sorted(content) if key.startswith(prefix) and key > after]
        return Page(found[:limit], len(found) > limit, revision)

    def txn(self, txn: Txn) -> TxnResult:
        """Raises Invalid as the store does."""
        check_txn(txn)
        succeeded = all(self.holds(compare) for compare in txn.compares)
        branch = txn.then if succeeded else txn.orelse
        for op in branch:
            if isinstance(op, Put) and op.ignore_lease and op.key not in self.now:
                raise Invalid("KEY_NOT_FOUND", op.key)
        revision, content, events = self.revision + 1, dict(self.now), []
        responses = [self.apply(op, revision, content, events) for op in branch]
        if events:
            self.states[revision] = content
            self.changes[revision] = events
        return TxnResult(succeeded, self.revision, tuple(responses))

    def apply(self, op: Op, revision: int, content: dict[str, KeyValue], events: list[StoreEvent]) -> Response:
        match op:
            case Put(key, value, lease, ignore_lease):
                old = content.get(key)
                lease = old.lease if ignore_lease and old is not None else lease
                new = KeyValue(key, value, revision, revision, 1, lease)
                if old is not None:
                    new = replace(new, create_revision=old.create_revision, version=old.version + 1)
                content[key] = new
                events.append(StoreEvent("put", new))
                return None
            case Delete(key):
                return self.delete([key], revision, content, events)
            case DeletePrefix(prefix):
                return self.delete(sorted(k for k in content if k.startswith(prefix)), revision, content, events)
            case Get(key):
                return content.get(key)
            case Range(prefix, limit, after, before):
                below = {key: kv for key, kv in content.items() if not before or key < before}
                return self.page(prefix, after, limit, revision if events else revision - 1, below)

    def delete(self, names: list[str], revision: int, content: dict[str, KeyValue], events: list[StoreEvent]) -> int:
        gone = [name for name in names if content.pop(name, None) is not None]
        events += [StoreEvent("delete", KeyValue(name, b"", 0, revision, 0)) for name in gone]
        return len(gone)

    def drop(self, leases: set[int]) -> None:
        """Delete the keys of these leases in one revision."""
        names = sorted(key for key, kv in self.now.items() if kv.lease in leases)
        if names:
            self.txn(Txn((), tuple(Delete(name) for name in names)))

    def holds(self, compare: Compare) -> bool:
        kv = self.now.get(compare.key)
        if compare.target == "value":
            return kv is not None and kv.value == compare.operand
        actual: Any = getattr(kv, compare.target) if kv is not None else 0
        return bool(actual == compare.operand if compare.relation == "=" else actual > compare.operand)

    def watched(self, prefix: str, from_revision: int) -> list[WatchBatch]:
        batches = []
        for revision in range(from_revision, self.revision + 1):
            events = tuple(e for e in self.changes.get(revision, []) if e.kv.key.startswith(prefix))
            if events:
                batches.append(WatchBatch(revision, events))
        return batches


class StoreMachine(RuleBasedStateMachine):
    watches = Bundle("watches")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.model = Model()
        self.lease = 0
        self.open_watches: list[StoreWatch] = []

    def run(self, call: Awaitable[T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(30):
                return await call

        return self.loop.run_until_complete(bounded())

    @initialize()
    def open(self) -> None:
        self.store = self.run(SqliteStore.open(Path(self.folder.name) / "model.db"))
        self.lease = self.run(self.store.lease_grant(3600))

    @rule(data=st.data(), compares=st.lists(compares, max_size=2))
    def transact(self, data: st.DataObject, compares: list[Compare]) -> None:
        branch = st.lists(ops(self.lease), max_size=4).map(tuple)
        txn = Txn(tuple(compares), data.draw(branch), data.draw(branch))
        expected = self.outcome(self.model.txn, txn)
        assert self.outcome(lambda txn: self.run(self.store.txn(txn)), txn) == expected

    def outcome(self, txn_of: Callable[[Txn], TxnResult], txn: Txn) -> TxnResult | str:
        try:
            return txn_of(txn)
        except Invalid as error:
            return error.reason

    @rule(txns=st.lists(st.lists(st.builds(Put, keys, values), min_size=1, max_size=1).map(tuple), max_size=5))
    def transact_at_once(self, txns: list[tuple[Put, ...]]) -> None:
        async def together() -> list[TxnResult]:
            return await asyncio.gather(*(self.store.txn(Txn((), puts)) for puts in txns))

        assert self.run(together()) == [self.model.txn(Txn((), puts)) for puts in txns]

    @rule(prefix=prefixes, after=st.sampled_from(["", *KEYS]), limit=st.integers(1, 5), back=st.integers(0, 8))
    def read(self, prefix: str, after: str, limit: int, back: int) -> None:
        revision = max(1, self.model.revision - back)
        call = self.store.range(prefix, after=after, limit=limit, revision=revision)
        if revision < self.model.oldest:
            with pytest.raises(StoreCompacted):
                self.run(call)
        else:
            content = self.model.states[revision]
            assert self.run(call) == self.model.page(prefix, after, limit, revision, content)

    @rule(target=watches, prefix=prefixes, back=st.integers(0, 5))
    def watch(self, prefix: str, back: int) -> tuple[StoreWatch, str, int]:
        start = max(self.model.oldest, self.model.revision - back) + 1
        watch = self.store.watch(prefix, from_revision=start)
        self.open_watches.append(watch)
        return watch, prefix, start

    @rule(watched=consumes(watches))
    def read_watch(self, watched: tuple[StoreWatch, str, int]) -> None:
        watch, prefix, start = watched
        if watch not in self.open_watches:
            return
        iterator = aiter(watch)
        for expected in self.model.watched(prefix, start):
            assert self.run(anext(iterator)) == expected
        watch.close()
        self.open_watches.remove(watch)

    @rule()
    def revoke(self) -> None:
        self.model.drop({self.lease})
        self.run(self.store.lease_revoke(self.lease))
        self.lease = self.run(self.store.lease_grant(3600))

    @rule(back=st.integers(-1, 8))
    def compact(self, back: int) -> None:
        revision = self.model.revision - back
        if back < 0:
            with pytest.raises(Invalid):
                self.run(self.store.compact(revision))
            return
        self.run(self.store.compact(revision))
        self.model.oldest = max(self.model.oldest, revision)

    @rule()
    def reopen(self) -> None:
        for watch in self.open_watches:
            watch.close()
        self.open_watches.clear()
        self.run(self.store.close())
        # What lies behind the reopening is compacted; the deletion of leased keys comes after it.
        self.model.oldest = self.model.revision if self.model.revision > 1 else 1
        self.model.drop({kv.lease for kv in self.model.now.values()} - {0})
        self.open()

    @invariant()
    def same_content(self) -> None:
        if hasattr(self, "store"):
            expected = [self.model.now[key] for key in sorted(self.model.now)]
            assert self.run(self.store.range("")) == Page(expected, False, self.model.revision)

    def teardown(self) -> None:
        for watch in self.open_watches:
            watch.close()
        if hasattr(self, "store"):
            self.run(self.store.close())
        self.loop.close()
        self.folder.cleanup()


StoreMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_the_store_answers_as_the_model_does = StoreMachine.TestCase
