"""The store: all durable state of a mesh. Import its protocol from here.

The protocol:
- `protocol`: semantics and types.
- `checks`: limits of requests.
- `keys`: all keys of the mesh.
- `etcd/`: the store of a mesh.
- `sqlite/`: the embedded store.
- `watch_queue`: a watch's bounded queue, the same for both.

Over any store:
- `lease`: leases and their renewal.
- `follow`: list and watch, across failures.
- `writer`: the fenced writes of an executor.
- `flush`: submissions to the writer, gathered into transactions.
- `inline_bound`: the size above which values become blobs.
- `grouping`: independent transactions sent together.

Without a store:
- `blobs/`: contents too large for the store.
"""

from stepflow.store.checks import check_branch, check_key, check_range, check_txn, op_bytes, prefix_end
from stepflow.store.protocol import (
    OP_OVERHEAD_BYTES,
    PAGE_BYTES_MAX,
    PAGE_KEYS_MAX,
    TXN_BYTES_MAX,
    TXN_OPS_MAX,
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
    Store,
    StoreCompacted,
    StoreEvent,
    StoreUnavailable,
    StoreUnreadable,
    StoreWatch,
    Txn,
    TxnResult,
    WatchBatch,
    absent,
    created_at,
    delete,
    modified_at,
    present,
    put,
    range_all,
    value_is,
    version_is,
)

__all__ = [
    "OP_OVERHEAD_BYTES",
    "PAGE_BYTES_MAX",
    "PAGE_KEYS_MAX",
    "TXN_BYTES_MAX",
    "TXN_OPS_MAX",
    "Compare",
    "Delete",
    "DeletePrefix",
    "Get",
    "KeyValue",
    "Op",
    "Page",
    "Put",
    "Range",
    "Response",
    "Store",
    "StoreCompacted",
    "StoreEvent",
    "StoreUnavailable",
    "StoreUnreadable",
    "StoreWatch",
    "Txn",
    "TxnResult",
    "WatchBatch",
    "absent",
    "check_branch",
    "check_key",
    "check_range",
    "check_txn",
    "created_at",
    "delete",
    "modified_at",
    "op_bytes",
    "prefix_end",
    "present",
    "put",
    "range_all",
    "value_is",
    "version_is",
]
