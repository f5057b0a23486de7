"""The protocol of blob backends: a directory, memory, or a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SHARED = "shared"
"""Scope of blobs that belong to no run."""

DATA = "data"
"""Type of a blob without a more specific one."""


class BlobBackend(Protocol):
    """Keeps contents by path. Raises StepflowErrors only."""

    async def write(self, path: str, content: bytes, blob_type: str) -> None: ...

    async def read(self, path: str) -> tuple[bytes, str] | None: ...

    async def delete_folder(self, path: str) -> None: ...

    def dates(self, path: str) -> AsyncIterator[tuple[str, float]]:
        """Yield the names in a folder with the times of their last put, in seconds since 1970."""
        ...

    async def delete_older(self, path: str, before_s: float) -> bool:
        """Delete a content whose last put is before `before_s`; return True if this call deleted it."""
        ...

    async def write_stream(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Write an object of any size: all of it becomes visible at the end, or none of it."""
        ...

    async def read_range(self, path: str, offset: int, length: int) -> bytes | None:
        """Read a part of an object, shorter at its end; None without the object.

        `offset` lies inside the object, and `length` is at least 1.
        """
        ...

    async def delete(self, path: str) -> None:
        """Delete an object. Idempotent."""
        ...
