"""The contract of blob stores: a directory, memory, and a bucket behind a small S3 server in this test."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from stepflow.codec import PAYLOAD_BYTES_MAX, blob_id
from stepflow.errors import DataLoss, FailedPrecondition, Invalid, NotFound, StepflowError, Unavailable
from stepflow.store.blobs import BlobStore, directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

RUN = "0192f0c1-2b6e-7cc0-8000-000000000001"
SECRET = "a-very-secret-key"  # noqa: S105  # of nothing


def run(scenario: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await scenario

    return asyncio.run(bounded())


# -- a bucket -----------------------------------------------------------------------------------------------------


@dataclass
class Bucket:
    """What an S3 server holds: content and user metadata by name; `refuse` answers everything with that status."""

    objects: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    refuse: int = 0
    dates: dict[str, float] = field(default_factory=dict)
    parts: dict[int, bytes] = field(default_factory=dict)
    """Of the one multipart upload that is open."""


class S3Handler(BaseHTTPRequestHandler):
    """As much of S3's REST API (path style) as obstore asks for: put, get, list, bulk delete, multipart uploads."""

    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *args: Any) -> None: ...

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", formatdate(self.bucket.dates.get(self.name, time.time()), usegmt=True))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/bucket/")

    def do_PUT(self) -> None:  # http.server's name
        content = self.read()
        if self.bucket.refuse:
            return self.answer(self.bucket.refuse, b"<Error><StringToSign>hidden</StringToSign></Error>")
        part = parse_qs(urlsplit(self.path).query).get("partNumber")
        if part:
            self.bucket.parts[int(part[0])] = content
            return self.answer(200)
        metadata = {name: value for name, value in self.headers.items() if name.lower().startswith("x-amz-meta-")}
        self.bucket.objects[self.name] = (content, metadata)
        self.bucket.dates[self.name] = time.time()
        return self.answer(200)

    def do_GET(self) -> None:  # http.server's name
        query = parse_qs(urlsplit(self.path).query)
        if self.bucket.refuse:
            return self.answer(self.bucket.refuse, b"<Error><StringToSign>hidden</StringToSign></Error>")
        if "list-type" in query:
            names = [name for name in sorted(self.bucket.objects) if name.startswith(query["prefix"][0])]
            found = "".join(
                f"<Contents><Key>{escape(name)}</Key>"
                f"<LastModified>{datetime.fromtimestamp(self.bucket.dates[name], UTC):%FT%T}.000Z</LastModified>"
                f"<ETag>0</ETag><Size>{len(self.bucket.objects[name][0])}</Size></Contents>"
                for name in names
            )
            body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
            return self.answer(200, body.encode())
        if self.name not in self.bucket.objects:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        content, metadata = self.bucket.objects[self.name]
        if "Range" in self.headers:
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            part = content[first : last + 1]
            covered = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
            return self.answer(206, part, Content_Range=covered, **metadata)
        return self.answer(200, content, **metadata)

    def do_HEAD(self) -> None:  # http.server's name
        self.do_GET()

    def do_POST(self) -> None:  # http.server's name
        query, body = urlsplit(self.path).query, self.read()
        if query.startswith("uploads"):
            self.bucket.parts.clear()
            uploads = f"<Bucket>bucket</Bucket><Key>{self.name}</Key><UploadId>1</UploadId>"
            return self.answer(
                200, f"<InitiateMultipartUploadResult>{uploads}</InitiateMultipartUploadResult>".encode()
            )
        if "uploadId" in query:
            self.bucket.objects[self.name] = (b"".join(part for _, part in sorted(self.bucket.parts.items())), {})
            self.bucket.dates[self.name] = time.time()
            return self.answer(
                200,
                b"<CompleteMultipartUploadResult><Bucket>bucket</Bucket><Key>k</Key><ETag>0</ETag>"
                b"</CompleteMultipartUploadResult>",
            )
        names = re.findall(r"<Key>(.*?)</Key>", body.decode())
        for name in names:
            self.bucket.objects.pop(name, None)
        deleted = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in names)
        return self.answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())

    def do_DELETE(self) -> None:  # http.server's name; of an upload that is given up, or an object
        self.bucket.objects.pop(self.name, None)
        self.answer(204)


@contextmanager
def s3_server() -> Iterator[tuple[str, Bucket]]:
    bucket = Bucket()
    handler = type("Handler", (S3Handler,), {"bucket": bucket})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Place:
    """A blob store and its back door."""

    store: BlobStore
    names: Callable[[], list[str]]
    overwrite: Callable[[str, bytes], None]


