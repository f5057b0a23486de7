"""Requests of a component to its host, written as conversations of several round trips.

A `Conversation` is a generator: each `yield (method, params)` sends a request, and the `yield` evaluates to the host's
result or raises a `HostError`. The return value is the author's. `HostRequests` drives conversations; tests can drive
them by hand.

The methods are those of the stdio protocol: `blobs/*` and `flows/*`. Transports with other methods translate.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import msgspec

from stepflow.component.errors import FlowFailed, HostError
from stepflow.errors import Code

T = TypeVar("T")

Request: TypeAlias = tuple[str, dict[str, Any]]
"""Method and params."""

Conversation: TypeAlias = Generator[Request, Any, T]
"""Yields requests, receives each result (or a thrown `HostError`), returns the author's value."""

_INVALID_PARAMS = -32602
_INTERNAL_ERROR = -32603


@dataclass(frozen=True, slots=True)
class FlowResult:
    """Outcome of one flow: `value` if `ok`, else `code`, `message` and `data` of the failure."""

    ok: bool
    value: Any = None
    code: str = ""
    message: str = ""
    data: Any = None

    def unwrap(self) -> Any:
        """Return the value. Raises: FlowFailed."""
        if not self.ok:
            raise FlowFailed(self.code, self.message, self.data)
        return self.value

    @classmethod
    def from_wire(cls, result: Any) -> FlowResult:
        """Read a protocol FlowResult. Raises: HostError (malformed)."""
        match result:
            case {"outcome": "success"}:
                return cls(ok=True, value=result.get("result"))

            case {"outcome": "failed", "error": {"code": code, "message": str(message)} as error}:
                return cls(ok=False, code=_code_name(code), message=message, data=error.get("data"))

            case {"outcome": "skipped"}:
                return cls(ok=True, value=None)

        raise _malformed("a flow's result")


@dataclass(frozen=True, slots=True)
class Metadata:
    """The `metadata` members of the flow and of the calling step."""

    flow: Mapping[str, Any]
    step: Mapping[str, Any]


def put_blob(data: Any, blob_type: str) -> Conversation[str]:
    """Store a JSON value; return the blob id."""
    reply = yield "blobs/put", {"data": data, "blob_type": blob_type}
    return _member(reply, "blob_id", str)


def get_blob(blob_id: str) -> Conversation[Any]:
    """Return a stored JSON value. Raises: HostError (no such blob)."""
    reply = yield "blobs/get", {"blob_id": blob_id}
    return _member(reply, "data", object)


def run_flow(flow: str | Mapping[str, Any], value: Any) -> Conversation[Any]:
    """Run a flow, given by id or as a document, on one input; return the output. Raises: FlowFailed, HostError."""
    flow_id = yield from _stored_flow_id(flow)

    reply = yield "flows/evaluate", {"flow_id": flow_id, "input": value}
    return FlowResult.from_wire(_member(reply, "result", dict)).unwrap()


def run_flows(
    flow: str | Mapping[str, Any], inputs: list[Any], max_concurrency: int | None
) -> Conversation[list[FlowResult]]:
    """Run a flow on many inputs; return the results in input order. Raises: HostError."""
    if not inputs:
        return []

    # 1. Store the flow, unless an id was given.
    flow_id = yield from _stored_flow_id(flow)

    # 2. Submit the batch.
    batch = {"flow_id": flow_id, "inputs": inputs, "max_concurrency": max_concurrency}
    reply = yield "flows/submit_batch", {name: value for name, value in batch.items() if value is not None}
    batch_id = _member(reply, "batch_id", str)

    # 3. Wait for the results.
    reply = yield "flows/get_batch", {"batch_id": batch_id, "wait": True, "include_results": True}
    return _in_input_order(_member(reply, "outputs", list), len(inputs))


def get_metadata(flow_id: str | None, step_id: str | None) -> Conversation[Metadata]:
    """Return the metadata of a flow and of a step in the flow. Raises: HostError."""
    if flow_id is None:
        raise HostError(_INVALID_PARAMS, "cannot read the metadata: the host sent no flow id with this call")

    params = {"flow_id": flow_id} if step_id is None else {"flow_id": flow_id, "step_id": step_id}
    reply = yield "flows/get_metadata", params
    return Metadata(flow=_member(reply, "flow_metadata", dict), step=reply.get("step_metadata") or {})


def _stored_flow_id(flow: str | Mapping[str, Any]) -> Conversation[str]:
    if isinstance(flow, str):
        return flow
    return (yield from put_blob(flow, "flow"))


def _in_input_order(outputs: list[Any], count: int) -> list[FlowResult]:
    """Sort a batch's outputs by input index; missing results count as cancelled."""
    results: list[FlowResult | None] = [None] * count
    for output in outputs:
        match output:
            case {"batch_input_index": int(index), "result": dict(result)} if 0 <= index < count:
                results[index] = FlowResult.from_wire(result)

    missing = FlowResult(ok=False, code="CANCELLED", message="the batch ended without a result of this input")
    return [result or missing for result in results]


def _code_name(code: Any) -> str:
    """Return the name of a failure code; hosts send names or the wire's numbers."""
    return Code(code).name if code in Code.__members__.values() else str(code)


def _member(reply: Any, name: str, kind: type[T]) -> T:
    value = reply.get(name, msgspec.UNSET) if isinstance(reply, dict) else msgspec.UNSET
    if value is msgspec.UNSET or not isinstance(value, kind):
        raise _malformed(f"its `{name}`")
    return value


def _malformed(part: str) -> HostError:
    return HostError(_INTERNAL_ERROR, f"the host's reply is malformed: {part} is missing or of another type")
