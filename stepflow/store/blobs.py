"""Blobs: immutable contents too large for the store, named by their hash.

- A blob's id is the SHA-256 of its content (`codec.blob_id`); ids are accepted in any case and given in lower case.
- `put` returns after the content is durable: whoever is told an id can read it, whatever dies meanwhile.
- `get` returns only bytes that have the asked hash.
- Layout: `blobs/shared/<id>` for what user code or clients can name, `blobs/<root run id>/<id>` for what the engine
  moved aside; the latter goes with its run (`delete_scope`). Putting a blob again renews its date, and the last type
  put counts.

A directory is served here with plain files, and memory with a dict; `obstore` serves S3, GCS and Azure. Its local
store does not fsync, so a content could be gone after a power failure although a journal names it, it keeps no
attributes (the type), and importing it takes 20 ms of the half second in which `stepflow run` starts.

Not here: who removes shared blobs, and when (`control_plane/shared_blobs.py`), and values small enough to stay inline
(`codec`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stepflow.codec import PAYLOAD_BYTES_MAX, blob_id
from stepflow.errors import DataLoss, FailedPrecondition, Invalid, NotFound, StepflowError, Unavailable
from stepflow.proxies import named_proxy, no_proxy_with_loopback, through

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SHARED = "shared"
"""The scope of blobs that belong to no run."""

DATA = "data"
"""The type of a blob about which nothing more is known."""

INLINE_HASH_BYTES_MAX = 256 * 1024
"""A larger content is hashed in a thread; this much takes some 0.2 ms."""

_ID = re.compile(r"[0-9a-fA-F]{64}")
_SCOPE = re.compile(r"[A-Za-z0-9_-]{1,128}")
_TYPE = re.compile(r"[A-Za-z0-9._/+-]{1,64}")


class _Place(Protocol):
    """Where contents lie, by path. Errors of the place itself become StepflowErrors there."""

    async def write(self, path: str, content: bytes, blob_type: str) -> None: ...

    async def read(self, path: str) -> tuple[bytes, str] | None: ...

    async def delete_folder(self, path: str) -> None: ...

    def dates(self, path: str) -> AsyncIterator[tuple[str, float]]:
        """Yield the names in a folder with the instants of their last put, in seconds since 1970."""
        ...

    async def delete_older(self, path: str, before_s: float) -> bool:
        """Delete a content that was last put before this instant; return whether it was."""
        ...


class BlobStore:
    """See the head of this module; made by `open`. May be used from several tasks at once."""

    def __init__(self, place: _Place) -> None:
        self._place = place

    @classmethod
    def open(cls, location: str | os.PathLike[str]) -> BlobStore:
        """Open a directory (path or `file://`), `memory://`, or a bucket (`s3://`, `gs://`, `az://`, …).

        A directory is created by the first put. Credentials and endpoint of a bucket come from the environment, by
        the names that its provider uses (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …).

        Raises:
            Invalid: `BLOB_STORE_INVALID`, not a location that anybody serves.
            FailedPrecondition: `BLOB_STORE_REFUSED`, the path is no directory.
        """
        text = os.fspath(location)
        scheme, separator, rest = text.partition("://")
        if not separator:
            return cls(_Directory(Path(text)))
        match scheme:
            case "file":
                return cls(_Directory(Path(rest)))
            case "memory":
                return cls(_Memory())
            case _:
                return cls(_Bucket(text))

    async def put(self, content: bytes, *, scope: str = SHARED, blob_type: str = DATA) -> str:
        """Store a content durably and return its id; safe to repeat.

        Raises:
            Invalid: `PAYLOAD_TOO_LARGE`, `BLOB_SCOPE_INVALID`, `BLOB_TYPE_INVALID`.
            Unavailable, FailedPrecondition: `BLOB_STORE_UNAVAILABLE`, `BLOB_STORE_REFUSED`; it may have been stored.
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
        await self._place.write(f"{folder}/{identity}", content, blob_type)
        return identity

    async def get(self, identity: str, *, scope: str = SHARED) -> tuple[bytes, str]:
        """Return content and type.

        Raises:
            NotFound: `BLOB_NOT_FOUND`.
            Invalid: `BLOB_ID_INVALID`, `BLOB_SCOPE_INVALID`.
            DataLoss: `BLOB_CORRUPT`, what lies there has another hash.
            Unavailable, FailedPrecondition: `BLOB_STORE_UNAVAILABLE`, `BLOB_STORE_REFUSED`.
        """
        if not _ID.fullmatch(identity):
            raise Invalid("BLOB_ID_INVALID", f"{identity[:80]!r} is not a blob id: 64 hexadecimal digits")
        identity = identity.lower()
        found = await self._place.read(f"{_folder(scope)}/{identity}")
        if found is None:
            raise NotFound("BLOB_NOT_FOUND", f"there is no blob {identity} ({scope})", blob_id=identity, scope=scope)
        if await _hash(found[0]) != identity:
            raise DataLoss("BLOB_CORRUPT", f"the content of blob {identity} ({scope}) is damaged", blob_id=identity)
        return found

    async def delete_scope(self, scope: str) -> None:
        """Delete all blobs of a root run; safe to repeat. Raises: Invalid, for the shared scope too."""
        if scope == SHARED:
            raise Invalid("BLOB_SCOPE_INVALID", "shared blobs are not deleted together: they belong to nobody alone")
        await self._place.delete_folder(_folder(scope))

    async def dates(self, scope: str = SHARED) -> dict[str, float]:
        """Return all blobs of a scope with the instants of their last put, in seconds since 1970."""
        return {name: put_at_s async for name, put_at_s in self._place.dates(_folder(scope)) if _ID.fullmatch(name)}

    async def delete_shared(self, identity: str, before_s: float) -> bool:
        """Delete a shared blob, unless it was put again since `before_s`; return whether it is gone by our hand."""
        if not _ID.fullmatch(identity):
            raise Invalid("BLOB_ID_INVALID", f"{identity[:80]!r} is not a blob id: 64 hexadecimal digits")
        return await self._place.delete_older(f"{_folder(SHARED)}/{identity.lower()}", before_s)