@pytest.fixture(params=["directory", "memory", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "directory":
        root = tmp_path / "store"

        def names() -> list[str]:
            return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

        yield Place(BlobStore.open(root), names, lambda name, content: (root / name).write_bytes(content) and None)
    elif request.param == "memory":
        store = BlobStore.open("memory://")
        blobs: dict[str, tuple[bytes, str]] = store._backend._blobs  # type: ignore[attr-defined]  # the back door
        yield Place(store, lambda: sorted(blobs), lambda name, content: blobs.update({name: (content, "data")}))
    else:
        with s3_server() as (url, bucket):
            use_bucket(monkeypatch, url)

            def overwrite(name: str, content: bytes) -> None:
                bucket.objects[name] = (content, {})

            yield Place(BlobStore.open("s3://bucket"), lambda: sorted(bucket.objects), overwrite)


def use_bucket(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }.items():
        monkeypatch.setenv(name, value)


# -- the contract -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * 5000], ids=["empty", "small", "1.2MB"])
def test_a_blob_is_read_back_under_the_hash_of_its_content(place: Place, content: bytes) -> None:
    async def scenario() -> None:
        identity = await place.store.put(content)
        assert identity == blob_id(content)
        assert await place.store.get(identity) == (content, "data")
        assert await place.store.get(identity.upper()) == (content, "data")
        assert place.names() == [f"blobs/shared/{identity}"]

    run(scenario())


def test_putting_again_changes_nothing_and_the_last_type_counts(place: Place) -> None:
    async def scenario() -> None:
        for blob_type in ("data", "flow", "binary", "flow", "data"):
            identity = await place.store.put(b"content", blob_type=blob_type)
            assert await place.store.get(identity) == (b"content", blob_type)
        assert place.names() == [f"blobs/shared/{identity}"]

    run(scenario())


def test_a_shared_blob_is_deleted_unless_it_was_put_again_since(place: Place) -> None:
    async def scenario() -> None:
        store = place.store
        before_s = time.time() - 10
        old, again = await store.put(b"old", blob_type="flow"), await store.put(b"again")
        await store.put(b"of a run", scope=RUN)
        dates = await store.dates()
        assert dates.keys() == {old, again}
        assert all(abs(put_at_s - time.time()) < 60 for put_at_s in dates.values())
        assert not await store.delete_shared(again, before_s)
        assert await store.delete_shared(old, time.time() + 10)
        assert not await store.delete_shared(old, time.time() + 10)
        assert (await store.dates()).keys() == {again}
        assert len(place.names()) == 2  # of the deleted one not even its type is left
        with pytest.raises(Invalid):
            await store.delete_shared("../x", before_s)

    run(scenario())


def test_without_any_blob_there_are_no_dates(place: Place) -> None:
    assert run(place.store.dates()) == {}


def test_putting_again_makes_a_directorys_blob_young_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = BlobStore.open(tmp_path)
        identity = await store.put(b"x")
        os.utime(tmp_path / "blobs" / "shared" / identity, (1, 1))
        assert (await store.dates())[identity] == 1
        await store.put(b"x")
        assert not await store.delete_shared(identity, time.time() - 60)

    run(scenario())


def test_scopes_are_apart_and_go_whole(place: Place) -> None:
    async def scenario() -> None:
        store = place.store
        other = RUN[:-1] + "2"
        kept = [await store.put(b"kept"), await store.put(b"kept", scope=other, blob_type="flow")]
        gone = [await store.put(f"{i}".encode(), scope=RUN, blob_type="flow") for i in range(5)]
        with pytest.raises(NotFound) as caught:
            await store.get(gone[0])
        assert caught.value.reason == "BLOB_NOT_FOUND"
        await store.delete_scope(RUN)
        await store.delete_scope(RUN)
        for identity in gone:
            with pytest.raises(NotFound):
                await store.get(identity, scope=RUN)
        assert await store.get(kept[0]) == (b"kept", "data")
        assert await store.get(kept[1], scope=other) == (b"kept", "flow")
        assert await store.put(b"0", scope=RUN) == gone[0]

    run(scenario())


def test_a_missing_blob_is_not_found(place: Place) -> None:
    async def scenario() -> None:
        for scope in ("shared", RUN):
            with pytest.raises(NotFound) as caught:
                await place.store.get("0" * 64, scope=scope)
            assert caught.value.reason == "BLOB_NOT_FOUND"

    run(scenario())


@pytest.mark.parametrize("damage", [b"", b"another content", b"contenT", b"x" * (PAYLOAD_BYTES_MAX + 1)])
def test_damaged_content_is_never_returned(place: Place, damage: bytes) -> None:
    async def scenario() -> None:
        identity = await place.store.put(b"content")
        place.overwrite(f"blobs/shared/{identity}", damage)
        with pytest.raises(DataLoss) as caught:
            await place.store.get(identity)
        assert caught.value.reason == "BLOB_CORRUPT"
        await place.store.put(b"content")
        assert await place.store.get(identity) == (b"content", "data")

    run(scenario())


@pytest.mark.parametrize("identity", ["", "abc", "g" * 64, "0" * 63, "0" * 65, "../" + "0" * 61, "0" * 64 + "\n"])
def test_what_is_no_id_is_refused(place: Place, identity: str) -> None:
    with pytest.raises(Invalid) as caught:
        run(place.store.get(identity))
    assert caught.value.reason == "BLOB_ID_INVALID"


@pytest.mark.parametrize("scope", ["", ".", "..", "a/b", "../x", "a.b", "x" * 129, "a\n"])
def test_what_is_no_scope_is_refused(place: Place, scope: str) -> None:
    for call in (place.store.get("0" * 64, scope=scope), place.store.put(b"", scope=scope)):
        with pytest.raises(Invalid) as caught:
            run(call)
        assert caught.value.reason == "BLOB_SCOPE_INVALID"
    with pytest.raises(Invalid):
        run(place.store.delete_scope(scope))


def test_shared_blobs_are_not_deleted_together(place: Place) -> None:
    with pytest.raises(Invalid):
        run(place.store.delete_scope("shared"))


def test_size_and_type_have_limits(place: Place) -> None:
    async def scenario() -> None:
        largest = b"x" * PAYLOAD_BYTES_MAX
        assert await place.store.get(await place.store.put(largest)) == (largest, "data")
        with pytest.raises(Invalid) as caught:
            await place.store.put(largest + b"x")
        assert caught.value.reason == "PAYLOAD_TOO_LARGE"
        for blob_type in ("", "a b", "x" * 65, "ü", "a\n"):
            with pytest.raises(Invalid) as caught:
                await place.store.put(b"", blob_type=blob_type)
            assert caught.value.reason == "BLOB_TYPE_INVALID"

    run(scenario())


def test_many_tasks_may_put_the_same_blob(place: Place) -> None:
    async def scenario() -> None:
        puts = [place.store.put(b"same", scope=RUN, blob_type=t) for t in ("data", "flow") * 10]
        assert set(await asyncio.gather(*puts)) == {blob_id(b"same")}
        content, blob_type = await place.store.get(blob_id(b"same"), scope=RUN)
        assert content == b"same"
        assert blob_type in ("data", "flow")

    run(scenario())


async def in_chunks(*chunks: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if error is not None:
        raise error


def test_an_object_is_written_from_chunks_and_read_in_parts(place: Place) -> None:
    async def scenario() -> None:
        objects = place.store.objects
        content = os.urandom(1_000_003) * 20
        chunks = [content[start : start + 3_000_000] for start in range(0, len(content), 3_000_000)]
        await objects.write("segments/large", in_chunks(b"", *chunks))
        await objects.write("segments/small", in_chunks(b"a", b"b"))
        assert await objects.read("segments/large", 0, len(content)) == content
        assert await objects.read("segments/large", 12_345_678, 1000) == content[12_345_678:12_346_678]
        assert await objects.read("segments/small", 1, 100) == b"b"
        assert place.names() == ["segments/large", "segments/small"]
        dates = {name: at_s async for name, at_s in objects.dates("segments")}
        assert dates.keys() == {"large", "small"}
        assert all(abs(at_s - time.time()) < 60 for at_s in dates.values())

        await objects.write("segments/small", in_chunks(b"another"))
        assert await objects.read("segments/small", 0, 100) == b"another"
        await objects.delete("segments/small")
        await objects.delete("segments/small")
        assert place.names() == ["segments/large"]
        with pytest.raises(NotFound) as caught:
            await objects.read("segments/small", 0, 1)
        assert caught.value.reason == "OBJECT_NOT_FOUND"
        assert [name async for name, _ in objects.dates("nothing")] == []

    run(scenario())


def test_an_object_whose_writer_breaks_off_is_not_visible(place: Place) -> None:
    async def scenario() -> None:
        objects = place.store.objects
        for content in (b"x", b"x" * 10_000_000):
            with pytest.raises(ZeroDivisionError):
                await objects.write("segments/broken", in_chunks(content, content, error=ZeroDivisionError()))
            with pytest.raises(NotFound):
                await objects.read("segments/broken", 0, 1)

    run(scenario())


@pytest.mark.parametrize(
    "name", ["", "segments", "blobs/x", "segments/", "segments/a/b", "../x", "segments/../x", "segments/..", "/x"]
)
def test_what_is_no_name_of_an_object_is_refused(place: Place, name: str) -> None:
    for call in (place.store.objects.read(name, 0, 1), place.store.objects.delete(name)):
        with pytest.raises(Invalid) as caught:
            run(call)
        assert caught.value.reason == "OBJECT_NAME_INVALID"


# -- directories --------------------------------------------------------------------------------------------------


def test_a_directory_is_created_by_the_first_put_for_its_owner_only(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    store = BlobStore.open(f"file://{root}")
    with pytest.raises(NotFound):
        run(store.get("0" * 64))
    assert list(tmp_path.iterdir()) == []
    identity = run(store.put(b"x", scope=RUN))
    folders = [root.parent, root, root / "blobs", root / "blobs" / RUN]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert stat.S_IMODE((folders[-1] / identity).stat().st_mode) == 0o600


def test_a_put_is_on_the_disk_before_its_name_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order on which a power failure depends: content synced, then named, then the folder synced."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(handle: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "content")
        fsync(handle)

    def recorded_replace(self: Path, target: Path) -> Path:
        calls.append("name")
        return replace(self, target)

    store = BlobStore.open(tmp_path)
    run(store.put(b"first"))
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    run(store.put(b"second"))
    assert calls == ["content", "name", "folder"]


def test_a_failed_put_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    store = BlobStore.open(tmp_path)
    run(store.put(b"first"))
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Unavailable) as caught:
        run(store.put(b"second"))
    assert "No space left" in caught.value.message
    assert [path.name for path in (tmp_path / "blobs" / "shared").iterdir()] == [blob_id(b"first")]


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition):
        BlobStore.open(tmp_path / "file")
    with pytest.raises(FailedPrecondition) as caught:
        run(BlobStore.open(tmp_path / "file" / "below").put(b""))
    assert caught.value.reason == "BLOB_STORE_REFUSED"


# -- buckets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "family"), [(403, FailedPrecondition), (401, FailedPrecondition), (400, Unavailable), (503, Unavailable)]
)
def test_errors_of_a_bucket_are_ours_and_hold_no_secret(
    monkeypatch: pytest.MonkeyPatch, status: int, family: type[StepflowError]
) -> None:
    with s3_server() as (url, bucket):
        use_bucket(monkeypatch, url)
        store = BlobStore.open("s3://bucket?token=hidden")
        bucket.refuse = status
        # Of a listing obstore does not say that it was forbidden.
        for call, families in (
            (store.put(b"x"), family),
            (store.get("0" * 64), family),
            (store.delete_scope(RUN), (family, Unavailable)),
        ):
            with pytest.raises(families) as caught:
                run(call)
            assert caught.value.reason.startswith("BLOB_STORE_")
            assert "s3://bucket" in caught.value.message
            assert "\n" not in caught.value.message
            for secret in (SECRET, "hidden", "Authorization", "Signature"):
                assert secret not in caught.value.message


def test_a_bucket_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    use_bucket(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(Unavailable):
        run(BlobStore.open("s3://bucket").put(b"x"))


@pytest.mark.parametrize("location", ["ftp://host/x", "nonsense://", "://"])
def test_a_location_that_nobody_serves_is_invalid(location: str) -> None:
    with pytest.raises(Invalid) as caught:
        BlobStore.open(location)
    assert caught.value.reason == "BLOB_STORE_INVALID"


def test_a_file_system_that_does_not_answer_keeps_only_the_threads_for_blobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A named pipe stands for a file on a dead network disk: opening it blocks its thread."""
    monkeypatch.setattr(directory, "ANSWER_S", 0.2)
    silent = tmp_path / "blobs" / "shared" / blob_id(b"silent")
    silent.parent.mkdir(parents=True)
    os.mkfifo(silent)

    async def scenario() -> None:
        blobs = BlobStore.open(tmp_path)
        reads = [blobs.get(silent.name) for _ in range(2 * directory.THREADS)]
        errors = await asyncio.gather(*reads, return_exceptions=True)
        assert {type(error) for error in errors} == {Unavailable}
        assert "did not answer within 0.2 s" in str(errors[0])
        assert await asyncio.to_thread(lambda: "free") == "free"

        # The threads come back with the disk.
        await asyncio.to_thread(_answer, silent)
        assert await blobs.get(await blobs.put(b"sound")) == (b"sound", "data")

    def _answer(pipe: Path) -> None:
        with pipe.open("wb"):
            silent.unlink()

    run(scenario())
