"""Sub-runs and metadata that components ask for, in the words of two generations of the protocol.

Servers up to 0.7 evaluate flows and submit batches; later servers submit runs. Some servers mix both.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeGuard

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from component_host.stepflow_bridge.json_values import compact, compact_list
from stepflow import codec
from stepflow.errors import Code, Invalid
from stepflow.mesh.v1 import host_pb2, journal_pb2

if TYPE_CHECKING:
    from component_host.backend import BlobAccess, HostCall

# --- up to 0.7 -----------------------------------------------------------------------------------------------------


class EvaluateParams(Struct):
    input: Raw
    flow: Raw | UnsetType = UNSET
    flow_id: str | None = None


class SubmitBatchParams(Struct):
    flow_id: str
    inputs: list[Raw]
    max_concurrency: int | None = None


class GetBatchParams(Struct):
    batch_id: str
    wait: bool | None = None
    include_results: bool | None = None


class GetMetadataParams(Struct):
    flow_id: str
    step_id: str | None = None


async def evaluate_flow(call: HostCall, request: EvaluateParams) -> dict[str, Any]:
    start = host_pb2.StartRun(wait=True)
    if _given(request.flow):
        start.flow.json = await compact(request.flow, "the flow")
    elif request.flow_id is not None:
        start.flow.blob = request.flow_id
    else:
        raise Invalid("FLOW_MISSING", "flows/evaluate needs `flow` or `flow_id`")

    start.inputs.json = await compact_list([request.input])
    report = await call.start_run(start)
    results = await _flow_results(report, call.blobs)
    return {"result": results[0] if results and results[0] is not None else _missing_result(report.status)}


async def submit_batch(call: HostCall, request: SubmitBatchParams) -> dict[str, Any]:
    start = host_pb2.StartRun(wait=False, max_concurrency=request.max_concurrency or 0)
    start.flow.blob = request.flow_id
    start.inputs.json = await compact_list(request.inputs)
    report = await call.start_run(start)
    return {"batch_id": report.run_id, "total_runs": len(request.inputs)}


async def get_batch(call: HostCall, request: GetBatchParams) -> dict[str, Any]:
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


async def get_metadata(call: HostCall, request: GetMetadataParams) -> dict[str, Any]:
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


# --- later generations ---------------------------------------------------------------------------------------------


class SubmitRunParams(Struct, rename="camel"):
    flow_id: str
    inputs: list[Raw]
    wait: bool = False
    max_concurrency: int | None = None
    overrides: Raw | UnsetType = UNSET
    subflow_key: str | None = None


class GetRunParams(Struct, rename="camel"):
    run_id: str
    wait: bool = False
    include_results: bool = False


async def submit_run(call: HostCall, request: SubmitRunParams) -> dict[str, Any]:
    start = host_pb2.StartRun(
        wait=request.wait, max_concurrency=request.max_concurrency or 0, key=request.subflow_key or ""
    )
    start.flow.blob = request.flow_id
    start.inputs.json = await compact_list(request.inputs)
    if _given(request.overrides):
        start.overrides_json = await compact(request.overrides, "the overrides")
    return await _run_status(await call.start_run(start), call.blobs, results=request.wait)


async def get_run(call: HostCall, request: GetRunParams) -> dict[str, Any]:
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


# --- reports -------------------------------------------------------------------------------------------------------


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
