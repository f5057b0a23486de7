"""References to blobs in outputs: `{"$blob": "<id>", "size": N}` instead of a large member.

Sent only by servers with a threshold from `initialize`, and only as members of the output itself. Limit: an output with
its blobs is at most one payload.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw

from component_host.stepflow_bridge.json_values import get_json
from component_host.stepflow_bridge.protocol import DECODE_ERRORS
from stepflow.codec import PAYLOAD_BYTES_MAX, encode
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from component_host.backend import BlobAccess

REFERENCES_MAX = 1_000


class _BlobReference(msgspec.Struct, forbid_unknown_fields=True, rename={"blob": "$blob", "blob_type": "blobType"}):
    blob: str
    size: int = 0
    blob_type: str = "data"


_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_reference = msgspec.json.Decoder(_BlobReference).decode


async def with_blobs(output: bytes, blobs: BlobAccess) -> bytes:
    """Replace the references in an output. Raises: StepflowError."""
    if b'"$blob"' not in output:
        return output
    try:
        members = _decode_members(output)
    except DECODE_ERRORS:
        return output

    found = {name: reference for name, text in members.items() if (reference := _reference(text)) is not None}
    if len(found) > REFERENCES_MAX:
        raise Invalid("TOO_MANY_BLOBS", f"{len(found)} references to blobs; the limit is {REFERENCES_MAX}")

    size = len(output)
    for name, reference in found.items():
        content, _ = await get_json(blobs, reference.blob)
        size += len(bytes(content))
        if size > PAYLOAD_BYTES_MAX:
            raise Invalid("PAYLOAD_TOO_LARGE", f"the output with its blobs is larger than {PAYLOAD_BYTES_MAX:,} bytes")
        members[name] = content
    return encode(members) if found else output


def _reference(text: Raw) -> _BlobReference | None:
    if b'"$blob"' not in bytes(text)[:32]:
        return None
    try:
        return _decode_reference(text)
    except DECODE_ERRORS:
        return None
