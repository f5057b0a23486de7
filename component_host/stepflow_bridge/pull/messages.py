"""The messages of StepFlow over gRPC pull: assignments from calls, outcomes from completions. No I/O.

- An assignment is encoded in two parts, which protobuf merges when concatenated: the input, equal for every worker, and
  the rest, with the ids of the task.
- A completion nested too deeply to decode still names its task.
- A failure keeps the end of its worker's traceback.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from component_host.backend import ComponentInfo
from component_host.stepflow_bridge import failures
from component_host.stepflow_bridge.protocol import DECODE_ERRORS, concrete_component
from stepflow import codec
from stepflow.errors import Code, Failure, Invalid
from stepflow.failure_data import trace_bytes
from stepflow.mesh.v1 import host_pb2, journal_pb2
from stepflow.pull.v1 import pull_pb2 as pb
from stepflow.pull.values import fill, struct_tree, tree_of
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from component_host.backend import HostCall

log = get_logger("component_host.pull")

HEARTBEAT_S = 2
"""Interval of a worker's heartbeats for a task; the reply tells of an abort."""

TRACEBACK_CHARS_MAX = 4 * 1024
"""Length of a traceback in a failure; its end is kept."""

# --- assignments ---------------------------------------------------------------------------------------------------


def encode_input(call: HostCall) -> bytes:
    """Encode the input part of an assignment. Raises: Invalid (numbers, nesting)."""
    part = pb.TaskAssignment()
    fill(part.execute.input, codec.decode(call.input), f"the input of {call.request.path or call.request.component}")
    return part.SerializeToString()


def encode_assignment(
    call: HostCall, input_part: bytes, *, task_id: str, component: str, address: str, call_token: str
) -> bytes:
    """Encode an assignment around its input part. Call-backs of the component bring `call_token`, a UUID."""
    request = call.request

    assignment = pb.TaskAssignment(
        task_id=task_id,
        execute=pb.ComponentExecuteRequest(
            component_id=component,
            attempt=request.attempt,
            observability=pb.ObservabilityContext(
                run_id=request.run_id, flow_id=request.flow_id, step_id=request.step_id
            ),
            path_params=dict(request.path_params),
            idempotency_key=request.key,
            timeout_ms=request.timeout_ms,
            item=request.item,
            takes_logs=True,
        ),
        context=pb.TaskContext(orchestrator_service_url=address, root_run_id=call_token),
        heartbeat_interval_secs=HEARTBEAT_S,
    )

    if match := _TRACEPARENT.match(request.traceparent):
        trace = assignment.execute.observability
        trace.trace_id, trace.span_id = match[1], match[2]
    return assignment.SerializeToString() + input_part


_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}")


def encode_discovery(task_id: str, address: str) -> bytes:
    """Encode the question for a worker's components."""
    return pb.TaskAssignment(
        task_id=task_id,
        list_components=pb.ListComponentsRequest(),
        context=pb.TaskContext(orchestrator_service_url=address),
    ).SerializeToString()


# --- listings ------------------------------------------------------------------------------------------------------


def read_listing(components: Iterable[pb.ComponentInfo]) -> tuple[tuple[ComponentInfo, ...], bool]:
    """Return a worker's components, and True if the list is complete: 0.12 names no paths and leaves out patterns."""
    infos = []
    complete = True
    for listed in components:
        path = listed.path or listed.component_id
        complete = complete and bool(listed.path)
        infos.append(
            ComponentInfo(
                listed.component_id,
                path if path.startswith("/") else "/" + path,
                listed.description if listed.HasField("description") else None,
                _schema(listed.input_schema),
                _schema(listed.output_schema),
            )
        )
    return tuple(infos), complete


def _schema(text: str) -> Any:
    if not text:
        return None
    try:
        return codec.decode(text)
    except DECODE_ERRORS:
        return None  # a component without a schema can be called all the same


def dispatch_keys(components: Iterable[ComponentInfo]) -> dict[str, str]:
    """Return the listed name of each component, by the name with and without its slash.

    Workers accept only the names as listed: with a slash in 0.12, without in 0.13.
    """
    keys: dict[str, str] = {}
    for info in components:
        bare = info.component.lstrip("/")
        keys |= {info.component: info.component, bare: info.component, f"/{bare}": info.component}
    return keys


