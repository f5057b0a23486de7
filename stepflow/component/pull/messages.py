"""Conversions between the component server's JSON and the messages of the pull protocol."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from stepflow.component.shapes import encode
from stepflow.errors import Code, Invalid
from stepflow.pull.v1 import pull_pb2 as pb
from stepflow.pull.values import fill, tree_of

if TYPE_CHECKING:
    from stepflow.component.signature import RegisteredComponent
    from stepflow.component.wire import Message


def component_info(component: RegisteredComponent) -> pb.ComponentInfo:
    """Describe a component. The id is the path without the leading slash, as in 0.13; hosts match patterns."""
    info = component.describe()
    schemas = {
        name: encode(info[name]).decode() for name in ("input_schema", "output_schema") if info.get(name) is not None
    }
    return pb.ComponentInfo(
        component_id=component.path[1:], path=component.path, description=info.get("description"), **schemas
    )


def execute_params(task_id: str, execute: pb.ComponentExecuteRequest) -> dict[str, Any]:
    """Return the params of a `components/execute`. Raises: Invalid (the input has no JSON form)."""
    ids = execute.observability
    return {
        "component": "/" + execute.component_id.lstrip("/"),
        "input": tree_of(execute.input, "the input"),
        "attempt": execute.attempt or 1,
        "run_id": ids.run_id or None,
        "flow_id": ids.flow_id or None,
        "step_id": ids.step_id or None,
        "item": execute.item if execute.HasField("item") else None,
        "idempotency_key": execute.idempotency_key or None,
        "timeout_ms": execute.timeout_ms or None,
        "path_params": dict(execute.path_params),
        "observability": {"task_id": task_id},  # returns with each request of the component
    }


def write_answer(completion: pb.CompleteTaskRequest, answer: Message) -> None:
    """Write a server's answer into a completion. Raises: Invalid (the output has no form as a Value)."""
    if answer.error and bytes(answer.error) != b"null":
        error = msgspec.json.decode(answer.error)
        data = dict(error.get("data") or {})
        code = Code.__members__.get(data.pop("error_code", ""), Code.COMPONENT_FAILED)
        completion.error.CopyFrom(task_error(code, error["message"]))

        with contextlib.suppress(Invalid):  # the message suffices without the details
            details = pb.TaskError()
            for name, value in data.items():
                fill(details.data.fields[name], value, "the details")
            completion.error.data.CopyFrom(details.data)
    else:
        output = msgspec.json.decode(answer.result)["output"]
        response = pb.ComponentExecuteResponse()
        fill(response.output, output, "the output")
        completion.response.CopyFrom(response)


def task_error(code: Code, message: str) -> pb.TaskError:
    return pb.TaskError(code=f"TASK_ERROR_CODE_{code.name}", message=message)


def flow_results(run: pb.OrchestratorRunStatus) -> list[dict[str, Any]]:
    """Return the FlowResult of each input. Raises: Invalid (a number without JSON form)."""
    missing = _failed_result(int(Code.CANCELLED), "the run ended without a result of this input")
    results = [missing] * max(1, run.items.total, *(item.item_index + 1 for item in run.results))

    for item in run.results:
        if item.status == pb.EXECUTION_STATUS_COMPLETED:
            results[item.item_index] = {"outcome": "success", "result": tree_of(item.output, "the result")}
        elif item.status in (pb.EXECUTION_STATUS_FAILED, pb.EXECUTION_STATUS_RECOVERY_FAILED):
            code = item.error_code or int(Code.COMPONENT_FAILED)
            results[item.item_index] = _failed_result(code, item.error_message or "the flow failed")
    return results


def _failed_result(code: int, message: str) -> dict[str, Any]:
    return {"outcome": "failed", "error": {"code": code, "message": message}}
