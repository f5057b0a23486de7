"""Objects of a blob store that are no blobs: named by their writer, of any size, read in parts.

- An object becomes visible whole, or not at all. A write that broke off may leave an invisible draft; in a directory
  `dates` lists it, under a name that begins with a dot.
- An object is never changed; a writer that repeats a name replaces the whole object.
- Names have a folder other than `blobs`. Contents are not verified: their format does that.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stepflow.errors import Invalid, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import Any

    from stepflow.store.blobs.backend import BlobBackend

READ_BYTES_MAX = 64 * 1024 * 1024
"""Most bytes of one read."""

_NAME = re.compile(r"(?!blobs/)[a-z][a-z0-9-]{0,63}/(?!\.{1,2}$)[A-Za-z0-9.][A-Za-z0-9._-]{0,127}")


class BlobObjects:
    """Writes, reads, lists and deletes objects. Names are `folder/name`. Safe for concurrent tasks.

    Each method raises Unavailable or FailedPrecondition, as `BlobStore.put` and `get`; Invalid: `OBJECT_NAME_INVALID`.
    """

    def __init__(self, backend: BlobBackend, watched: Callable[[str, Awaitable[Any]], Awaitable[Any]]) -> None:
        """`watched`: does work of a kind, `put` or `get`, and notes whether the store refuses it."""
        self._backend = backend
        self._watched = watched

    async def write(self, name: str, chunks: AsyncIterator[bytes]) -> None:
        """Write an object durably. Raises: also what `chunks` raises; no object is visible then."""
        await self._watched("put", self._backend.write_stream(_checked(name), chunks))

    async def read(self, name: str, offset: int, length: int) -> bytes:
        """Read a part of an object, shorter at its end. `offset` lies inside the object.

        Raises: NotFound `OBJECT_NOT_FOUND`.
        """
        assert 0 < length <= READ_BYTES_MAX, length
        content: bytes | None = await self._watched("get", self._backend.read_range(_checked(name), offset, length))
        if content is None:
            raise NotFound("OBJECT_NOT_FOUND", f"there is no object {name} in the blob store", name=name)
        return content

    async def delete(self, name: str) -> None:
        """Delete an object. Idempotent."""
        await self._backend.delete(_checked(name))

    def dates(self, folder: str) -> AsyncIterator[tuple[str, float]]:
        """Yield the names in a folder, without it, with the times of their writing, in seconds since 1970."""
        _checked(f"{folder}/name")
        return self._backend.dates(folder)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise Invalid("OBJECT_NAME_INVALID", f"{name[:140]!r} cannot be the name of an object")
    return name


__all__ = ["BlobObjects"]
