"""The store: one ordered map of keys to small values in which everything durable stands.

The semantics are etcd's (v3, `rpc.proto`: KV, Lease, Watch); the embedded `SqliteStore` has the same, and one
contract suite (`tests/contract/test_store.py`) holds every implementation to them:

- One global *revision*, from 1 in an empty store. A transaction that changes something makes exactly one new
  revision; one that changes nothing (reads, deleting what is not there) makes none.
- Of every key the store knows its value, the revision of its creation and of its last change, and its *version*:
  the number of puts since creation, from 1. A deletion forgets all of that; a key that is not there compares as
  creation 0, change 0, version 0, and no comparison of its value holds.
- A transaction is atomic and durable when its result arrives: if all compares hold, `then` runs, else `orelse`.
  Reads inside it see the effects of the operations before them. A key is changed at most once in a branch.
- A *lease* lives for its time to live after the last keep-alive. When it ends, the keys that hang on it are deleted
  in one revision. A put decides the lease of its key anew; `ignore_lease` keeps the one it has.
- A *watch* yields whole revisions in order, none twice and none left out. Who asks for more of the past than
  the store still has, or falls too far behind, gets `StoreCompacted` and lists anew.
- `StoreUnavailable` does not say whether a transaction happened. All other errors say that it did not.

Keys are text, sorted by code point (which is the order of their UTF-8 bytes). The bounds below are etcd's defaults
and are checked by `check_txn` before anything is sent, so that every implementation refuses the same requests with
the same reasons.

This module holds types and pure helpers only; it does not know any implementation, nor what the keys mean
(`stepflow.store.keys` does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import msgspec

from stepflow.errors import Conflict, Invalid, Refused, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TXN_OPS_MAX = 128
"""Compares of a transaction, and operations of one branch (etcd's `--max-txn-ops`)."""

TXN_BYTES_MAX = 1536 * 1024
"""Keys and values of a whole transaction (etcd's `--max-request-bytes`)."""

OP_OVERHEAD_BYTES = 64
"""Counted for each operation and compare on top of key and value: more than its encoding takes, with a key prefix."""

PAGE_KEYS_MAX = 1000
"""Keys of one page."""

PAGE_BYTES_MAX = 4 * 1024 * 1024
"""A page ends behind the value with which it reaches this size."""

assert TXN_BYTES_MAX < PAGE_BYTES_MAX  # any single value fits a page


class StoreUnavailable(Unavailable):
    """The store did not answer; whether a transaction happened is not known. Send the very same one again."""


class StoreCompacted(Conflict):
    """The past that was asked for is gone; `details["compacted"]` is the last revision without history. List anew."""


class StoreUnreadable(Refused):
    """This database cannot be opened now: locked, not ours, of a later version, no permission; see the reason."""


class KeyValue(msgspec.Struct, frozen=True):
    """A key as it stands in the store. `lease` is 0 without one."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class Compare(msgspec.Struct, frozen=True):
    """A condition of a transaction; made by the functions below."""

    key: str
    target: Literal["create_revision", "mod_revision", "version", "value"]
    relation: Literal["=", ">"]
    operand: int | bytes


def absent(key: str) -> Compare:
    """Hold when the key does not exist."""
    return Compare(key, "create_revision", "=", 0)


def present(key: str) -> Compare:
    """Hold when the key exists."""
    return Compare(key, "create_revision", ">", 0)


def created_at(key: str, revision: int) -> Compare:
    """Hold when the key was created by the transaction of that revision and not deleted since."""
    return Compare(key, "create_revision", "=", revision)


def modified_at(key: str, revision: int) -> Compare:
    """Hold when the key was changed last by the transaction of that revision."""
    return Compare(key, "mod_revision", "=", revision)


def version_is(key: str, version: int) -> Compare:
    """Hold when the key was put that many times since its creation."""
    return Compare(key, "version", "=", version)


def value_is(key: str, value: bytes) -> Compare:
    """Hold when the key exists with exactly this value."""
    return Compare(key, "value", "=", value)


class Put(msgspec.Struct, frozen=True):
    """Write a value. Response: None.

    The key hangs on `lease` afterwards (0: on none), or with `ignore_lease`, which needs an existing key, on the one
    it has.
    """

    key: str
    value: bytes
    lease: int = 0
    ignore_lease: bool = False


class Delete(msgspec.Struct, frozen=True):
    """Delete a key if it is there. Response: the number of deleted keys, 0 or 1."""

    key: str


class DeletePrefix(msgspec.Struct, frozen=True):
    """Delete all keys that begin with `prefix` (not empty). Response: the number of deleted keys."""

    prefix: str


class Get(msgspec.Struct, frozen=True):
    """Read a key. Response: its `KeyValue` or None."""

    key: str


class Range(msgspec.Struct, frozen=True):
    """Read the first keys behind `after` (exclusive) that begin with `prefix`. Response: a `Page`."""

    prefix: str
    limit: int = PAGE_KEYS_MAX
    after: str = ""


Op: TypeAlias = Put | Delete | DeletePrefix | Get | Range


class Page(msgspec.Struct, frozen=True):
    """Keys in order. `more`: others follow behind the last item. `revision`: the one at which they were read."""

    items: list[KeyValue]
    more: bool
    revision: int


Response: TypeAlias = KeyValue | Page | int | None


class Txn(msgspec.Struct, frozen=True):
    """If all compares hold do `then`, else `orelse`; all or nothing."""

    compares: tuple[Compare, ...]
    then: tuple[Op, ...]
    orelse: tuple[Op, ...] = ()


class TxnResult(msgspec.Struct, frozen=True):
    """Outcome of a transaction. `responses`: one for each operation of the branch that ran, in order.

    `revision` is the one that the transaction made, or the current one when it changed nothing.
    """

    succeeded: bool
    revision: int
    responses: tuple[Response, ...]


class Event(msgspec.Struct, frozen=True):
    """A change. Of a deletion `kv` has only the key and, as `mod_revision`, the revision that deleted it."""

    kind: Literal["put", "delete"]
    kv: KeyValue


class WatchBatch(msgspec.Struct, frozen=True):
    """All changes that one revision made under the watched prefix, in the order of its operations."""

    revision: int
    events: tuple[Event, ...]


class Watch(Protocol):
    """Iterate with `async for`; raises StoreCompacted, or StoreUnavailable when the store was closed."""

    def __aiter__(self) -> AsyncIterator[WatchBatch]: ...

    async def __anext__(self) -> WatchBatch: ...

    def close(self) -> None:
        """End the iteration, also a waiting one; safe to repeat."""
        ...


class Store(Protocol):
    """See the head of this module. Bound to the event loop in which it was opened."""

    async def get(self, key: str) -> KeyValue | None:
        """Read one key."""
        ...

    async def range(self, prefix: str, *, after: str = "", limit: int = PAGE_KEYS_MAX, revision: int = 0) -> Page:
        """Read a page of the keys that begin with `prefix` and come behind the key `after`.

        At most `limit`, `PAGE_KEYS_MAX` and `PAGE_BYTES_MAX`; at the given revision, 0 being the current one.

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
        """Create a lease and return its id, which is never 0. An implementation may lengthen a short time to live."""
        ...

    async def lease_keep_alive(self, lease: int) -> float:
        """Start the lease's time to live anew and return it in seconds. Raises: NotFound `LEASE_GONE`."""
        ...

    async def lease_revoke(self, lease: int) -> None:
        """End a lease and delete its keys, now. Raises: NotFound `LEASE_GONE`."""
        ...

    def watch(self, prefix: str, *, from_revision: int = 0) -> Watch:
        """Watch the keys that begin with `prefix`: from that revision on (inclusive), or 0, from now.

        "Now" lies before whatever is asked of the store after this call: watch, then read, and nothing is missed.
        """
        ...

    async def revision(self) -> int:
        """Return the current revision."""
        ...

    async def close(self) -> None:
        """Release everything; safe to repeat. Later calls raise StoreUnavailable."""
        ...


async def put(store: Store, key: str, value: bytes, *, lease: int = 0) -> int:
    """Put one key unconditionally and return the new revision."""
    return (await store.txn(Txn((), (Put(key, value, lease),)))).revision


async def delete(store: Store, key: str) -> bool:
    """Delete one key unconditionally and return whether it was there."""
    return (await store.txn(Txn((), (Delete(key),)))).responses == (1,)


async def range_all(
    store: Store, prefix: str, *, revision: int = 0, first: Page | None = None
) -> AsyncIterator[KeyValue]:
    """Yield all keys that begin with `prefix` as they stood at one revision, a page at a time.

    `first` is a page that was read already.

    Raises: StoreCompacted, when the reader is so slow that the revision of the first page is gone meanwhile.
    """
    after = ""
    while True:
        page, first = first or await store.range(prefix, after=after, revision=revision), None
        for item in page.items:
            yield item
        if not page.more:
            return
        after, revision = page.items[-1].key, page.revision


def prefix_end(prefix: str) -> str | None:
    """Return the smallest text above everything that begins with `prefix`; None when nothing is above."""
    for index in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[index])
        if point < 0x10FFFF:
            above = 0xE000 if point == 0xD7FF else point + 1  # surrogates are no characters
            return prefix[:index] + chr(above)
    return None