def dispatch_key(call: HostCall, keys: Mapping[str, str]) -> str:
    """Return the component's name for the worker with `keys`: the listed name, or else the path."""
    component = call.request.component
    return keys.get(component) or concrete_component(component, dict(call.request.path_params))


# --- completions ---------------------------------------------------------------------------------------------------


def read_completion(data: bytes) -> pb.CompleteTaskRequest | pb.CompleteTaskHead:
    """Decode a CompleteTask; only the head if the rest cannot be read. Raises: DecodeError (another message)."""
    try:
        return pb.CompleteTaskRequest.FromString(data)
    except DecodeError:
        pass
    try:
        return pb.CompleteTaskHead.FromString(data)
    except DecodeError:
        # The rest is broken as well. Workers write the id first: one tag, one byte of length, the text.
        return pb.CompleteTaskHead.FromString(data[: 2 + data[1]] if data[1:] else data)


def output_of(response: pb.ComponentExecuteResponse) -> bytes:
    """Return a component's output as JSON. Raises: Invalid NUMBER_INVALID."""
    return codec.encode(tree_of(response.output, "the output"))


def unreadable_output() -> Failure:
    """Return the failure for a completion of which only the head can be read."""
    return Failure(
        Code.COMPONENT_FAILED,
        "the worker's answer cannot be read: it is broken, or its output is nested deeper than a message can be "
        "(return JSON text, or a blob)",
    )


def no_outcome(request: pb.CompleteTaskRequest) -> Failure:
    """Return the failure for a completion without a result or an error."""
    has = "a list of components" if request.HasField("list_components") else "nothing"
    return Failure(Code.WORKER_ERROR, f"the worker completed the call with {has} instead of a result or an error")


def failure_of(error: pb.TaskError, call: HostCall) -> Failure:
    """Map the error of a worker, with the end of its traceback; log the whole traceback."""
    try:
        code = Code(error.code) or Code.WORKER_ERROR
    except ValueError:  # of a later version
        code = Code.WORKER_ERROR

    try:
        data = struct_tree(error.data, "the details")
    except Invalid as problem:
        data = {"reason": problem.reason}

    trace: dict[str, Any] = {}
    traceback = data.pop("traceback", None)
    message = error.message
    if code is Code.WORKER_ERROR and message.startswith(_TRACEBACK):
        traceback = message
        message = message.strip().rpartition("\n")[2]  # the last line is the exception itself
    if traceback is not None:
        log.debug("component failed", component=call.request.component, step_id=call.request.step_id, text=traceback)
        if isinstance(traceback, str) and not trace_bytes(codec.encode(data)):
            trace = {"traceback": traceback.strip()[-TRACEBACK_CHARS_MAX:]}

    if _NOT_FOUND.fullmatch(message) and not data:
        code = Code.COMPONENT_NOT_FOUND  # workers send COMPONENT_FAILED
    data |= trace
    text = codec.encode(data) if data else b""
    return Failure(code, message[: failures.MESSAGE_CHARS_MAX], text if len(text) <= failures.DATA_BYTES_MAX else b"")


_TRACEBACK = "Traceback (most recent call last)"
_NOT_FOUND = re.compile(r"Component '[^'\n]*' not found")

# --- sub-runs ------------------------------------------------------------------------------------------------------


def read_submission(request: pb.OrchestratorSubmitRunRequest) -> host_pb2.StartRun:
    """Read the run that a component asks for. Raises: Invalid (no flow, numbers outside JSON)."""
    asked = request.run_request
    if not asked.flow_id:
        raise Invalid("FLOW_MISSING", "SubmitRun needs `run_request.flow_id`")

    start = host_pb2.StartRun(key=request.subflow_key, wait=asked.wait, max_concurrency=asked.max_concurrency)
    start.flow.blob = asked.flow_id
    start.inputs.json = _checked([tree_of(value, "the input") for value in asked.input], "the inputs")
    if asked.variables:
        variables = {name: tree_of(value, f"variable {name!r}") for name, value in sorted(asked.variables.items())}
        start.variables_json = _checked(variables, "the variables")
    if asked.HasField("overrides"):
        start.overrides_json = _checked(struct_tree(asked.overrides, "the overrides"), "the overrides")
    return start


