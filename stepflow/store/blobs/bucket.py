"""Blobs in a bucket: S3, GCS, Azure, through `obstore`, which is imported with the first bucket."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any

from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import FailedPrecondition, Invalid, StepflowError, Unavailable
from stepflow.proxies import named_proxy, no_proxy_with_loopback, through
from stepflow.redaction import url_without_credentials
from stepflow.store.blobs.backend import DATA

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PART_BYTES = 8 * 1024 * 1024
PARTS_AT_ONCE = 2
"""Parts of an object that is written as a stream: memory holds no more of it."""


class BucketBackend:
    """An object store, through `obstore`. The type is an attribute (user metadata) of the object."""

    TYPE_ATTRIBUTE = "blobtype"  # Azure accepts identifiers only

    def __init__(self, url: str) -> None:
        from datetime import timedelta

        import obstore
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        self._obstore = obstore
        self._errors = (BaseError, OSError)
        try:
            # Callers retry for longer: they know whether the run can wait.
            patience = timedelta(seconds=10)
            with _loopback_excepted():
                self._store: Any = from_url(url, retry_config={"max_retries": 3, "retry_timeout": patience})
        except (BaseError, ValueError) as error:
            raise Invalid(
                "BLOB_STORE_INVALID", f"{url_without_credentials(url)} cannot be a blob store: {_first_line(error)}"
            ) from None
        self._name = url_without_credentials(url)

    async def write(self, path: str, content: bytes, blob_type: str) -> None:
        try:
            await self._obstore.put_async(
                self._store,
                path,
                content,
                attributes={self.TYPE_ATTRIBUTE: blob_type},
                use_multipart=False,  # one request: all of it or nothing
            )
        except self._errors as error:
            raise self._explain(error) from None

    async def read(self, path: str) -> tuple[bytes, str] | None:
        try:
            found = await self._obstore.get_async(self._store, path)
            if found.meta["size"] > PAYLOAD_BYTES_MAX:
                return b"", DATA  # no blob of a mesh; fails the check of its hash
            content = bytes(await found.bytes_async())
        except FileNotFoundError:
            return None
        except self._errors as error:
            raise self._explain(error) from None
        return content, found.attributes.get(self.TYPE_ATTRIBUTE, DATA)

    async def delete_folder(self, path: str) -> None:
        try:
            async for objects in self._obstore.list(self._store, f"{path}/"):
                await self._delete([item["path"] for item in objects])
        except self._errors as error:
            raise self._explain(error) from None

    async def dates(self, path: str) -> AsyncIterator[tuple[str, float]]:
        try:
            async for objects in self._obstore.list(self._store, f"{path}/"):
                for item in objects:
                    yield item["path"].removeprefix(f"{path}/"), item["last_modified"].timestamp()
        except self._errors as error:
            raise self._explain(error) from None

    async def delete_older(self, path: str, before_s: float) -> bool:
        try:
            found = await self._obstore.head_async(self._store, path)
            if found["last_modified"].timestamp() >= before_s:
                return False
            await self._delete([path])
        except FileNotFoundError:
            return False
        except self._errors as error:
            raise self._explain(error) from None
        return True

    async def write_stream(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        failed: list[BaseException] = []

        async def parts() -> AsyncIterator[bytes]:
            try:
                async for chunk in chunks:
                    if chunk:
                        yield chunk
            except BaseException as error:
                failed.append(error)  # obstore would make an error of its own of it
                raise

        try:
            await self._obstore.put_async(
                self._store, path, parts(), chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            )
        except self._errors as error:
            raise (failed[0] if failed else self._explain(error)) from None

    async def read_range(self, path: str, offset: int, length: int) -> bytes | None:
        try:
            return bytes(await self._obstore.get_range_async(self._store, path, start=offset, length=length))
        except FileNotFoundError:
            return None
        except self._errors as error:
            raise self._explain(error) from None

    async def delete(self, path: str) -> None:
        try:
            await self._delete([path])
        except self._errors as error:
            raise self._explain(error) from None

    async def _delete(self, names: list[str]) -> None:
        try:
            await self._obstore.delete_async(self._store, names)
        except FileNotFoundError:  # deleted concurrently
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    await self._obstore.delete_async(self._store, name)

    def _explain(self, error: Exception) -> StepflowError:
        text = f"blobs in {self._name}: {_first_line(error)}"
        refused = ("PermissionDeniedError", "UnauthenticatedError", "PermissionError", "InvalidPathError")
        if type(error).__name__ in refused:
            return FailedPrecondition("BLOB_STORE_REFUSED", text)
        asked = re.search(r"https?://[^\s\"')]+", str(error))
        way = through(named_proxy(asked[0], os.environ)) if asked else ""
        return Unavailable("BLOB_STORE_UNAVAILABLE", text + (f"; the request goes{way}" if way else ""))


@contextlib.contextmanager
def _loopback_excepted() -> Iterator[None]:
    """Exempt loopback addresses from the proxy for clients created inside.

    obstore reads the environment when a client is created; with explicit options it would ignore the environment's
    others (`AWS_ALLOW_HTTP`).
    """
    before = os.environ.get("NO_PROXY")
    os.environ["NO_PROXY"] = no_proxy_with_loopback(os.environ)
    try:
        yield
    finally:
        if before is None:
            del os.environ["NO_PROXY"]
        else:
            os.environ["NO_PROXY"] = before


def _first_line(error: Exception) -> str:
    """Return the text of an obstore error without possible secrets: debug output, queries of URLs, XML."""
    return re.sub(r"\?[^\s\"')]*|:? *<.*", "", str(error).partition("\n")[0])
