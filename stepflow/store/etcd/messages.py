"""Translation between the types of `stepflow.store` and etcd's messages, with the mesh's prefix on every key.

Messages are filled in place: building one apart and copying it costs three times as much.
"""

from __future__ import annotations

from stepflow.etcd.v1 import etcd_pb2 as pb
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
)


class EtcdMessages:
    """Translates under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode()
        self.prefix_bytes = len(self._prefix)

    def key(self, key: str) -> bytes:
        return self._prefix + key.encode()

    def bounds(self, prefix: str, after: str, before: str = "") -> tuple[bytes, bytes]:
        """Return the first key and the exclusive end of the keys under `prefix` between `after` and `before`."""
        whole = self.key(prefix)
        # UTF-8 has no byte 0xff, so the last byte can be incremented. A zero byte as the end means no end.
        end = whole[:-1] + bytes((whole[-1] + 1,)) if whole else b"\0"
        start = max(whole, self.key(after) + b"\0") if after else whole or b"\0"
        if before:
            end = self.key(before) if end == b"\0" else min(end, self.key(before))
        return start, max(start, end) if before else end

    def fill(self, items: list[KeyValue], size: int, reply: pb.RangeResponse) -> tuple[int, bool]:
        """Add keys up to the size of a page. Return its size in bytes, and True if keys were left out."""
        for index, kv in enumerate(reply.kvs, 1):
            items.append(self.key_value(kv))
            size += len(kv.key) + len(kv.value)
            if size >= PAGE_BYTES_MAX:
                return size, index < len(reply.kvs)
        return size, False

    def key_value(self, kv: pb.KeyValue) -> KeyValue:
        key = kv.key[self.prefix_bytes :].decode()
        return KeyValue(key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)

    def add_compare(self, into: pb.Compare, compare: Compare) -> None:
        into.key = self.key(compare.key)
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

    def add_op(self, into: pb.RequestOp, op: Op) -> None:
        match op:
            case Put():
                put = into.request_put
                put.key = self.key(op.key)
                put.value = op.value
                if op.lease:
                    put.lease = op.lease
                if op.ignore_lease:
                    put.ignore_lease = True

            case Delete():
                into.request_delete_range.key = self.key(op.key)
            case DeletePrefix():
                delete = into.request_delete_range
                delete.key, delete.range_end = self.bounds(op.prefix, "")
            case Get():
                into.request_range.key = self.key(op.key)

            case Range():
                ranged = into.request_range
                ranged.key, ranged.range_end = self.bounds(op.prefix, op.after, op.before)
                ranged.limit = min(op.limit, PAGE_KEYS_MAX)

    def response(self, op: Op, part: pb.ResponseOp) -> Response:
        match op:
            case Put():
                return None
            case Delete() | DeletePrefix():
                return part.response_delete_range.deleted
            case Get():
                kvs = part.response_range.kvs
                return self.key_value(kvs[0]) if kvs else None
            case Range():
                reply = part.response_range
                items: list[KeyValue] = []
                _, cut = self.fill(items, 0, reply)
                return Page(items, cut or reply.more, reply.header.revision)
