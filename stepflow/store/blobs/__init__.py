"""Blobs: contents too large for the store. `BlobStore` keeps them in a directory, in memory or in a bucket.

- `store`: `BlobStore`: ids, scopes, verified reads.
- `backend`: the protocol of backends.
- `directory`: blobs as plain files.
- `memory`: blobs in memory.
- `bucket`: blobs in S3, GCS or Azure.
"""

from stepflow.store.blobs.backend import DATA, SHARED
from stepflow.store.blobs.store import BlobStore

__all__ = ["DATA", "SHARED", "BlobStore"]