def _checked(tree: Any, what: str) -> bytes:
    return codec.compact(codec.encode(tree), what=what)


def run_status(report: host_pb2.RunReport, *, root_run_id: str, results: bool) -> pb.OrchestratorRunStatus:
    """Encode a report. Raises: Invalid NUMBER_TOO_LARGE, VALUE_TOO_DEEP (of a result)."""
    counts = dict.fromkeys(_COUNTED.values(), 0)
    for item in report.items:
        if (name := _COUNTED.get(item.status)) is not None:
            counts[name] += 1

    status = pb.OrchestratorRunStatus(
        run_id=report.run_id,
        flow_id=report.flow_id,
        flow_name=report.flow_name or None,
        status=_execution_status(report.status),
        items=pb.ItemStatistics(total=len(report.items), **counts),
        root_run_id=root_run_id,
    )
    status.created_at.FromMilliseconds(report.created_at_ms)
    if report.completed_at_ms:
        status.completed_at.FromMilliseconds(report.completed_at_ms)

    if results:
        for index, item in enumerate(report.items):
            _add_result(status, index, item)
    return status


def _add_result(status: pb.OrchestratorRunStatus, index: int, item: host_pb2.ReportItem) -> None:
    result = status.results.add(item_index=index, status=_execution_status(item.status))
    if not item.flow_result.json:
        return
    outcome = codec.decode(item.flow_result.json)
    if outcome.get("outcome") == "success":
        fill(result.output, outcome.get("result"), f"result {index} of run {status.run_id}")
        return

    error = outcome.get("error") or {}
    code = error.get("code")  # a name if the host wrote it, else declared by a component
    name = code if isinstance(code, str) and code in Code.__members__ else "COMPONENT_FAILED"
    message = str(error.get("message") or "")
    result.MergeFrom(pb.ItemResult(error_message=message, error_code=f"TASK_ERROR_CODE_{name}"))


_COUNTED: dict[int, str] = {
    journal_pb2.RUN_STATUS_COMPLETED: "completed",
    journal_pb2.RUN_STATUS_RUNNING: "running",
    journal_pb2.RUN_STATUS_FAILED: "failed",
    journal_pb2.RUN_STATUS_RECOVERY_FAILED: "failed",
    journal_pb2.RUN_STATUS_CANCELLED: "cancelled",
}

_STATUSES: dict[int, pb.ExecutionStatus] = {
    journal_pb2.RUN_STATUS_COMPLETED: pb.EXECUTION_STATUS_COMPLETED,
    journal_pb2.RUN_STATUS_FAILED: pb.EXECUTION_STATUS_FAILED,
    journal_pb2.RUN_STATUS_CANCELLED: pb.EXECUTION_STATUS_CANCELLED,
    journal_pb2.RUN_STATUS_PAUSED: pb.EXECUTION_STATUS_PAUSED,
    journal_pb2.RUN_STATUS_RECOVERY_FAILED: pb.EXECUTION_STATUS_RECOVERY_FAILED,
}


def _execution_status(status: int) -> pb.ExecutionStatus:
    return _STATUSES.get(status, pb.EXECUTION_STATUS_RUNNING)


# --- blobs ---------------------------------------------------------------------------------------------------------


def blob_content(request: pb.PutBlobRequest) -> tuple[bytes, str]:
    """Return content and type of a blob to be stored. Raises: Invalid."""
    kind = request.WhichOneof("content")
    if kind == "raw_data":
        return request.raw_data, request.blob_type or "binary"
    if kind == "json_data":
        return _checked(tree_of(request.json_data, "the blob"), "the blob"), request.blob_type or "data"
    raise Invalid("BLOB_EMPTY", "PutBlob needs `json_data` or `raw_data`")


def blob_reply(blob_id: str, content: bytes, blob_type: str) -> pb.GetBlobResponse:
    """Encode a stored blob. Raises: Invalid NUMBER_TOO_LARGE, VALUE_TOO_DEEP."""
    reply = pb.GetBlobResponse(blob_id=blob_id, blob_type=blob_type)
    if blob_type == "binary":
        reply.raw_data = content
    else:
        fill(reply.json_data, codec.decode(content), f"blob {blob_id}")
    return reply
