"""JSON values of call-backs: blobs by id, and compact text, checked in a thread if large."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Raw

from stepflow import codec
from stepflow.errors import Invalid
from stepflow.off_loop import off_loop

if TYPE_CHECKING:
    from component_host.backend import BlobAccess


async def put_json(blobs: BlobAccess, data: Raw | bytes, blob_type: str | None) -> str:
    """Store a JSON value; return the blob id. Raises: StepflowError."""
    return await blobs.put(await compact(data, "the blob"), blob_type=blob_type or "data")


async def get_json(blobs: BlobAccess, blob_id: str) -> tuple[Raw, str]:
    """Return a JSON blob without newlines, and the type, `data` or `flow`. Raises: StepflowError."""
    content, blob_type = await blobs.get(blob_id)
    if blob_type == "binary":
        raise Invalid("BLOB_NOT_JSON", f"blob {blob_id} is binary; this protocol carries JSON only")
    # A newline would end the line of the reply. Blobs stored by us have none; the check is cheap.
    text = content if b"\n" not in content else await compact(content, "the blob")
    return Raw(text), "flow" if blob_type == "flow" else "data"


async def compact(text: Raw | bytes, what: str) -> bytes:
    """Check and compact JSON. Raises: Invalid, with `what` in the text."""
    data = bytes(text)
    return await off_loop(len(data), codec.compact, data, what=what)


async def compact_list(texts: list[Raw]) -> bytes:
    """Check and compact inputs into one JSON list. Raises: Invalid."""
    return codec.encode([Raw(await compact(text, "the input")) for text in texts])