def op_bytes(op: Op | Compare) -> int:
    """Return what an operation or compare counts towards `TXN_BYTES_MAX`."""
    match op:
        case Put(key, value):
            size = len(value)
        case Compare(key, _, _, bytes() as value):
            size = len(value)
        case DeletePrefix(key) | Range(key):
            size = 0
        case _:
            key, size = op.key, 0
    return OP_OVERHEAD_BYTES + size + (len(key) if key.isascii() else len(key.encode()))


def check_txn(txn: Txn) -> None:
    """Refuse a transaction that no store takes. Raises: Invalid, with the reasons of `Store.txn`."""
    ops_max = max(len(txn.compares), len(txn.then), len(txn.orelse))
    if ops_max > TXN_OPS_MAX:
        raise Invalid(
            "TXN_TOO_MANY_OPS",
            f"{ops_max} operations in one branch of a transaction; the limit is {TXN_OPS_MAX}",
            ops=ops_max,
            ops_max=TXN_OPS_MAX,
        )
    for compare in txn.compares:
        check_key(compare.key)
    check_branch(txn.then)
    check_branch(txn.orelse)
    size = sum(map(op_bytes, txn.compares)) + sum(map(op_bytes, txn.then)) + sum(map(op_bytes, txn.orelse))
    if size > TXN_BYTES_MAX:
        raise Invalid(
            "TXN_TOO_LARGE",
            f"a transaction of {size:,} bytes; the limit is {TXN_BYTES_MAX:,}",
            size=size,
            bytes_max=TXN_BYTES_MAX,
        )


