"""Errors on the wire (`status_of`, in servers) and back (`error_of`, in clients).

- A `StepflowError` becomes its family's status with a `google.rpc.ErrorInfo` (domain `stepflow.mesh`) that carries the
  reason and the details; the client raises the same family with the same reason. The text is never parsed.
- The findings of a refused flow (`diagnostics`) travel as `FlowFindings`, as many as fit.
- An error with the detail `retry_after_ms` has a `google.rpc.RetryInfo`, too, for clients of other makers.
- `error_of` gives a family to statuses without an `ErrorInfo`, for example those of gRPC itself.

Not here: the status of a family (`stepflow.errors`), and INTERNAL for any other exception (`server`).
"""

from __future__ import annotations

import json
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # it has no types

from stepflow.errors import (
    AlreadyExists,
    Conflict,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Forbidden,
    Invalid,
    NotFound,
    Overloaded,
    StepflowError,
    Unauthenticated,
    Unavailable,
)
from stepflow.mesh.v1 import flows_pb2
from stepflow.retry import RETRY_AFTER_MS_MAX
from stepflow.rpc.findings import findings_detail, findings_tree

DOMAIN = "stepflow.mesh"

ERROR_TEXT_BYTES_MAX = 2_000
ERROR_DETAIL_CHARS_MAX = 1_000
ERROR_DETAILS_MAX = 12
"""Errors travel in the trailing metadata; clients accept 8 KiB of it, and base64 adds a third."""

METADATA_BYTES_MAX = 7_000
"""Message and details together, as they travel: the rest is left for other metadata."""

_FAMILIES: dict[str, type[StepflowError]] = {
    family.status: family
    for family in (
        Invalid, NotFound, AlreadyExists, FailedPrecondition, Conflict, Overloaded, Unavailable, DeadlineExceeded,
        DataLoss, Unauthenticated, Forbidden,
    )
}  # fmt: skip


def status_of(error: StepflowError) -> status_pb2.Status:
    """Return the gRPC status of an error, with as many details as fit."""
    # 1. Reason and details. Findings have a message of their own.
    found = error.details.get("diagnostics")
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for name, value in list(error.details.items())[:ERROR_DETAILS_MAX]:
        if value is found and isinstance(found, dict):
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        if len(text) <= ERROR_DETAIL_CHARS_MAX:
            info.metadata[name] = text
    while info.ByteSize() > 2 * ERROR_DETAIL_CHARS_MAX and info.metadata:
        del info.metadata[max(info.metadata, key=lambda name: len(info.metadata[name]))]
    status = status_pb2.Status(code=grpc.StatusCode[error.status].value[0], message=_cut(error.message))
    status.details.add().Pack(info)

    # 2. Findings about a flow, and the pause before another try.
    if isinstance(found, dict):
        status.details.add().Pack(findings_detail(found["diagnostics"], _room_for_details(status)))
    pause_ms = retry_after_ms(error)
    if pause_ms:
        pause = error_details_pb2.RetryInfo()
        pause.retry_delay.FromMilliseconds(pause_ms)
        status.details.add().Pack(pause)
    return status


def retry_after_ms(error: StepflowError) -> int:
    """Return the time after which a server asks its client to try again; 0 if it does not."""
    text = str(error.details.get("retry_after_ms", ""))
    return min(int(text), RETRY_AFTER_MS_MAX) if text.isascii() and text.isdigit() else 0


def _room_for_details(status: status_pb2.Status) -> int:
    """Return how many bytes of further details fit. In base64 they grow by a third."""
    text = status.message.encode()
    message_bytes = len(text) if text.isascii() else 3 * len(text)  # percent-encoded
    return max(0, 3 * (METADATA_BYTES_MAX - message_bytes) // 4 - int(status.ByteSize()))


def _cut(text: str) -> str:
    """Cut a text so that it fits. It travels twice, once with three characters for each byte that is not ASCII."""
    bytes_max = ERROR_TEXT_BYTES_MAX if text.isascii() else ERROR_TEXT_BYTES_MAX // 2
    return text.encode(errors="replace")[:bytes_max].decode(errors="ignore")


def family(status: str) -> type[StepflowError]:
    """Return the family of a status's name; FailedPrecondition for an unknown status."""
    return _FAMILIES.get(status, FailedPrecondition)


def error_of(failed: grpc.aio.AioRpcError) -> StepflowError:
    """Return the error that a failed call stands for."""
    code: grpc.StatusCode = failed.code()
    text = failed.details() or code.name
    info, findings = _details(failed)
    if info is not None and code.name in _FAMILIES:
        details: dict[str, object] = dict(info.metadata)
        if findings is not None:
            details["diagnostics"] = findings_tree(findings)
        return _FAMILIES[code.name](info.reason, text, **details)
    match code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return Unavailable("SERVER_UNAVAILABLE", f"the server cannot be reached: {text}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded("CALL_TIMEOUT", "the server has not answered in time")
        case grpc.StatusCode.UNIMPLEMENTED:
            return FailedPrecondition(
                "CALL_UNKNOWN", "the server does not know this call: is it a stepflow server of this version?"
            )
        case grpc.StatusCode.INTERNAL | grpc.StatusCode.UNKNOWN:
            return FailedPrecondition("SERVER_DEFECT", text)
        case _ if code.name in _FAMILIES:
            return _FAMILIES[code.name](f"CALL_{code.name}", text)
        case _:
            return FailedPrecondition(f"CALL_{code.name}", text)


def _details(
    failed: grpc.aio.AioRpcError,
) -> tuple[error_details_pb2.ErrorInfo | None, flows_pb2.FlowFindings | None]:
    metadata: Any = failed.trailing_metadata() or ()
    info: error_details_pb2.ErrorInfo | None = None
    findings: flows_pb2.FlowFindings | None = None
    for key, value in metadata:
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                one, found = error_details_pb2.ErrorInfo(), flows_pb2.FlowFindings()
                if info is None and detail.Unpack(one) and one.domain == DOMAIN:
                    info = one
                elif findings is None and detail.Unpack(found):
                    findings = found
    return info, findings


__all__ = ["DOMAIN", "error_of", "family", "retry_after_ms", "status_of"]