async def _hash(content: bytes) -> str:
    if len(content) <= INLINE_HASH_BYTES_MAX:
        return blob_id(content)
    return await asyncio.to_thread(blob_id, content)


def _folder(scope: str) -> str:
    if not _SCOPE.fullmatch(scope):
        raise Invalid("BLOB_SCOPE_INVALID", f"{scope[:140]!r} is neither a run id nor {SHARED!r}")
    return f"blobs/{scope}"


class _Memory:
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


class _Directory:
    """Plain files. A type other than `data` stands in a second file beside the content, `<id>.type`."""

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise FailedPrecondition("BLOB_STORE_REFUSED", f"{root} is not a directory")
        self._root = root

    async def write(self, path: str, content: bytes, blob_type: str) -> None:
        await asyncio.to_thread(self._write, self._root / path, content, blob_type)

    async def read(self, path: str) -> tuple[bytes, str] | None:
        return await asyncio.to_thread(self._read, self._root / path)

    async def delete_folder(self, path: str) -> None:
        await asyncio.to_thread(self._delete, self._root / path)

    async def dates(self, path: str) -> AsyncIterator[tuple[str, float]]:
        for found in await asyncio.to_thread(self._dates, self._root / path):
            yield found

    async def delete_older(self, path: str, before_s: float) -> bool:
        return await asyncio.to_thread(self._delete_older, self._root / path, before_s)

    def _dates(self, folder: Path) -> list[tuple[str, float]]:
        try:
            with os.scandir(folder) as entries:
                return [(entry.name, at_s) for entry in entries if (at_s := _date(entry)) is not None]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _explain_os(error, self._root) from None

    def _delete_older(self, path: Path, before_s: float) -> bool:
        try:
            if path.stat().st_mtime >= before_s:
                return False
            path.unlink()
            path.with_suffix(".type").unlink(missing_ok=True)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _explain_os(error, self._root) from None
        return True

    def _write(self, path: Path, content: bytes, blob_type: str) -> None:
        type_path = path.with_suffix(".type")
        try:
            _make_folder(path.parent)
            if blob_type != DATA:
                _replace(type_path, blob_type.encode())  # before the content: that one makes the blob visible
            _replace(path, content)
            if blob_type == DATA:
                type_path.unlink(missing_ok=True)
            _sync_folder(path.parent)
        except OSError as error:
            raise _explain_os(error, self._root) from None

    def _read(self, path: Path) -> tuple[bytes, str] | None:
        try:
            with path.open("rb") as file:
                content = file.read(PAYLOAD_BYTES_MAX + 1)  # a longer file is damaged anyway, as its hash will show
            try:
                blob_type = path.with_suffix(".type").read_text("ascii", "replace")
            except FileNotFoundError:
                blob_type = DATA
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _explain_os(error, self._root) from None
        return content, blob_type

    def _delete(self, path: Path) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)
        except OSError as error:
            raise _explain_os(error, self._root) from None


