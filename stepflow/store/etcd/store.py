"""The store of a mesh: the semantics of `stepflow.store` over the users' etcd.

- All keys are under `EtcdConfig.prefix`. Revisions are etcd's own and also count changes by other users of the etcd.
- A transaction is sent once. A reply decides it, and so does an error that rules out an effect; any other error is
  StoreUnavailable. A caller that must know the outcome resends the transaction (`stepflow.store.writer`).
- Reads are linearizable and retried at another member; so are leases.
- Etcd has no page limit in bytes, so a page is assembled from smaller ranges of one revision.
- An etcd that was wiped, or restored from an older copy, is recognised by its lower revision: watches end with
  StoreCompacted, so that their owners list again.
- Times to live are whole seconds, rounded up, with a minimum set by etcd (2 s by default).

Not here: connections and errors (`client`), messages (`messages`), watches (`watch`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stepflow.errors import Invalid, NotFound
from stepflow.etcd.v1 import etcd_pb2 as pb
from stepflow.store.checks import check_key, check_range, check_txn
from stepflow.store.etcd.client import (
    COMPACT,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_REVOKE,
    RANGE,
    TXN,
    TXN_READING,
    EtcdClient,
)
from stepflow.store.etcd.members import EtcdStatus, ask_member, choose_endpoint
from stepflow.store.etcd.messages import EtcdMessages
from stepflow.store.etcd.watch import EtcdWatch, Watches
from stepflow.store.protocol import (
    PAGE_BYTES_MAX,
    PAGE_KEYS_MAX,
    Delete,
    DeletePrefix,
    KeyValue,
    Page,
    Put,
    StoreCompacted,
    Txn,
    TxnResult,
)

if TYPE_CHECKING:
    from stepflow.store.etcd.config import EtcdConfig
    from stepflow.store.etcd.lease import EtcdLeaseRenewer

FIRST_RANGE_KEYS = 128
"""Keys of the first range of a page, before the size of values is known: 4 MiB of the largest inline values."""

LEASE_TTL_S_MAX = 9_000_000_000
"""etcd's limit."""


