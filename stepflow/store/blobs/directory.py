"""Blobs in a directory, as plain files.

Not `obstore`: its local store does not fsync, so that a power failure could lose a content that a journal names; it
keeps no attributes (the type), and importing it takes 20 ms of the half second in which `stepflow run` starts.

A file system can stop answering, such as a network disk whose server is gone, and then keeps the threads that ask it.
So the files have threads of their own, and reads and writes a time limit: the rest of the process goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import FailedPrecondition, StepflowError, Unavailable
from stepflow.store.blobs.backend import DATA

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


T = TypeVar("T")

THREADS = min(32, (os.cpu_count() or 1) + 4)

ANSWER_S = 30.0
"""Time limit of a read or write, the wait for a thread included."""


class DirectoryBackend:
    """Plain files, one per content. A type other than `data` is in a second file, `<id>.type`."""

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise FailedPrecondition("BLOB_STORE_REFUSED", f"{root} is not a directory")
        self._root = root
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")

    async def write(self, path: str, content: bytes, blob_type: str) -> None:
        await self._bounded(_write, self._root / path, content, blob_type)

    async def read(self, path: str) -> tuple[bytes, str] | None:
        return await self._bounded(_read, self._root / path)

    async def delete_folder(self, path: str) -> None:
        await self._in_thread(_delete_folder, self._root / path)

    async def dates(self, path: str) -> AsyncIterator[tuple[str, float]]:
        for found in await self._in_thread(_dates, self._root / path):
            yield found

    async def delete_older(self, path: str, before_s: float) -> bool:
        return await self._bounded(_delete_older, self._root / path, before_s)

    async def write_stream(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        draft = await self._bounded(_Draft, self._root / path)
        try:
            async for chunk in chunks:
                await self._bounded(draft.write, chunk)
            await self._bounded(draft.publish)
            await self._bounded(_sync_folder, (self._root / path).parent)
        except BaseException:
            self._threads.submit(draft.discard)
            raise

    async def read_range(self, path: str, offset: int, length: int) -> bytes | None:
        return await self._bounded(_read_range, self._root / path, offset, length)

    async def delete(self, path: str) -> None:
        await self._bounded(_unlink, self._root / path)

    async def _bounded(self, work: Callable[..., T], *arguments: object) -> T:
        """Do work in a thread. Raises: Unavailable; the work may be done later."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._in_thread(work, *arguments)
        except TimeoutError:
            text = f"blobs in {self._root}: the file system did not answer within {ANSWER_S:g} s"
            raise Unavailable("BLOB_STORE_UNAVAILABLE", text) from None

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments))
        except OSError as error:
            raise _explain_os(error, self._root) from None


def _write(path: Path, content: bytes, blob_type: str) -> None:
    type_path = path.with_suffix(".type")
    _make_folder(path.parent)
    if blob_type != DATA:
        _replace(type_path, blob_type.encode())  # before the content, which makes the blob visible
    _replace(path, content)
    if blob_type == DATA:
        type_path.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _read(path: Path) -> tuple[bytes, str] | None:
    try:
        with path.open("rb") as file:
            content = file.read(PAYLOAD_BYTES_MAX + 1)  # a longer file is damaged, and fails the check of its hash
    except FileNotFoundError:
        return None
    try:
        return content, path.with_suffix(".type").read_text("ascii", "replace")
    except FileNotFoundError:
        return content, DATA


def _delete_folder(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _dates(folder: Path) -> list[tuple[str, float]]:
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, at_s) for entry in entries if (at_s := _date(entry)) is not None]
    except FileNotFoundError:
        return []


def _delete_older(path: Path, before_s: float) -> bool:
    try:
        if path.stat().st_mtime >= before_s:
            return False
        path.unlink()
        path.with_suffix(".type").unlink(missing_ok=True)
    except FileNotFoundError:
        return False
    return True


def _read_range(path: Path, offset: int, length: int) -> bytes | None:
    try:
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)
    except FileNotFoundError:
        return None


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


class _Draft:
    """A file that replaces another one durably and atomically: readers see the whole old or the whole new content."""

    def __init__(self, path: Path) -> None:
        _make_folder(path.parent)
        self._path = path
        self._draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        handle = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = open(handle, "wb", buffering=0)  # noqa: PTH123, SIM115  # opens the descriptor, whose mode is set

    def write(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            view = view[self._file.write(view) :]

    def publish(self) -> None:
        with self._file:
            os.fsync(self._file.fileno())
        self._draft.replace(self._path)

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
            self._draft.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    draft = _Draft(path)
    try:
        draft.write(content)
        draft.publish()
    except BaseException:
        draft.discard()
        raise


def _date(entry: os.DirEntry[str]) -> float | None:
    """Return when a file was written; None if it has gone since, such as a renamed draft."""
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return None


def _make_folder(folder: Path) -> None:
    """Create a folder and its missing parents durably, accessible to their owner only."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):  # created concurrently by another task
        folder.mkdir(mode=0o700)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def _explain_os(error: OSError, root: Path) -> StepflowError:
    text = f"blobs in {root}: {error.strerror or error}"
    if error.errno in _FULL:
        return Unavailable("BLOB_STORE_FULL", f"{text} ({errno.errorcode[error.errno]}); free some space there")
    if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)):
        return FailedPrecondition("BLOB_STORE_REFUSED", text)
    return Unavailable("BLOB_STORE_UNAVAILABLE", text)
