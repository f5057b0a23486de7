"""The protocol of a store: one ordered map of keys to small values, which holds all durable state.

The semantics are etcd's (v3, `rpc.proto`: KV, Lease, Watch). One contract suite (`tests/contract/test_store.py`) holds
every implementation to them:

- One global *revision*, 1 in an empty store. A transaction with changes makes exactly one new revision; a transaction
  without changes (reads, deletion of missing keys) makes none.
- Each key has a value, the revisions of its creation and of its last change, and a *version*: the number of puts since
  creation, 1-based. A deletion erases them all. A missing key compares as creation 0, change 0, version 0, and no
  comparison of its value holds.
- A transaction is atomic, and durable when its result arrives: if all compares hold, `then` runs, else `orelse`.
  Reads see the effects of earlier operations. A branch changes a key at most once.
- A *lease* expires one time to live after its last keep-alive. Its keys are then deleted in one revision. Each put sets
  the lease of its key; `ignore_lease` keeps the present lease.
- A *watch* yields whole revisions in order, without repeats or gaps. A watch that starts before the retained history,
  or falls too far behind, ends with `StoreCompacted`; its owner lists again.
- A *compaction* discards the history before a revision. Present keys are not affected.
- `StoreUnavailable` leaves open whether a transaction happened. After any other error nothing happened.

Keys are text, sorted by code point (the order of their UTF-8 bytes). The limits are etcd's defaults. `check_txn`
enforces them before a request is sent, so that all implementations refuse the same requests for the same reasons.

Types only: implementations live in `etcd/` and `sqlite/`, and the meaning of keys in `keys`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import msgspec

from stepflow.errors import Conflict, FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TXN_OPS_MAX = 128
"""Most compares of a transaction, and most operations of one branch (etcd's `--max-txn-ops`)."""

TXN_BYTES_MAX = 1536 * 1024
"""Total size of a transaction's keys and values (etcd's `--max-request-bytes`)."""

OP_OVERHEAD_BYTES = 64
"""Allowance for each operation and compare beyond key and value. Exceeds the encoding, key prefix included."""

PAGE_KEYS_MAX = 1000
"""Most keys of one page."""

PAGE_BYTES_MAX = 4 * 1024 * 1024
"""A page ends after the value that makes it this large."""

assert TXN_BYTES_MAX < PAGE_BYTES_MAX  # any single value fits a page


class StoreUnavailable(Unavailable):
    """The store did not answer; a transaction may have happened. Resend it unchanged."""


class StoreCompacted(Conflict):
    """The requested history is gone: list again. `details["compacted"]` is the last revision without history."""


class StoreUnreadable(FailedPrecondition):
    """This database cannot be opened: locked, another format, a later version, no permission; see the reason."""


class KeyValue(msgspec.Struct, frozen=True):
    """A key with its value and revisions. `lease` is 0 without a lease."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class Compare(msgspec.Struct, frozen=True):
    """A condition of a transaction. Build it with `absent`, `present`, `created_at`, …"""

    key: str
    target: Literal["create_revision", "mod_revision", "version", "value"]
    relation: Literal["=", ">"]
    operand: int | bytes


def absent(key: str) -> Compare:
    """Hold if the key does not exist."""
    return Compare(key, "create_revision", "=", 0)


def present(key: str) -> Compare:
    """Hold if the key exists."""
    return Compare(key, "create_revision", ">", 0)


def created_at(key: str, revision: int) -> Compare:
    """Hold if the transaction of `revision` created the key, and no later one deleted it."""
    return Compare(key, "create_revision", "=", revision)


def modified_at(key: str, revision: int) -> Compare:
    """Hold if the transaction of `revision` was the last to change the key."""
    return Compare(key, "mod_revision", "=", revision)


def version_is(key: str, version: int) -> Compare:
    """Hold if the key was put `version` times since its creation."""
    return Compare(key, "version", "=", version)


def value_is(key: str, value: bytes) -> Compare:
    """Hold if the key exists with exactly this value."""
    return Compare(key, "value", "=", value)


class Put(msgspec.Struct, frozen=True):
    """Write a value. Response: None.

    The key is attached to `lease` afterwards (0: to none). `ignore_lease` keeps the present lease and needs an existing
    key.
    """

    key: str
    value: bytes
    lease: int = 0
    ignore_lease: bool = False


class Delete(msgspec.Struct, frozen=True):
    """Delete a key if it exists. Response: the number of deleted keys, 0 or 1."""

    key: str


class DeletePrefix(msgspec.Struct, frozen=True):
    """Delete all keys under a non-empty prefix. Response: the number of deleted keys."""

    prefix: str


class Get(msgspec.Struct, frozen=True):
    """Read a key. Response: its `KeyValue` or None."""

    key: str


class Range(msgspec.Struct, frozen=True):
    """Read the first keys under `prefix`, between `after` and `before`, both exclusive. Response: a `Page`.

    `before` is empty for no bound. Bound what is large: etcd counts all keys of a range, whatever the limit.
    """

    prefix: str
    limit: int = PAGE_KEYS_MAX
    after: str = ""
    before: str = ""


Op: TypeAlias = Put | Delete | DeletePrefix | Get | Range


class Page(msgspec.Struct, frozen=True):
    """Keys in order, as of `revision`. `more`: further keys follow the last item."""

    items: list[KeyValue]
    more: bool
    revision: int


Response: TypeAlias = KeyValue | Page | int | None


class Txn(msgspec.Struct, frozen=True):
    """If all compares hold run `then`, else `orelse`; all or nothing."""

    compares: tuple[Compare, ...]
    then: tuple[Op, ...]
    orelse: tuple[Op, ...] = ()


class TxnResult(msgspec.Struct, frozen=True):
    """Outcome of a transaction.

    `responses` are those of the branch that ran, in the order of its operations. `revision` is the new revision, or the
    current revision if the branch changed nothing.
    """

    succeeded: bool
    revision: int
    responses: tuple[Response, ...]


class StoreEvent(msgspec.Struct, frozen=True):
    """A change of one key. After a deletion, `kv` has only the key and, as `mod_revision`, that of the deletion."""

    kind: Literal["put", "delete"]
    kv: KeyValue


class WatchBatch(msgspec.Struct, frozen=True):
    """All changes of one revision under the watched prefix, in the order of its operations."""

    revision: int
    events: tuple[StoreEvent, ...]


class StoreWatch(Protocol):
    """Iterate with `async for`. Raises: StoreCompacted; StoreUnavailable, when the store was closed."""

    def __aiter__(self) -> AsyncIterator[WatchBatch]: ...

    async def __anext__(self) -> WatchBatch: ...

    def close(self) -> None:
        """End the iteration, even while it waits. Idempotent."""
        ...


class Store(Protocol):
    """A store, with the semantics in the head of this module. Bound to the event loop that opened it."""

    async def get(self, key: str) -> KeyValue | None:
        """Read one key."""
        ...

    async def range(self, prefix: str, *, after: str = "", limit: int = PAGE_KEYS_MAX, revision: int = 0) -> Page:
        """Read a page of the keys under `prefix` that follow the key `after`.

        The page is bounded by `limit`, `PAGE_KEYS_MAX` and `PAGE_BYTES_MAX`. Revision 0 is the current revision.

        Raises:
            StoreCompacted: the revision is too old.
            Invalid: `REVISION_IN_FUTURE`, `LIMIT_INVALID`.
        """
        ...

    async def txn(self, txn: Txn) -> TxnResult:
        """Run a transaction.

        Raises:
            StoreUnavailable: undecided.
            Invalid: nothing happened: `DUPLICATE_KEY`, `TXN_TOO_MANY_OPS`, `TXN_TOO_LARGE`, `VALUE_TOO_LARGE`,
                `EMPTY_KEY`, `KEY_INVALID`, `LIMIT_INVALID`, `KEY_NOT_FOUND` (`ignore_lease` on a missing key),
                `LEASE_PROVIDED` (with `ignore_lease`).
            NotFound: nothing happened: `LEASE_GONE`.
        """
        ...

    async def lease_grant(self, ttl_s: float) -> int:
        """Create a lease and return its id, never 0. An implementation may lengthen a short time to live."""
        ...

    async def lease_keep_alive(self, lease: int) -> float:
        """Restart the lease's time to live and return it in seconds. Raises: NotFound `LEASE_GONE`."""
        ...

    async def lease_revoke(self, lease: int) -> None:
        """End a lease now and delete its keys. Raises: NotFound `LEASE_GONE`."""
        ...

    def watch(self, prefix: str, *, from_revision: int = 0) -> StoreWatch:
        """Watch the keys under `prefix` from a revision (inclusive), or with 0 from now.

        "Now" precedes every later request to the store: watch first, then read, and no change is missed.
        """
        ...

    async def revision(self) -> int:
        """Return the current revision."""
        ...

    async def compact(self, revision: int) -> None:
        """Discard the history before `revision`. Idempotent; no effect on a revision that is compacted already.

        Reads at an earlier revision, and watches from one, raise StoreCompacted. Reads at `revision` or later, watches
        from a later revision, and open watches that have kept up are not affected.

        Raises:
            StoreUnavailable: undecided.
            Invalid: `REVISION_IN_FUTURE`.
            Forbidden: only an administrator of the store may.
        """
        ...

    async def close(self) -> None:
        """Release all resources. Idempotent. Later calls raise StoreUnavailable."""
        ...


async def put(store: Store, key: str, value: bytes, *, lease: int = 0) -> int:
    """Put one key unconditionally and return the new revision."""
    return (await store.txn(Txn((), (Put(key, value, lease),)))).revision


async def delete(store: Store, key: str) -> bool:
    """Delete one key unconditionally; return True if it existed."""
    return (await store.txn(Txn((), (Delete(key),)))).responses == (1,)


async def range_all(
    store: Store, prefix: str, *, revision: int = 0, first: Page | None = None
) -> AsyncIterator[KeyValue]:
    """Yield all keys under `prefix` in order, as of one revision, reading page by page.

    A reader so slow that this revision was compacted goes on at the current one: its last keys are younger than its
    first, each key comes at most once, and a key that exists all the time is not missed. `first` is a page that the
    caller has read already.

    Raises: StoreCompacted: the given `revision` had lost its history before the first page.
    """
    after = ""
    while True:
        try:
            page, first = first or await store.range(prefix, after=after, revision=revision), None
        except StoreCompacted:
            if not after:
                raise
            page = await store.range(prefix, after=after)

        for item in page.items:
            yield item
        if not page.more:
            return
        after, revision = page.items[-1].key, page.revision
