"""The store of the mesh: the semantics of `stepflow.store` over an etcd of its users.

- Keys stand under `EtcdConfig.prefix`; the revisions are etcd's own and count what others do in it, too.
- A transaction is sent once. Its outcome is known from a reply, or from an error that says that nothing was done;
  everything else is StoreUnavailable. Whoever must know sends the same transaction again (`stepflow.store.writer`).
- Reads are linearizable, and sent again to another member when one does not answer; so are leases.
- A page ends where `Store.range` says although etcd knows no limit in bytes: it is put together from smaller ranges of
  one revision.
- Times to live are whole seconds, rounded up, and etcd has a least one (2 s as it is started by default).

Connections and errors are `stepflow.store.etcd.client`'s, watches `stepflow.store.etcd.watch`'s.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stepflow.errors import Forbidden, Invalid, NotFound, StepflowError
from stepflow.etcd.v1 import etcd_pb2 as pb
from stepflow.store.checks import check_key, check_range, check_txn
from stepflow.store.etcd.client import (
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_REVOKE,
    RANGE,
    STATUS,
    TXN,
    TXN_READING,
    EtcdClient,
    check_version,
)
from stepflow.store.etcd.metrics import read_metrics
from stepflow.store.etcd.watch import EtcdWatch, Watches
from stepflow.store.protocol import (
    PAGE_BYTES_MAX,
    PAGE_KEYS_MAX,
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
    StoreUnavailable,
    Txn,
    TxnResult,
)
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from stepflow.store.etcd.config import EtcdConfig
    from stepflow.store.etcd.lease import EtcdLeaseRenewer

log = get_logger(__name__)

FIRST_RANGE_KEYS = 128
"""Keys asked for before the size of the values is known: 4 MiB of the largest values that we keep inline."""

UNKNOWN_VERSION = "unknown"

LEASE_TTL_S_MAX = 9_000_000_000
"""etcd's own bound."""


@dataclass(frozen=True, slots=True)
class EtcdStatus:
    """What a member says of itself. The size is that of its database file, which its quota counts."""

    endpoint: str
    version: str
    size_bytes: int
    size_in_use_bytes: int
    has_leader: bool


