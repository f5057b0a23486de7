"""Signals: messages from outside that a step of a run waits for.

- A signal stays in the inbox of the run until the owner has copied it into the journal, or as long as the run.
- The client's signal id is its key: a repeated signal changes nothing. The owner drops one that it has taken already;
  after the end of the run, the journal tells.
- A signal is accepted only while the partition of the item has not ended, compared in the transaction.

Matching signals to steps is the run engine's work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from control_plane.views import TERMINAL
from stepflow.errors import Conflict, FailedPrecondition, Invalid, Overloaded
from stepflow.ids import parse_uuid
from stepflow.journal import journal_entries, read_record
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.run.builtins import SIGNAL_NAME_CHARS_MAX
from stepflow.store import Compare, Get, Put, Txn, absent, keys, modified_at, present, range_all

if TYPE_CHECKING:
    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore

INBOX_MESSAGES_MAX = 1_000
"""Messages of one run that its owner has not taken yet: each owner reads all of them."""

INLINE_BYTES_MAX = 4 * 1024
"""Larger payloads go to the blob store, because executors list the whole inbox periodically."""

TRIES_MAX = 20


async def signal(
    store: Store, blobs: BlobStore, run_id: str, name: str, payload: bytes, *, item: int = 0, signal_id: str = ""
) -> str:
    """Put a signal into the inbox of a run and return its id; `payload` is compact JSON.

    Raises:
        NotFound: there is no such run.
        Invalid: SIGNAL_INVALID.
        FailedPrecondition: RUN_ENDED, the item's partition has ended.
        Overloaded: INBOX_FULL.
        Conflict: SIGNAL_RACED.
    """
    # 1. Check the request.
    if not 1 <= len(name) <= SIGNAL_NAME_CHARS_MAX:
        raise Invalid("SIGNAL_INVALID", f"a signal name has 1 to {SIGNAL_NAME_CHARS_MAX} characters")
    identity = parse_uuid(signal_id, "SIGNAL_INVALID", "signal id") if signal_id else str(uuid4())
    record = await read_record(store, run_id)
    if item >= record.items_total:
        raise Invalid("SIGNAL_INVALID", f"run {run_id} has {record.items_total:,} items; there is no item {item}")

    # 2. Answer a repeated signal, even if the run has ended since.
    key = keys.inbox(run_id, identity)
    if signal_id and await store.get(key) is not None:
        return identity
    if len([1 async for _ in range_all(store, keys.inbox_of_run(run_id))]) >= INBOX_MESSAGES_MAX:
        raise Overloaded(
            "INBOX_FULL",
            f"{INBOX_MESSAGES_MAX:,} messages wait for the owner of run {run_id}, the limit; try again when its steps "
            "have received some",
        )

    # 3. Make the message. A large payload is durable in the blob store first; of an ended run it would stay there.
    large = len(payload) > INLINE_BYTES_MAX
    if large and await _not_ended_or_taken(store, record, run_id, item, signal_id and identity) is None:
        return identity
    message = state_pb2.InboxMessage(item=item, signal=pb.Signal(name=name))
    if large:
        message.signal.payload.blob = await blobs.put(payload, scope=run_id)
        message.signal.payload.blob_bytes = len(payload)
    else:
        message.signal.payload.json = payload

    # 4. Put it, while the item's partition has not ended.
    put = Put(key, message.SerializeToString())
    for _ in range(TRIES_MAX):
        not_ended = await _not_ended_or_taken(store, record, run_id, item, signal_id and identity)
        if not_ended is None:
            return identity
        compares = (absent(key), present(keys.run(run_id)), not_ended)
        result = await store.txn(Txn(compares, (put,), (Get(key),)))
        if result.succeeded or result.responses[0] is not None:
            return identity
    raise Conflict("SIGNAL_RACED", f"run {run_id} changed during all {TRIES_MAX} tries to signal it; try again")


async def _not_ended_or_taken(
    store: Store, record: state_pb2.RunRecord, run_id: str, item: int, signal_id: str
) -> Compare | None:
    """Return the compare that holds while the item's partition has not ended; None if it took the signal before.

    Raises: FailedPrecondition `RUN_ENDED`.
    """
    try:
        return await _not_ended(store, record, run_id, item)
    except FailedPrecondition:
        if signal_id and await _was_taken(store, record, run_id, item, signal_id):
            return None
        raise


async def _not_ended(store: Store, record: state_pb2.RunRecord, run_id: str, item: int) -> Compare:
    """Return the compare that holds while the item's partition has not ended.

    Raises: FailedPrecondition `RUN_ENDED`.
    """
    key = keys.status(run_id, item // record.items_per_partition)
    existing = await store.get(key)
    if existing is None:  # not placed yet
        return absent(key)
    if state_pb2.PartitionStatus.FromString(existing.value).status in TERMINAL:
        raise FailedPrecondition("RUN_ENDED", f"run {run_id} has ended: no step can receive the signal", run_id=run_id)
    return modified_at(key, existing.mod_revision)


async def _was_taken(store: Store, record: state_pb2.RunRecord, run_id: str, item: int, identity: str) -> bool:
    """Return True if the journal of the item's partition has the signal."""
    async for entry in journal_entries(store, run_id, item // record.items_per_partition):
        if entry.inbox_taken.id == identity:
            return True
    return False


__all__ = ["signal"]
