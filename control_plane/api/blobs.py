"""BlobsService: put and get shared blobs, in one message or in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import Invalid
from stepflow.mesh.v1 import blobs_pb2, blobs_pb2_grpc
from stepflow.rpc import call_memory
from stepflow.store.blobs import DATA

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from stepflow.store.blobs import BlobStore

CHUNK_BYTES_MAX = 1024 * 1024


class BlobsServicer(blobs_pb2_grpc.BlobsServiceServicer):
    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def PutBlob(self, request: blobs_pb2.PutBlobRequest, _: Any) -> blobs_pb2.PutBlobResponse:
        identity = await self._blobs.put(request.content, blob_type=request.blob_type or DATA)
        return blobs_pb2.PutBlobResponse(blob_id=identity)

    async def GetBlob(self, request: blobs_pb2.GetBlobRequest, _: Any) -> blobs_pb2.GetBlobResponse:
        content, blob_type = await self._read(request.blob_id)
        return blobs_pb2.GetBlobResponse(content=content, blob_type=blob_type)

    async def UploadBlob(
        self, requests: AsyncIterator[blobs_pb2.UploadBlobRequest], _: Any
    ) -> blobs_pb2.UploadBlobResponse:
        content = bytearray()
        held = 0
        blob_type = ""
        async for request in requests:
            blob_type = blob_type or request.blob_type
            if len(request.chunk) > CHUNK_BYTES_MAX:
                raise Invalid(
                    "CHUNK_TOO_LARGE", f"a chunk of {len(request.chunk):,} bytes; the limit is {CHUNK_BYTES_MAX:,}"
                )

            if content and not held:  # a blob of more than one chunk
                held = await call_memory.hold()
            content += request.chunk
            if len(content) > PAYLOAD_BYTES_MAX:
                raise Invalid("PAYLOAD_TOO_LARGE", f"a blob of more than {PAYLOAD_BYTES_MAX:,} bytes, the limit")

        identity = await self._blobs.put(bytes(content), blob_type=blob_type or DATA)
        return blobs_pb2.UploadBlobResponse(blob_id=identity)

    async def DownloadBlob(
        self, request: blobs_pb2.DownloadBlobRequest, _: Any
    ) -> AsyncIterator[blobs_pb2.DownloadBlobResponse]:
        content, blob_type = await self._read(request.blob_id)
        yield blobs_pb2.DownloadBlobResponse(
            chunk=content[:CHUNK_BYTES_MAX], blob_type=blob_type, content_bytes=len(content)
        )
        for start in range(CHUNK_BYTES_MAX, len(content), CHUNK_BYTES_MAX):
            yield blobs_pb2.DownloadBlobResponse(chunk=content[start : start + CHUNK_BYTES_MAX])

    async def _read(self, blob_id: str) -> tuple[bytes, str]:
        """Read a blob, once there is memory for the largest."""
        held = await call_memory.hold()
        content, blob_type = await self._blobs.get(blob_id)
        call_memory.give_back(held - len(content))
        return content, blob_type
