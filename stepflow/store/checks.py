"""Checks and sizes of requests to a store, the same for all implementations. Pure."""

from __future__ import annotations

from stepflow.errors import Invalid
from stepflow.store.protocol import (
    OP_OVERHEAD_BYTES,
    TXN_BYTES_MAX,
    TXN_OPS_MAX,
    Compare,
    Delete,
    DeletePrefix,
    Op,
    Put,
    Range,
    Txn,
)


def prefix_end(prefix: str) -> str | None:
    """Return the smallest text that sorts after all keys under `prefix`; None if there is none."""
    for index in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[index])
        if point < 0x10FFFF:
            above = 0xE000 if point == 0xD7FF else point + 1  # skip the surrogates, which no key holds
            return prefix[:index] + chr(above)
    return None


def op_bytes(op: Op | Compare) -> int:
    """Return the size of an operation or compare, as counted against `TXN_BYTES_MAX`."""
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
    """Refuse a transaction beyond the limits or with an invalid key. Raises: Invalid, as `Store.txn`."""
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
    """Check each operation, and that no key is put twice, or put and deleted. Two deletions are harmless.

    Raises: Invalid, as `check_txn`, which also checks total count and size.
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
            case Range(prefix, limit, after, before):
                check_range(prefix, after, limit)
                _check_text(before)
            case _:
                check_key(op.key)

    # Only now are all puts known: a deletion may stand before the put of the same key.
    for op in ops:
        match op:
            case Delete(key) if key in put_keys:
                raise _duplicate(key)
            case DeletePrefix(prefix):
                for key in put_keys:
                    if key.startswith(prefix):
                        raise _duplicate(key)


def check_key(key: str) -> None:
    """Refuse an invalid key. Raises: Invalid `EMPTY_KEY`, `KEY_INVALID`."""
    if not key:
        raise Invalid("EMPTY_KEY", "a key of the store must not be empty")
    _check_text(key)


def check_range(prefix: str, after: str, limit: int) -> None:
    """Refuse an invalid range. Raises: Invalid `KEY_INVALID`, `LIMIT_INVALID`."""
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
