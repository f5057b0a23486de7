"""Blobs: immutable contents too large for the store, named by their hash.

- A blob's id is the SHA-256 of its content (`codec.blob_id`), accepted in any case and returned in lower case.
- `put` returns after the content is durable, so every published id can be read.
- `get` verifies the hash of the bytes it returns.
- Layout: `blobs/shared/<id>` for blobs that user code or clients can name, `blobs/<root run id>/<id>` for values that
  the engine moved out of line, deleted with their run (`delete_scope`). A repeated put renews date and type. Other
  folders have `objects`.
- `trouble` is the last refusal of the backend, for health reports; it ends with the next success.

Not here: the removal of shared blobs (`control_plane/shared_blobs.py`), and inline values (`codec`).
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stepflow.codec import PAYLOAD_BYTES_MAX, blob_id
from stepflow.errors import DataLoss, FailedPrecondition, Invalid, NotFound, StepflowError, Unavailable
from stepflow.store.blobs.backend import DATA, SHARED, BlobBackend
from stepflow.store.blobs.bucket import BucketBackend
from stepflow.store.blobs.directory import DirectoryBackend
from stepflow.store.blobs.memory import MemoryBackend
from stepflow.store.blobs.objects import BlobObjects
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = get_logger(__name__)

_T = TypeVar("_T")

INLINE_HASH_BYTES_MAX = 256 * 1024
"""Larger contents are hashed in a thread; this size takes about 0.2 ms."""

_ID = re.compile(r"[0-9a-fA-F]{64}")
_SCOPE = re.compile(r"[A-Za-z0-9_-]{1,128}")
_TYPE = re.compile(r"[A-Za-z0-9._/+-]{1,64}")


class BlobStore:
    """Checks requests and hashes contents; a backend keeps them. Safe for concurrent tasks."""

    def __init__(self, backend: BlobBackend) -> None:
        self.on_trouble: Callable[[StepflowError | None], object] = lambda _error: None
        """Called on the loop with the new `trouble`, whenever it changes."""
        self.objects = BlobObjects(backend, self._watched)
        """What is no blob: objects with names of their own."""
        self._backend = backend
        self._troubles: dict[str, StepflowError] = {}
        """By `put` and `get`: the error of the last one."""

    @property
    def trouble(self) -> StepflowError | None:
        """Why the store refused the last put, or the last get; None if it refused neither."""
        return self._troubles.get("put") or self._troubles.get("get")

    @classmethod
    def open(cls, location: str | os.PathLike[str]) -> BlobStore:
        """Open a directory (path or `file://`), `memory://`, or a bucket (`s3://`, `gs://`, `az://`, …).

        A directory is created by the first put. Credentials and endpoint of a bucket come from the environment, by
        the names that its provider uses (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …).

        Raises:
            Invalid: `BLOB_STORE_INVALID`, an unsupported location.
            FailedPrecondition: `BLOB_STORE_REFUSED`, the path is no directory.
        """
        text = os.fspath(location)
        scheme, separator, rest = text.partition("://")
        if not separator:
            return cls(DirectoryBackend(Path(text)))
        match scheme:
            case "file":
                return cls(DirectoryBackend(Path(rest)))
            case "memory":
                return cls(MemoryBackend())
            case _:
                return cls(BucketBackend(text))

    async def put(self, content: bytes, *, scope: str = SHARED, blob_type: str = DATA) -> str:
        """Store a content durably and return its id. Idempotent.

        Raises:
            Invalid: `PAYLOAD_TOO_LARGE`, `BLOB_SCOPE_INVALID`, `BLOB_TYPE_INVALID`.
            Unavailable, FailedPrecondition: `BLOB_STORE_UNAVAILABLE`, `BLOB_STORE_REFUSED`; it may have been stored.
            Unavailable: `BLOB_STORE_FULL`, no space is left.
        """
        if len(content) > PAYLOAD_BYTES_MAX:
            raise Invalid(
                "PAYLOAD_TOO_LARGE",
                f"a blob of {len(content):,} bytes; the limit is {PAYLOAD_BYTES_MAX:,}",
                size=len(content),
                bytes_max=PAYLOAD_BYTES_MAX,
            )
        if not _TYPE.fullmatch(blob_type):
            raise Invalid("BLOB_TYPE_INVALID", f"{blob_type!r} cannot be the type of a blob")

        folder = _folder(scope)
        identity = await _hash(content)
        await self._watched("put", self._backend.write(f"{folder}/{identity}", content, blob_type))
        return identity

    async def get(self, identity: str, *, scope: str = SHARED) -> tuple[bytes, str]:
        """Return content and type.

        Raises:
            NotFound: `BLOB_NOT_FOUND`.
            Invalid: `BLOB_ID_INVALID`, `BLOB_SCOPE_INVALID`.
            DataLoss: `BLOB_CORRUPT`, the stored bytes have another hash.
            Unavailable, FailedPrecondition: `BLOB_STORE_UNAVAILABLE`, `BLOB_STORE_REFUSED`.
        """
        if not _ID.fullmatch(identity):
            raise Invalid("BLOB_ID_INVALID", f"{identity[:80]!r} is not a blob id: 64 hexadecimal digits")

        identity = identity.lower()
        found = await self._watched("get", self._backend.read(f"{_folder(scope)}/{identity}"))
        if found is None:
            raise NotFound("BLOB_NOT_FOUND", f"there is no blob {identity} ({scope})", blob_id=identity, scope=scope)
        if await _hash(found[0]) != identity:
            raise DataLoss("BLOB_CORRUPT", f"the content of blob {identity} ({scope}) is damaged", blob_id=identity)
        return found

    async def _watched(self, kind: str, work: Awaitable[_T]) -> _T:
        """Do work of the backend, and note whether the store refuses it."""
        try:
            result = await work
        except (Unavailable, FailedPrecondition) as error:
            before, self._troubles[kind] = self._troubles.get(kind), error
            if before is None or before.message != error.message:
                log.warning(f"the blob store refuses a {kind}", reason=error.reason, error=error.message)
                self.on_trouble(self.trouble)
            raise

        if self._troubles and self._troubles.pop(kind, None) is not None:
            log.info(f"the blob store takes a {kind} again")
            self.on_trouble(self.trouble)
        return result

    async def delete_scope(self, scope: str) -> None:
        """Delete all blobs of a root run. Idempotent. Raises: Invalid, also for the shared scope."""
        if scope == SHARED:
            raise Invalid("BLOB_SCOPE_INVALID", "the shared scope cannot be deleted: its blobs belong to no single run")
        await self._backend.delete_folder(_folder(scope))

    async def dates(self, scope: str = SHARED) -> dict[str, float]:
        """Return all blobs of a scope with the times of their last put, in seconds since 1970."""
        return {name: put_at_s async for name, put_at_s in self._backend.dates(_folder(scope)) if _ID.fullmatch(name)}

    async def delete_shared(self, identity: str, before_s: float) -> bool:
        """Delete a shared blob unless it was put since `before_s`; return True if this call deleted it."""
        if not _ID.fullmatch(identity):
            raise Invalid("BLOB_ID_INVALID", f"{identity[:80]!r} is not a blob id: 64 hexadecimal digits")
        return await self._backend.delete_older(f"{_folder(SHARED)}/{identity.lower()}", before_s)


async def _hash(content: bytes) -> str:
    if len(content) <= INLINE_HASH_BYTES_MAX:
        return blob_id(content)
    return await asyncio.to_thread(blob_id, content)


def _folder(scope: str) -> str:
    if not _SCOPE.fullmatch(scope):
        raise Invalid("BLOB_SCOPE_INVALID", f"{scope[:140]!r} is neither a run id nor {SHARED!r}")
    return f"blobs/{scope}"