def check_branch(ops: tuple[Op, ...]) -> None:
    """Check each operation, and that no key is put twice, or put and deleted (two deletions do no harm).

    Raises: Invalid, as `check_txn`, which also checks number and size of all together.
    """
    put_keys: set[str] = set()
    for op in ops:
        match op:
            case Put(key, value, lease, ignore_lease):
                check_key(key)
                if len(value) + OP_OVERHEAD_BYTES > TXN_BYTES_MAX:
                    raise Invalid(
                        "VALUE_TOO_LARGE",
                        f"the value of {key!r} has {len(value):,} bytes; "
                        f"a whole transaction takes {TXN_BYTES_MAX:,}: put it into the blob store",
                        key=key,
                        size=len(value),
                    )
                if lease and ignore_lease:
                    raise Invalid("LEASE_PROVIDED", f"the put of {key!r} names a lease and ignores it", key=key)
                if key in put_keys:
                    raise _duplicate(key)
                put_keys.add(key)
            case DeletePrefix(prefix):
                check_key(prefix)
            case Range(prefix, limit, after):
                check_range(prefix, after, limit)
            case _:
                check_key(op.key)
    for op in ops:
        match op:
            case Delete(key) if key in put_keys:
                raise _duplicate(key)
            case DeletePrefix(prefix):
                for key in put_keys:
                    if key.startswith(prefix):
                        raise _duplicate(key)


def check_key(key: str) -> None:
    """Refuse what cannot be a key. Raises: Invalid `EMPTY_KEY`, `KEY_INVALID`."""
    if not key:
        raise Invalid("EMPTY_KEY", "a key of the store must not be empty")
    _check_text(key)


def check_range(prefix: str, after: str, limit: int) -> None:
    """Refuse an impossible range. Raises: Invalid `KEY_INVALID`, `LIMIT_INVALID`."""
    _check_text(prefix)
    _check_text(after)
    if limit < 1:
        raise Invalid("LIMIT_INVALID", f"a page of {limit} keys: the limit must be at least 1", limit=limit)


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Invalid("KEY_INVALID", f"{text!r} cannot be part of a key: it holds a lone surrogate") from None


def _duplicate(key: str) -> Invalid:
    return Invalid("DUPLICATE_KEY", f"{key!r} is changed twice in one transaction", key=key)
