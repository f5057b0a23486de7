"""Blobs: contents too large for the store. `BlobStore` keeps them in a directory, in memory or in a bucket."""

from stepflow.store.blobs.backend import DATA, SHARED
from stepflow.store.blobs.store import BlobStore

__all__ = ["DATA", "SHARED", "BlobStore"]
