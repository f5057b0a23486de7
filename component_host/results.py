"""`CallResult` messages for executors, and the blobs of large results and inputs.

- A failure's message and data are cut to sizes fit for frames and journals.
- Texts from servers hold no lone surrogates (protobuf refuses them), and no secret values of the environment.

Pure, except for reading blobs. Not here: the outcome of a call (`call`), and the meaning of a server's reply
(`mcp_bridge.results`, `stepflow_bridge.failures`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX, encode
from stepflow.errors import Code, Failure, Invalid, NotFound, StepflowError
from stepflow.failure_data import without_trace
from stepflow.mesh.v1 import host_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.telemetry import json_without_hidden, without_hidden

if TYPE_CHECKING:
    from stepflow.store.blobs import WaitingBlobs

REPORT_BYTES_MAX = 4 * PAYLOAD_BYTES_MAX
"""Sum of the results in one run report to a component."""

MESSAGE_CHARS_MAX = 8 * 1024
"""Length limit of a failure's message."""

PROGRESS_CHARS_MAX = MESSAGE_CHARS_MAX // 16
"""Length limit of a progress message."""


def succeeded(request: host_pb2.Call, started_at_ms: int, duration_ms: int) -> host_pb2.CallResult:
    """Build the result of a call without its output."""
    return host_pb2.CallResult(
        call_id=request.call_id,
        key=request.key,
        attempt=request.attempt,
        started_at_ms=started_at_ms,
        duration_ms=duration_ms,
    )


def failed(
    request: host_pb2.Call, failure: Failure, started_at_ms: int = 0, duration_ms: int = 0
) -> host_pb2.CallResult:
    """Build the result of a failed call, without values of the environment in its texts.

    `started_at_ms` is 0 if no backend received the call.
    """
    early = failure.code is Code.UNREACHABLE or not started_at_ms

    data = failure.data
    if len(data) > INLINE_BYTES_MAX:
        data = without_trace(data)
    if len(data) > INLINE_BYTES_MAX:
        data = encode({"reason": "DETAILS_TOO_LARGE", "bytes": len(data), "bytes_max": INLINE_BYTES_MAX})

    return host_pb2.CallResult(
        call_id=request.call_id,
        key=request.key,
        attempt=request.attempt,
        started_at_ms=started_at_ms,
        duration_ms=duration_ms,
        failure=pb.Failure(
            code=f"FAILURE_CODE_{failure.code.name}",
            message=readable(without_hidden(failure.message), MESSAGE_CHARS_MAX),
            data_json=json_without_hidden(data),
            origin=pb.ORIGIN_DISPATCH if early else pb.ORIGIN_COMPONENT,
        ),
    )


def unreachable(reason: str, message: str) -> Failure:
    """Return an UNREACHABLE failure; the data hold the reason code."""
    return Failure(Code.UNREACHABLE, message, encode({"reason": reason}))


def unusable(error: Invalid) -> Failure:
    """Return the failure of a component with an output outside the rules for JSON."""
    return Failure(Code.COMPONENT_FAILED, error.message, encode({"reason": error.reason}))


def not_stored(error: StepflowError) -> Failure:
    """Return the failure of a call after the blob store refused the output."""
    return unreachable(error.reason, f"the step's output could not be stored: {error.message}")


def not_kept(trouble: StepflowError | None) -> Failure:
    """Return the failure of a call whose output waited for the blob store until the host held too many results."""
    reason, why = ("BLOB_STORE_UNAVAILABLE", "") if trouble is None else (trouble.reason, f": {trouble.message}")
    return unreachable(reason, f"the step's output could not be stored, and the host holds too many such outputs{why}")


def readable(text: str, chars_max: int) -> str:
    """Cut a foreign text to `chars_max` and replace lone surrogates."""
    if len(text) > chars_max:
        text = text[: chars_max - 1] + "…"
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


async def fetch_blob(blobs: WaitingBlobs, blob: str, run_id: str) -> bytes:
    """Read a blob of a run, or the shared blob of the same id. Raises: StepflowError."""
    try:
        return (await blobs.get(blob, scope=run_id))[0]
    except NotFound:
        return (await blobs.get(blob))[0]


async def inline_results(report: host_pb2.RunReport, blobs: WaitingBlobs, run_id: str) -> host_pb2.RunReport:
    """Replace blob ids in a report by the results: components cannot read blobs of a run.

    Raises: Invalid REPORT_TOO_LARGE; StepflowError of the blob store.
    """
    size = 0

    for item in report.items:
        if item.flow_result.blob:
            content = await fetch_blob(blobs, item.flow_result.blob, run_id)
            item.flow_result.json = content

        size += len(item.flow_result.json)
        if size > REPORT_BYTES_MAX:
            raise Invalid(
                "REPORT_TOO_LARGE",
                f"the results of run {report.run_id} are more than {REPORT_BYTES_MAX:,} bytes together; "
                "run fewer items at once, or return less from each",
            )

    return report


__all__ = [
    "MESSAGE_CHARS_MAX",
    "PROGRESS_CHARS_MAX",
    "REPORT_BYTES_MAX",
    "failed",
    "fetch_blob",
    "inline_results",
    "not_kept",
    "not_stored",
    "readable",
    "succeeded",
    "unreachable",
    "unusable",
]
