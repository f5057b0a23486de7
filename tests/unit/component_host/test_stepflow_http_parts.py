"""The parts of the HTTP bridge that need no server: events, references to blobs, the blob API."""

from __future__ import annotations

import asyncio
import json
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from support.host_side import MemoryBlobs

from component_host.stepflow_bridge.http import endpoint
from component_host.stepflow_bridge.http.blob_api import BlobApi
from component_host.stepflow_bridge.http.blob_refs import REFERENCES_MAX, with_blobs
from component_host.stepflow_bridge.http.endpoint import EventSplitter, TooLargeError
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import Invalid, NotFound

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STREAM = (
    b": hello\n\n"
    b"data: one\n\n"
    b"event: message\r\ndata:two\r\nid: 7\r\n\r\n"
    b"\n\n"
    b"data: three\ndata: lines\ndata\ndatabase: no\n\n"
    b"data:  two spaces\n\n"
    b"data: without an end"
)
JSON = {"Content-Type": "application/json"}
EVENTS = [b"one", b"two", b"three\nlines", b" two spaces"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_events_are_the_same_however_the_stream_is_cut(cuts: list[int]) -> None:
    splitter = EventSplitter()
    offsets = [0, *sorted(cuts), len(STREAM)]
    found = [event for start, end in pairwise(offsets) for event in splitter.feed(STREAM[start:end])]
    assert found == EVENTS


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 4_000 + b"\n", b"x" * 4_000, b"note: x\n" * 500])
def test_an_event_without_end_is_too_large(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.setattr(endpoint, "REPLY_BYTES_MAX", 20_000)
    splitter = EventSplitter()
    for _ in range(20_000 // len(piece)):
        splitter.feed(piece)
    with pytest.raises(TooLargeError):
        splitter.feed(piece)


def test_many_events_together_are_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "REPLY_BYTES_MAX", 20_000)
    splitter = EventSplitter()
    event = b"data: " + b"x" * 9_000 + b"\n\n"
    assert sum(len(splitter.feed(event)) for _ in range(10)) == 10


# --- references ----------------------------------------------------------------------------------------------------


def reference(blob_id: str, **more: Any) -> dict[str, Any]:
    return {"$blob": blob_id, "size": 5, **more}


def test_members_that_are_references_are_replaced_and_nothing_else() -> None:
    async def test() -> None:
        blobs = MemoryBlobs()
        blob_id = await blobs.put(b'{"$blob":"user data"}')
        tree = {
            "a": reference(blob_id),
            "b": [reference(blob_id)],
            "c": {"$blob": blob_id, "mine": 1},
            "d": {"$blob": 5},
            "e": "$blob",
        }
        output = await with_blobs(msgspec.json.encode(tree), blobs)
        assert json.loads(output) == {**tree, "a": {"$blob": "user data"}}
        for untouched in (b'[{"$blob":"x"}]', b'"$blob"', b"{}", b'{"$blob":"x"}'):
            assert await with_blobs(untouched, blobs) == untouched

    uvloop.run(test())


def test_references_are_bounded_and_must_lead_somewhere() -> None:
    async def test() -> None:
        blobs = MemoryBlobs()
        with pytest.raises(NotFound):
            await with_blobs(msgspec.json.encode({"a": reference("00" * 32)}), blobs)
        many = {str(number): reference("00" * 32) for number in range(REFERENCES_MAX + 1)}
        with pytest.raises(Invalid) as caught:
            await with_blobs(msgspec.json.encode(many), blobs)
        assert caught.value.reason == "TOO_MANY_BLOBS"
        large = await blobs.put(b'"' + b"x" * (PAYLOAD_BYTES_MAX // 2) + b'"')
        with pytest.raises(Invalid) as caught:
            await with_blobs(msgspec.json.encode({"a": reference(large), "b": reference(large)}), blobs)
        assert caught.value.reason == "PAYLOAD_TOO_LARGE"

    uvloop.run(test())


# --- the API -------------------------------------------------------------------------------------------------------


def with_api(work: Callable[[BlobApi, aiohttp.ClientSession, MemoryBlobs], Awaitable[None]], *, calls: bool) -> None:
    async def test() -> None:
        blobs = MemoryBlobs()
        api = BlobApi(lambda: blobs if calls else None)
        await api.start("127.0.0.1")
        try:
            async with aiohttp.ClientSession() as session:
                await work(api, session, blobs)
        finally:
            await api.close()

    uvloop.run(test())


async def ask(request: Any) -> tuple[int, bytes]:
    async with request as response:
        return response.status, await response.read()


def test_blobs_are_kept_as_json_and_as_bytes() -> None:
    async def work(api: BlobApi, session: aiohttp.ClientSession, blobs: MemoryBlobs) -> None:
        status, body = await ask(session.post(api.url, json={"data": {"b": [1.0, "é"]}, "blobType": "flow"}))
        blob_id = json.loads(body)["blobId"]
        assert (status, blobs.content[blob_id]) == (200, ('{"b":[1.0,"é"]}'.encode(), "flow"))
        status, body = await ask(session.get(f"{api.url}/{blob_id}"))
        assert json.loads(body) == {"data": {"b": [1.0, "é"]}, "blobType": "flow", "blobId": blob_id}
        binary = {"Content-Type": "application/octet-stream", "X-Blob-Filename": "a.bin"}
        status, body = await ask(session.post(api.url, data=b"\x00\xff", headers=binary))
        blob_id = json.loads(body)["blobId"]
        assert blobs.content[blob_id] == (b"\x00\xff", "binary")
        accept = {"Accept": "application/octet-stream"}
        assert await ask(session.get(f"{api.url}/{blob_id}", headers=accept)) == (200, b"\x00\xff")
        assert (await ask(session.get(f"{api.url}/{blob_id}")))[0] == 400

    with_api(work, calls=True)


def test_what_cannot_be_served_has_its_status() -> None:
    async def work(api: BlobApi, session: aiohttp.ClientSession, blobs: MemoryBlobs) -> None:
        assert (await ask(session.get(f"{api.url}/{'0' * 64}")))[0] == 404
        assert (await ask(session.get(f"{api.url}/nothing")))[0] == 400
        assert (await ask(session.post(api.url, data=b"{", headers=JSON)))[0] == 400
        assert (await ask(session.post(api.url, json={"blobType": "data"})))[0] == 400
        assert (await ask(session.post(api.url, data=BytesIO(bytes(PAYLOAD_BYTES_MAX + (2 << 20))))))[0] == 413
        assert blobs.content == {}

    with_api(work, calls=True)


def test_nobody_gets_blobs_without_the_secret_or_outside_of_calls() -> None:
    async def work(api: BlobApi, session: aiohttp.ClientSession, blobs: MemoryBlobs) -> None:
        scheme_and_host = "/".join(api.url.split("/")[:3])
        token = api.url.split("/")[3]
        assert len(token) >= 40
        for path in ("/api/v1/blobs", f"/{'x' * len(token)}/api/v1/blobs"):
            assert (await ask(session.post(scheme_and_host + path, json={"data": 1})))[0] == 404
        assert (await ask(session.post(api.url, json={"data": 1})))[0] == 403
        assert blobs.content == {}

    with_api(work, calls=False)


def test_two_plugins_have_secrets_of_their_own() -> None:
    async def test() -> None:
        apis = [BlobApi(lambda: None) for _ in range(2)]
        await asyncio.gather(*(api.start("127.0.0.1") for api in apis))
        assert apis[0].url.split("/")[3] != apis[1].url.split("/")[3]
        await asyncio.gather(*(api.close() for api in apis))

    uvloop.run(test())