class EtcdStore:
    """A `stepflow.store.Store`; made by `open`, ended by `close`. Its methods belong to one event loop."""

    def __init__(self, client: EtcdClient, watches: Watches, version: str) -> None:
        self.config = client.config
        self.version = version
        self._client = client
        self._watches = watches
        self._prefix = client.config.prefix.encode()

    @classmethod
    async def open(cls, config: EtcdConfig) -> EtcdStore:
        """Connect, and check the version of every member that answers; the store works with the first of them.

        Raises:
            StoreUnavailable: `STORE_UNREACHABLE`, no endpoint answered; try again.
            FailedPrecondition: `ETCD_VERSION_REFUSED`.
            Invalid: `ETCD_CONFIG_INVALID`, such as a file that cannot be read.
            Unauthenticated, Forbidden: the login.
        """
        client = EtcdClient(config)
        try:
            version = await _choose_endpoint(client)
            store = cls(client, Watches(client, version), version)
            await store.revision()  # also: is the login taken, and is there a leader?
        except BaseException:
            await client.close()
            raise
        return store

    async def get(self, key: str) -> KeyValue | None:
        check_key(key)
        reply = await self._range(pb.RangeRequest(key=self._key(key)))
        return self._key_value(reply.kvs[0]) if reply.kvs else None

    async def range(self, prefix: str, *, after: str = "", limit: int = PAGE_KEYS_MAX, revision: int = 0) -> Page:
        check_range(prefix, after, limit)
        start, end = self._bounds(prefix, after)
        limit = min(limit, PAGE_KEYS_MAX)
        items: list[KeyValue] = []
        size, ask = 0, min(limit, FIRST_RANGE_KEYS)
        while True:
            request = pb.RangeRequest(key=start, range_end=end, limit=ask, revision=revision)
            reply = await self._range(request)
            revision = revision or reply.header.revision
            size, full = self._fill(items, size, reply)
            more = full or reply.more
            if not more or size >= PAGE_BYTES_MAX or len(items) == limit:
                return Page(items, more, revision)
            start = reply.kvs[-1].key + b"\0"
            ask = min(limit - len(items), max(1, (PAGE_BYTES_MAX - size) * len(items) // max(size, 1)))

    async def txn(self, txn: Txn) -> TxnResult:
        check_txn(txn)
        request = pb.TxnRequest()
        for compare in txn.compares:
            self._add_compare(request.compare.add(), compare)
        for op in txn.then:
            self._add_op(request.success.add(), op)
        for op in txn.orelse:
            self._add_op(request.failure.add(), op)
        reads = not any(isinstance(op, (Put, Delete, DeletePrefix)) for op in (*txn.then, *txn.orelse))
        reply = await self._client.call(self._client.kv, TXN_READING if reads else TXN, request)
        self._client.saw(reply.header.revision)
        ops = txn.then if reply.succeeded else txn.orelse
        responses = tuple([self._response(op, part) for op, part in zip(ops, reply.responses, strict=True)])
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
        """Return what keeps leases alive from a thread, over a connection of its own; the caller closes it."""
        from stepflow.store.etcd.lease import EtcdLeaseRenewer

        return EtcdLeaseRenewer(self.config, self._client.lease.endpoint)

    def watch(self, prefix: str, *, from_revision: int = 0) -> EtcdWatch:
        start, end = self._bounds(prefix, "")
        watch = self._watches.open(start, end, len(self._prefix), from_revision)
        if self._client.closed:
            watch.fail(self._client.gone())
        return watch

    async def revision(self) -> int:
        return (await self._range(pb.RangeRequest(key=self._prefix or b"\0"))).header.revision

    async def status(self) -> EtcdStatus:
        """Return what the member that answers now says of itself.

        Raises: StoreUnavailable; Forbidden `STORE_FORBIDDEN`: etcd tells this to root only, and serves no metrics.
        """
        client = self._client
        return await _ask_member(client, client.kv.endpoint)

    async def close(self) -> None:
        self._client.closed = True
        await self._watches.close(self._client.gone())
        await self._client.close()

    # -- to etcd and back -----------------------------------------------------------------------------------------

    async def _range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        try:
            reply = await self._client.call(self._client.kv, RANGE, request)
        except StoreCompacted as error:
            # etcd does not tell which revision was compacted; at least this one was.
            raise StoreCompacted(error.reason, error.message, compacted=request.revision) from None
        self._client.saw(reply.header.revision)
        return reply

    def _key(self, key: str) -> bytes:
        return self._prefix + key.encode()

    def _bounds(self, prefix: str, after: str) -> tuple[bytes, bytes]:
        """Return first key and exclusive end of what begins with `prefix` and comes behind `after`."""
        whole = self._key(prefix)
        # No byte of UTF-8 is 0xff, so the last one can be raised. A zero byte as the end means no end.
        end = whole[:-1] + bytes((whole[-1] + 1,)) if whole else b"\0"
        start = max(whole, self._key(after) + b"\0") if after else whole or b"\0"
        return start, end

    def _fill(self, items: list[KeyValue], size: int, reply: pb.RangeResponse) -> tuple[int, bool]:
        """Add what fits a page. Returns its size in bytes, and whether something was left out."""
        for index, kv in enumerate(reply.kvs, 1):
            items.append(self._key_value(kv))
            size += len(kv.key) + len(kv.value)
            if size >= PAGE_BYTES_MAX:
                return size, index < len(reply.kvs)
        return size, False

    def _key_value(self, kv: pb.KeyValue) -> KeyValue:
        key = kv.key[len(self._prefix) :].decode()
        return KeyValue(key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)

    # Filled in place: a message made apart and handed over costs three times as much.

    def _add_compare(self, into: pb.Compare, compare: Compare) -> None:
        into.key = self._key(compare.key)
        if compare.relation == ">":
            into.result = pb.Compare.RESULT_GREATER
        operand = compare.operand
        if isinstance(operand, bytes):
            into.target = pb.Compare.TARGET_VALUE
            into.value = operand
        elif compare.target == "create_revision":
            into.target = pb.Compare.TARGET_CREATE
            into.create_revision = operand
        elif compare.target == "mod_revision":
            into.target = pb.Compare.TARGET_MOD
            into.mod_revision = operand
        else:
            into.target = pb.Compare.TARGET_VERSION
            into.version = operand

    def _add_op(self, into: pb.RequestOp, op: Op) -> None:
        match op:
            case Put():
                put = into.request_put
                put.key = self._key(op.key)
                put.value = op.value
                if op.lease:
                    put.lease = op.lease
                if op.ignore_lease:
                    put.ignore_lease = True
            case Delete():
                into.request_delete_range.key = self._key(op.key)
            case DeletePrefix():
                delete = into.request_delete_range
                delete.key, delete.range_end = self._bounds(op.prefix, "")
            case Get():
                into.request_range.key = self._key(op.key)
            case Range():
                ranged = into.request_range
                ranged.key, ranged.range_end = self._bounds(op.prefix, op.after)
                ranged.limit = min(op.limit, PAGE_KEYS_MAX)

    def _response(self, op: Op, part: pb.ResponseOp) -> Response:
        match op:
            case Put():
                return None
            case Delete() | DeletePrefix():
                return part.response_delete_range.deleted
            case Get():
                kvs = part.response_range.kvs
                return self._key_value(kvs[0]) if kvs else None
            case Range():
                reply = part.response_range
                items: list[KeyValue] = []
                _, cut = self._fill(items, 0, reply)
                return Page(items, cut or reply.more, reply.header.revision)


async def _choose_endpoint(client: EtcdClient) -> str:
    """Check every member that answers, let all connections begin with the first of them, and return its version."""
    endpoints = client.config.endpoints
    answers = await asyncio.gather(*(_ask_status(client.config, endpoint) for endpoint in endpoints))
    errors: list[StepflowError] = []
    version = ""
    for index, answer in enumerate(answers):
        if isinstance(answer, StepflowError):
            errors.append(answer)
            continue
        if answer.version != UNKNOWN_VERSION:
            check_version(answer.version, answer.endpoint)
        if not version and answer.has_leader:
            version = answer.version
            for link in (client.kv, client.lease, client.watch):
                link.prefer(index)
    if version:
        return version
    other = next((error for error in errors if not isinstance(error, StoreUnavailable)), None)
    if other is not None:
        raise other
    if errors:
        raise StoreUnavailable(
            "STORE_UNREACHABLE",
            f"no etcd answers at {', '.join(endpoints)} ({errors[0].message}): is it running, and the address right?",
        )
    raise StoreUnavailable("STORE_UNREACHABLE", f"the etcd members at {', '.join(endpoints)} have no leader now")


async def _ask_status(config: EtcdConfig, endpoint: str) -> EtcdStatus | StepflowError:
    client = EtcdClient(replace(config, endpoints=(endpoint,)))
    try:
        return await _ask_member(client, endpoint)
    except Forbidden:
        log.warning("etcd does not tell this user its version; it must be 3.5.17 or later", endpoint=endpoint)
        return EtcdStatus(endpoint, UNKNOWN_VERSION, 0, 0, True)
    except StepflowError as error:
        return error
    finally:
        await client.close()


async def _ask_member(client: EtcdClient, endpoint: str) -> EtcdStatus:
    try:
        reply: pb.StatusResponse = await client.call(client.kv, STATUS, pb.StatusRequest())
    except Forbidden as refusal:  # under logins, only root may ask; the page of metrics is for everybody
        try:
            metrics = await read_metrics(client.config, endpoint)
            return EtcdStatus(
                endpoint,
                metrics["etcd_server_version"],
                int(float(metrics["etcd_mvcc_db_total_size_in_bytes"])),
                int(float(metrics["etcd_mvcc_db_total_size_in_use_in_bytes"])),
                metrics["etcd_server_has_leader"] != "0",
            )
        except (StoreUnavailable, KeyError, ValueError):
            raise refusal from None
    return EtcdStatus(endpoint, reply.version, reply.db_size, reply.db_size_in_use, reply.leader != 0)
