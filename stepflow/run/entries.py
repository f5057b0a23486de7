"""Conversions between the plain types of the language (`Json`, `Failure`) and the protobuf of the journal."""

from __future__ import annotations

from stepflow.codec import Json, encode
from stepflow.errors import Code, Failure
from stepflow.flow.values import REFERENCE_BYTES_MIN, Journaled, Stored
from stepflow.mesh.v1 import journal_pb2 as pb


def failure_to_pb(failure: Failure, origin: pb.Origin = pb.ORIGIN_UNSPECIFIED) -> pb.Failure:
    return pb.Failure(
        code=f"FAILURE_CODE_{failure.code.name}", message=failure.message, data_json=failure.data, origin=origin
    )


class CodeUnknown(ValueError):
    """A failure has a code of a later version."""

    def __init__(self, code: int) -> None:
        super().__init__(f"failure code {code}")
        self.code = code


def code_from_pb(failure: pb.Failure) -> Code:
    """Return the code of a failure. Raises: CodeUnknown."""
    try:
        return Code(failure.code)
    except ValueError:
        raise CodeUnknown(failure.code) from None


def failure_from_pb(failure: pb.Failure) -> Failure:
    """Raises: CodeUnknown."""
    return Failure(code_from_pb(failure), failure.message, failure.data_json)


def payload_of(value: Json) -> pb.Payload:
    if isinstance(value, Stored):
        return pb.Payload(blob=value.blob, blob_bytes=value.blob_bytes)
    return pb.Payload(json=value.raw)


def json_of(payload: pb.Payload, entry: int = -1) -> Json:
    """Return the value of a payload. `entry`: number of the journal's entry with it, if expressions may share it."""
    blob = payload.blob
    if blob:
        return Stored(blob, payload.blob_bytes)
    raw = payload.json
    return Json(raw) if entry < 0 or len(raw) < REFERENCE_BYTES_MIN else Journaled(raw, entry)


def flow_result(outcome: Json | Failure) -> bytes:
    """Return the FlowResult of an outcome as JSON text. A `Stored` outcome must be loaded."""
    if isinstance(outcome, Failure):
        return b'{"outcome":"failed","error":' + failure_json(outcome) + b"}"
    return b'{"outcome":"success","result":' + outcome.raw + b"}"


def failure_json(failure: Failure) -> bytes:
    text: bytes = b'{"code":"' + failure.code.name.encode() + b'","message":' + encode(failure.message)
    if failure.data:
        text += b',"data":' + failure.data
    return text + b"}"
