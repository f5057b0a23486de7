"""Blobs in memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stepflow.store.blobs.backend import DATA

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class MemoryBackend:
    """Loses its contents with the process."""

    def __init__(self) -> None:
        self._blobs: dict[str, tuple[bytes, str]] = {}
        self._dates: dict[str, float] = {}

    async def write(self, path: str, content: bytes, blob_type: str) -> None:
        self._blobs[path] = (content, blob_type)
        self._dates[path] = time.time()

    async def read(self, path: str) -> tuple[bytes, str] | None:
        return self._blobs.get(path)

    async def delete_folder(self, path: str) -> None:
        for name in [name for name in self._blobs if name.startswith(f"{path}/")]:
            del self._blobs[name], self._dates[name]

    async def dates(self, path: str) -> AsyncIterator[tuple[str, float]]:
        for name, put_at_s in list(self._dates.items()):
            if name.startswith(f"{path}/"):
                yield name.removeprefix(f"{path}/"), put_at_s

    async def delete_older(self, path: str, before_s: float) -> bool:
        if self._dates.get(path, before_s) >= before_s:
            return False
        del self._blobs[path], self._dates[path]
        return True

    async def write_stream(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        await self.write(path, b"".join([chunk async for chunk in chunks]), DATA)

    async def read_range(self, path: str, offset: int, length: int) -> bytes | None:
        found = self._blobs.get(path)
        return None if found is None else found[0][offset : offset + length]

    async def delete(self, path: str) -> None:
        self._blobs.pop(path, None)
        self._dates.pop(path, None)