def _replace(path: Path, content: bytes) -> None:
    """Write a file durably so that under its name there is always a whole content, the old or the new one."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "wb", buffering=0) as file:  # noqa: PTH123  # of a descriptor: the mode is set with it
            view = memoryview(content)
            while view:
                view = view[file.write(view) :]
            os.fsync(handle)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _date(entry: os.DirEntry[str]) -> float | None:
    """Return when a file was written; None for one that is gone by now, such as a draft that was renamed."""
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return None


def _make_folder(folder: Path) -> None:
    """Create a folder, and what is missing above it, for its owner only, and so that it survives a power failure."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):  # another task makes it at the same time
        folder.mkdir(mode=0o700)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain_os(error: OSError, root: Path) -> StepflowError:
    text = f"blobs in {root}: {error.strerror or error}"
    if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)):
        return FailedPrecondition("BLOB_STORE_REFUSED", text)
    return Unavailable("BLOB_STORE_UNAVAILABLE", text)


class _Bucket:
    """An object store behind `obstore`. The type is an attribute (user metadata) of the object."""

    TYPE_ATTRIBUTE = "blobtype"  # Azure takes only names that are identifiers

    def __init__(self, url: str) -> None:
        from datetime import timedelta

        import obstore
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        self._obstore = obstore
        self._errors = (BaseError, OSError)
        try:
            # Longer patience is the caller's: it knows whether the run can wait.
            patience = timedelta(seconds=10)
            with _loopback_excepted():
                self._store: Any = from_url(url, retry_config={"max_retries": 3, "retry_timeout": patience})
        except (BaseError, ValueError) as error:
            raise Invalid(
                "BLOB_STORE_INVALID", f"{_without_secrets(url)} cannot be a blob store: {_first_line(error)}"
            ) from None
        self._name = _without_secrets(url)

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
                return b"", DATA  # never a content of ours; its hash will show that
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

    async def _delete(self, names: list[str]) -> None:
        try:
            await self._obstore.delete_async(self._store, names)
        except FileNotFoundError:  # somebody else deletes the same folder
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
    """Let a client that is made within use no proxy for this machine's own addresses.

    obstore reads the environment when a client is made, and passing it options would make it forget the environment's
    other ones (`AWS_ALLOW_HTTP`).
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


def _without_secrets(url: str) -> str:
    """Cut user, password and query out of a URL: keys and signatures travel there."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])


def _first_line(error: Exception) -> str:
    """Return an error of obstore without its debug part, the queries of URLs and the server's XML: secrets' places."""
    return re.sub(r"\?[^\s\"')]*|:? *<.*", "", str(error).partition("\n")[0])
