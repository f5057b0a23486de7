"""Requests of a StepFlow server while one of its components executes: blobs, sub-runs, metadata.

`answer` returns exactly one line in every case: components of several generations wait without end after a missing
reply, or after a reply with a member missing or of another type. Hence:
- Failure codes are numbers here; `blob_type` is always `data` or `flow`.
- A reply too long for the server becomes an error.

A request is served in the name of its call (`HostCall`); the transport finds the call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw, Struct, UnsetType

from component_host.stepflow_bridge import protocol, run_requests
from component_host.stepflow_bridge.json_values import get_json, put_json
from stepflow.errors import Invalid, NotFound, StepflowError
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from component_host.backend import HostCall

log = get_logger("component_host.callbacks")


async def answer(
    call: HostCall, request_id: int | str, method: str, params: Raw | UnsetType, line_bytes_max: int
) -> bytes:
    """Serve one request; return its reply, a line of at most `line_bytes_max` bytes plus the newline."""
    handler = _HANDLERS.get(method)
    if handler is None:
        return protocol.error_line(request_id, protocol.UNKNOWN_METHOD, f"unknown method {method!r}")
    if call.settled:
        return protocol.error_line(request_id, protocol.GENERAL, "the execute that asks has already ended")

    try:
        request = msgspec.json.decode(params if isinstance(params, Raw) else b"{}", type=handler.params)
        line = protocol.line_of(protocol.Result(request_id, await handler.serve(call, request)))
    except protocol.DECODE_ERRORS as error:
        return protocol.error_line(request_id, protocol.INVALID_PARAMS, f"{method}: invalid parameters: {error}")
    except NotFound as error:
        return protocol.error_line(request_id, protocol.NOT_FOUND, error.message)
    except Invalid as error:
        return protocol.error_line(request_id, protocol.INVALID_VALUE, error.message)
    except StepflowError as error:
        return protocol.error_line(request_id, protocol.GENERAL, error.message)
    except Exception as error:
        log_defect(log, "call-back failed", error, method=method)
        text = f"{method} failed inside the component host (this is a bug; see the host's log)"
        return protocol.error_line(request_id, protocol.INTERNAL, text)

    if len(line) - 1 > line_bytes_max:
        return protocol.error_line(
            request_id,
            protocol.INVALID_VALUE,
            f"{method}: the reply is {len(line) - 1:,} bytes and this server reads lines of at most {line_bytes_max:,}",
        )
    return line


class _BlobPutParams(Struct):
    data: Raw
    blob_type: str | None = None


class _BlobGetParams(Struct):
    blob_id: str


async def _put_blob(call: HostCall, request: _BlobPutParams) -> dict[str, str]:
    return {"blob_id": await put_json(call.blobs, request.data, request.blob_type)}


async def _get_blob(call: HostCall, request: _BlobGetParams) -> dict[str, Any]:
    text, blob_type = await get_json(call.blobs, request.blob_id)
    return {"data": text, "blob_type": blob_type}


@dataclass(frozen=True, slots=True)
class _Handler:
    params: Any
    serve: Callable[[HostCall, Any], Awaitable[dict[str, Any]]]


_HANDLERS = {
    "blobs/put": _Handler(_BlobPutParams, _put_blob),
    "blobs/get": _Handler(_BlobGetParams, _get_blob),
    "flows/evaluate": _Handler(run_requests.EvaluateParams, run_requests.evaluate_flow),
    "flows/get_metadata": _Handler(run_requests.GetMetadataParams, run_requests.get_metadata),
    "flows/submit_batch": _Handler(run_requests.SubmitBatchParams, run_requests.submit_batch),
    "flows/get_batch": _Handler(run_requests.GetBatchParams, run_requests.get_batch),
    "runs/submit": _Handler(run_requests.SubmitRunParams, run_requests.submit_run),
    "runs/get": _Handler(run_requests.GetRunParams, run_requests.get_run),
}

WAITING_METHODS = frozenset({"flows/evaluate", "flows/get_batch", "runs/submit", "runs/get"})
"""Methods that can wait for a run, which may need the slot of the waiting component."""