class EtcdStore:
    """A `stepflow.store.Store` from `open` to `close`. Its methods belong to one event loop."""

    def __init__(self, client: EtcdClient, watches: Watches, version: str) -> None:
        self.config = client.config
        self.version = version
        self._client = client
        self._watches = watches
        client.on_replaced = watches.end_ahead
        watches.ask_revision = self.revision
        self._messages = EtcdMessages(client.config.prefix)

    @classmethod
    async def open(cls, config: EtcdConfig) -> EtcdStore:
        """Connect to the first member that answers, and check the version of all that answer.

        Raises:
            StoreUnavailable: `STORE_UNREACHABLE`, no endpoint answered; try again.
            FailedPrecondition: `ETCD_VERSION_REFUSED`.
            Invalid: `ETCD_CONFIG_INVALID`, such as a file that cannot be read.
            Unauthenticated, Forbidden: the login.
        """
        client = EtcdClient(config)
        try:
            version = await choose_endpoint(client)
            store = cls(client, Watches(client, version), version)
            await store.revision()  # verifies the login, and that there is a leader
        except BaseException:
            await client.close()
            raise
        return store

    async def get(self, key: str) -> KeyValue | None:
        check_key(key)
        reply = await self._range(pb.RangeRequest(key=self._messages.key(key)))
        return self._messages.key_value(reply.kvs[0]) if reply.kvs else None

    async def range(self, prefix: str, *, after: str = "", limit: int = PAGE_KEYS_MAX, revision: int = 0) -> Page:
        check_range(prefix, after, limit)
        start, end = self._messages.bounds(prefix, after)
        limit = min(limit, PAGE_KEYS_MAX)
        items: list[KeyValue] = []
        size, ask = 0, min(limit, FIRST_RANGE_KEYS)
        while True:
            request = pb.RangeRequest(key=start, range_end=end, limit=ask, revision=revision)
            try:
                reply = await self._range(request)
            except StoreCompacted:
                if not items:
                    raise
                return Page(items, True, revision)  # too slow for the rest; the next page reports it
            revision = revision or reply.header.revision
            size, full = self._messages.fill(items, size, reply)
            more = full or reply.more
            if not more or size >= PAGE_BYTES_MAX or len(items) == limit:
                return Page(items, more, revision)
            start = reply.kvs[-1].key + b"\0"
            ask = min(limit - len(items), max(1, (PAGE_BYTES_MAX - size) * len(items) // max(size, 1)))

    async def txn(self, txn: Txn) -> TxnResult:
        check_txn(txn)
        request = pb.TxnRequest()
        for compare in txn.compares:
            self._messages.add_compare(request.compare.add(), compare)
        for op in txn.then:
            self._messages.add_op(request.success.add(), op)
        for op in txn.orelse:
            self._messages.add_op(request.failure.add(), op)

        reads = not any(isinstance(op, (Put, Delete, DeletePrefix)) for op in (*txn.then, *txn.orelse))
        asked_at = self._client.revision
        reply = await self._client.call(self._client.kv, TXN_READING if reads else TXN, request)
        self._client.answered(asked_at, reply.header.revision)

        ops = txn.then if reply.succeeded else txn.orelse
        responses = tuple([self._messages.response(op, part) for op, part in zip(ops, reply.responses, strict=True)])
        return TxnResult(reply.succeeded, reply.header.revision, responses)

    async def lease_grant(self, ttl_s: float) -> int:
        if not 0 < ttl_s <= LEASE_TTL_S_MAX:
            raise Invalid("LEASE_TTL_INVALID", f"a lease of {ttl_s} s: it must be above 0 and finite")
        reply = await self._client.call(self._client.lease, LEASE_GRANT, pb.LeaseGrantRequest(ttl=math.ceil(ttl_s)))
        self._client.saw(reply.header.revision)
        return reply.id

    async def lease_keep_alive(self, lease: int) -> float:
        reply = await self._client.exchange(self._client.lease, LEASE_KEEP_ALIVE, pb.LeaseKeepAliveRequest(id=lease))
        self._client.saw(reply.header.revision)
        if reply.ttl <= 0:
            raise NotFound("LEASE_GONE", "the lease has ended")
        return float(reply.ttl)

    async def lease_revoke(self, lease: int) -> None:
        reply = await self._client.call(self._client.lease, LEASE_REVOKE, pb.LeaseRevokeRequest(id=lease))
        self._client.saw(reply.header.revision)

    def lease_renewer(self) -> EtcdLeaseRenewer:
        """Return a renewer for use in a thread, with its own connection. The caller closes it."""
        from stepflow.store.etcd.lease import EtcdLeaseRenewer

        return EtcdLeaseRenewer(self.config, self._client.lease.endpoint)

    def watch(self, prefix: str, *, from_revision: int = 0) -> EtcdWatch:
        start, end = self._messages.bounds(prefix, "")
        watch = self._watches.open(start, end, self._messages.prefix_bytes, from_revision)
        if self._client.closed:
            watch.fail(self._client.gone())
        return watch

    async def revision(self) -> int:
        return (await self._range(pb.RangeRequest(key=self._messages.key("") or b"\0"))).header.revision

    async def compact(self, revision: int) -> None:
        try:
            await self._client.call(self._client.kv, COMPACT, pb.CompactionRequest(revision=revision))
        except StoreCompacted:  # by an earlier call, or by etcd itself
            return

    async def status(self) -> EtcdStatus:
        """Return the status of the current member.

        Raises: StoreUnavailable; Forbidden `STORE_FORBIDDEN`: only root may ask, and the member serves no metrics.
        """
        client = self._client
        return await ask_member(client, client.kv.endpoint)

    async def close(self) -> None:
        self._client.closed = True
        await self._watches.close(self._client.gone())
        await self._client.close()

    async def _range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        asked_at = self._client.revision
        try:
            reply = await self._client.call(self._client.kv, RANGE, request)
        except StoreCompacted as error:
            # etcd does not report the compacted revision; at least this one was compacted.
            raise StoreCompacted(error.reason, error.message, compacted=request.revision) from None
        self._client.answered(asked_at, reply.header.revision)
        return reply
