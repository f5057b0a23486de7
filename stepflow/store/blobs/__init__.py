"""Blobs: contents too large for the store. `BlobStore` keeps them in a directory, in memory or in a bucket.

- `store`: `BlobStore`: ids, scopes, verified reads.
- `backend`: the protocol of backends.
- `directory`: blobs as plain files.
- `memory`: blobs in memory.
- `bucket`: blobs in S3, GCS or Azure.
- `objects`: objects of any size, with names of their own.
- `waiting`: calls that wait while the store is full or down.
"""

from stepflow.store.blobs.backend import DATA, SHARED
from stepflow.store.blobs.store import BlobStore
from stepflow.store.blobs.waiting import WaitingBlobs

__all__ = ["DATA", "SHARED", "BlobStore", "WaitingBlobs"]
