"""Requests of a StepFlow server while one of its components executes: blobs, sub-runs, metadata.

`answer` returns exactly one line in every case: components of several generations wait without end after a missing
reply, or after a reply with a member missing or of another type. Hence:
- Failure codes are numbers here; `blob_type` is always `data` or `flow`.
- A reply too long for the server becomes an error.

A request is served in the name of its call (`HostCall`); the transport finds the call.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeGuard

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from component_host.stepflow_bridge import protocol
from stepflow import codec
from stepflow.errors import Code, Invalid, NotFound, StepflowError
from stepflow.mesh.v1 import host_pb2, journal_pb2
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from component_host.backend import BlobAccess, HostCall

THREAD_BYTES_MIN = 256 * 1024
"""JSON from this size on is checked in a thread: the check takes more than a millisecond."""

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
        return protocol.error_line(request_id, protocol.INTERNAL, f"{method} failed inside the component host")

    if len(line) - 1 > line_bytes_max:
        return protocol.error_line(
            request_id,
            protocol.INVALID_VALUE,
            f"{method}: the reply is {len(line) - 1:,} bytes and this server reads lines of at most {line_bytes_max:,}",
        )
    return line


# --- blobs ---------------------------------------------------------------------------------------------------------


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


async def put_json(blobs: BlobAccess, data: Raw | bytes, blob_type: str | None) -> str:
    """Store a JSON value and return its id. Raises: StepflowError."""
    return await blobs.put(await _compact(data, "the blob"), blob_type=blob_type or "data")


async def get_json(blobs: BlobAccess, blob_id: str) -> tuple[Raw, str]:
    """Return a JSON blob without newlines, and its type, `data` or `flow`. Raises: StepflowError."""
    content, blob_type = await blobs.get(blob_id)
    if blob_type == "binary":
        raise Invalid("BLOB_NOT_JSON", f"blob {blob_id} is binary; this protocol carries JSON only")
    # A newline would end the line of the reply. Blobs stored by us have none; the check is cheap.
    text = content if b"\n" not in content else await _compact(content, "the blob")
    return Raw(text), "flow" if blob_type == "flow" else "data"


# --- runs, up to 0.7 -------------------------------------------------------------------------------------


class _Evaluate(Struct):
    input: Raw
    flow: Raw | UnsetType = UNSET
    flow_id: str | None = None


class _SubmitBatch(Struct):
    flow_id: str
    inputs: list[Raw]
    max_concurrency: int | None = None


class _GetBatch(Struct):
    batch_id: str
    wait: bool | None = None
    include_results: bool | None = None


class _GetMetadata(Struct):
    flow_id: str
    step_id: str | None = None


async def _evaluate(call: HostCall, request: _Evaluate) -> dict[str, Any]:
    start = host_pb2.StartRun(wait=True)
    if _given(request.flow):
        start.flow.json = await _compact(request.flow, "the flow")
    elif request.flow_id is not None:
        start.flow.blob = request.flow_id
    else:
        raise Invalid("FLOW_MISSING", "flows/evaluate needs `flow` or `flow_id`")

    start.inputs.json = await _compact_list([request.input])
    report = await call.start_run(start)
    results = await _flow_results(report, call.blobs)
    return {"result": results[0] if results and results[0] is not None else _missing_result(report.status)}


async def _submit_batch(call: HostCall, request: _SubmitBatch) -> dict[str, Any]:
    start = host_pb2.StartRun(wait=False, max_concurrency=request.max_concurrency or 0)
    start.flow.blob = request.flow_id
    start.inputs.json = await _compact_list(request.inputs)
    report = await call.start_run(start)
    return {"batch_id": report.run_id, "total_runs": len(request.inputs)}


async def _get_batch(call: HostCall, request: _GetBatch) -> dict[str, Any]:
    report = await call.get_run(request.batch_id, wait=bool(request.wait))
    counts = _counts(report)

    details = {
        "batch_id": report.run_id,
        "flow_id": report.flow_id,
        "flow_name": report.flow_name or None,
        "total_runs": len(report.items),
        # The only two values of the protocol; the counts tell the end of a batch.
        "status": "cancelled" if report.status == journal_pb2.RUN_STATUS_CANCELLED else "running",
        "created_at": _timestamp(report.created_at_ms),
        "completed_at": _timestamp(report.completed_at_ms) if report.completed_at_ms else None,
        **{f"{status}_runs": counts[status] for status in ("completed", "running", "failed", "cancelled", "paused")},
    }

    outputs = None
    if request.include_results:
        results = await _flow_results(report, call.blobs)
        outputs = [
            {"batch_input_index": index, "status": _status(item.status), **({"result": result} if result else {})}
            for index, (item, result) in enumerate(zip(report.items, results, strict=True))
        ]
    return {"details": details, "outputs": outputs}


async def _get_metadata(call: HostCall, request: _GetMetadata) -> dict[str, Any]:
    flow = codec.decode(await call.get_flow(request.flow_id))
    steps = flow.get("steps") or [] if isinstance(flow, dict) else []
    metadata = [step.get("metadata") or {} for step in steps if step.get("id") == request.step_id]
    return {
        "flow_metadata": _flow_metadata(flow),
        "step_metadata": metadata[-1] if request.step_id is not None and metadata else None,
    }


def _flow_metadata(flow: dict[str, Any]) -> dict[str, Any]:
    named = {name: flow[name] for name in ("name", "description", "version") if flow.get(name) is not None}
    return {**named, **(flow.get("metadata") or {})}


# --- runs, later generations (some servers mix both) -----------------------------------------------


class _SubmitRun(Struct, rename="camel"):
    flow_id: str
    inputs: list[Raw]
    wait: bool = False
    max_concurrency: int | None = None
    overrides: Raw | UnsetType = UNSET
    subflow_key: str | None = None


class _GetRun(Struct, rename="camel"):
    run_id: str
    wait: bool = False
    include_results: bool = False


async def _submit_run(call: HostCall, request: _SubmitRun) -> dict[str, Any]:
    start = host_pb2.StartRun(
        wait=request.wait, max_concurrency=request.max_concurrency or 0, key=request.subflow_key or ""
    )
    start.flow.blob = request.flow_id
    start.inputs.json = await _compact_list(request.inputs)
    if _given(request.overrides):
        start.overrides_json = await _compact(request.overrides, "the overrides")
    return await _run_status(await call.start_run(start), call.blobs, results=request.wait)


async def _get_run(call: HostCall, request: _GetRun) -> dict[str, Any]:
    report = await call.get_run(request.run_id, wait=request.wait)
    return await _run_status(report, call.blobs, results=request.include_results)


async def _run_status(report: host_pb2.RunReport, blobs: BlobAccess, *, results: bool) -> dict[str, Any]:
    counts = _counts(report)

    status: dict[str, Any] = {
        "runId": report.run_id,
        "flowId": report.flow_id,
        "flowName": report.flow_name or None,
        "status": _status(report.status),
        "items": {
            "total": len(report.items),
            **{name: counts[name] for name in ("completed", "running", "failed", "cancelled")},
        },
        "createdAt": _timestamp(report.created_at_ms),
        "completedAt": _timestamp(report.completed_at_ms) if report.completed_at_ms else None,
    }

    if results:
        flow_results = await _flow_results(report, blobs)
        status["results"] = [
            {"itemIndex": index, "status": _status(item.status), **({"result": result} if result else {})}
            for index, (item, result) in enumerate(zip(report.items, flow_results, strict=True))
        ]
    return status


def _given(member: Raw | UnsetType) -> TypeGuard[Raw]:
    return isinstance(member, Raw) and bytes(member) != b"null"


# --- shared --------------------------------------------------------------------------------------------------------


async def _compact(text: Raw | bytes, what: str) -> bytes:
    data = bytes(text)
    if len(data) < THREAD_BYTES_MIN:
        return codec.compact(data, what=what)
    return await asyncio.to_thread(codec.compact, data, what=what)


async def _compact_list(texts: list[Raw]) -> bytes:
    return codec.encode([Raw(await _compact(text, "the input")) for text in texts])


class _FlowResult(Struct):
    outcome: str
    error: dict[str, Any] | None = None


async def _flow_results(report: host_pb2.RunReport, blobs: BlobAccess) -> list[Raw | dict[str, Any] | None]:
    """Return the FlowResult of each item, in index order; None for an item without result yet."""
    results: list[Raw | dict[str, Any] | None] = []
    for item in report.items:
        payload = item.flow_result
        text = (await blobs.get(payload.blob))[0] if payload.blob else payload.json
        results.append(_with_numeric_code(text) if text else None)
    return results


def _with_numeric_code(text: bytes) -> Raw | dict[str, Any]:
    result = msgspec.json.decode(text, type=_FlowResult)
    if result.outcome == "success" or result.error is None:
        return Raw(text)
    error = dict(result.error)
    code = error.get("code")
    if isinstance(code, str):  # stored by name; these servers decode a number only, and wait without end otherwise
        error["code"] = int(Code.__members__.get(code, Code.UNSPECIFIED))
    return {"outcome": "failed", "error": error}


def _missing_result(status: int) -> dict[str, Any]:
    cancelled = status == journal_pb2.RUN_STATUS_CANCELLED
    code = Code.CANCELLED if cancelled else Code.ORCHESTRATOR_ERROR
    message = "the run was cancelled" if cancelled else f"the run ended without a result ({_status(status)})"
    return {"outcome": "failed", "error": {"code": int(code), "message": message}}


_STATUS_NAMES: dict[int, str] = {
    journal_pb2.RUN_STATUS_RUNNING: "running",
    journal_pb2.RUN_STATUS_COMPLETED: "completed",
    journal_pb2.RUN_STATUS_FAILED: "failed",
    journal_pb2.RUN_STATUS_CANCELLED: "cancelled",
    journal_pb2.RUN_STATUS_PAUSED: "paused",
    journal_pb2.RUN_STATUS_RECOVERY_FAILED: "failed",
}


def _status(status: int) -> str:
    return _STATUS_NAMES.get(status, "running")


def _counts(report: host_pb2.RunReport) -> dict[str, int]:
    counts = dict.fromkeys(_STATUS_NAMES.values(), 0)
    for item in report.items:
        counts[_status(item.status)] += 1
    return counts


def _timestamp(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class _Handler:
    params: Any
    serve: Callable[[HostCall, Any], Awaitable[dict[str, Any]]]


_HANDLERS = {
    "blobs/put": _Handler(_BlobPutParams, _put_blob),
    "blobs/get": _Handler(_BlobGetParams, _get_blob),
    "flows/evaluate": _Handler(_Evaluate, _evaluate),
    "flows/get_metadata": _Handler(_GetMetadata, _get_metadata),
    "flows/submit_batch": _Handler(_SubmitBatch, _submit_batch),
    "flows/get_batch": _Handler(_GetBatch, _get_batch),
    "runs/submit": _Handler(_SubmitRun, _submit_run),
    "runs/get": _Handler(_GetRun, _get_run),
}

WAITING_METHODS = frozenset({"flows/evaluate", "flows/get_batch", "runs/submit", "runs/get"})
"""Methods that can wait for a run, which may need the slot of the waiting component."""
