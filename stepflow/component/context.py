"""What a component gets beside its input: the call's facts, and requests to the host while it runs.

One class serves async and sync components. Whatever asks the host returns a `Reply`, sent at once: an async
component awaits it, a sync one calls `.result()` on it.

Invariants:
- A `Reply` is settled exactly once, on the event loop's thread.
- Every request carries the `observability` object of the execute that caused it, byte for byte, so that the host
  knows whose request it is.

A request of several round trips (store a flow, then run it) is a generator that yields `(method, params)` and is
sent the result; the server drives it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

import msgspec

from stepflow.errors import Code

if TYPE_CHECKING:
    import logging
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from stepflow.component.server import Call

T = TypeVar("T")

Request: TypeAlias = tuple[str, dict[str, Any]]
Conversation: TypeAlias = Generator[Request, Any, T]
"""Yields requests, is sent each result (or is thrown a `HostError`), returns what the author gets."""


class ComponentError(Exception):
    """The component failed. Raise it with a message for people and, in `data`, details that are JSON.

    The step fails with COMPONENT_FAILED, which a step with `onError: {action: retry}` tries again.
    """

    error_code = "COMPONENT_FAILED"

    def __init__(self, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.data = data


class InvalidInput(ComponentError):
    """The input can never succeed; it is not tried again."""

    error_code = "INVALID_INPUT"


class ResourceUnavailable(ComponentError):
    """Something outside is missing for now: a service, a file, a quota."""

    error_code = "RESOURCE_UNAVAILABLE"


class HostError(ComponentError):
    """The host refused a request of the component; `code` is its JSON-RPC error code."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message, data)
        self.code = code


class FlowFailed(ComponentError):
    """A flow that the component ran has failed; `code` is the failure's code (`COMPONENT_FAILED`)."""

    def __init__(self, code: str, message: str, data: Any = None) -> None:
        super().__init__(f"the flow failed with {code}: {message}", data)
        self.code = code


class CallCancelled(ComponentError):
    """Nobody waits for the call any more."""

    error_code = "CANCELLED"


@dataclass(frozen=True, slots=True)
class FlowResult:
    """How one flow ended: `value` when `ok`, else `code`, `message` and `data` of its failure."""

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
        """Read a protocol FlowResult. Raises: HostError (not of that shape)."""
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


class Reply(Generic[T]):
    """What the host will answer: `await reply` in an async component, `reply.result()` in a sync one."""

    __slots__ = ("_future", "_lent", "_on_loop_thread")

    def __init__(
        self,
        future: Future[T],
        on_loop_thread: Callable[[], bool],
        lent: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """`lent`: what a thread is within while it waits; it lends its place to another call."""
        self._future = future
        self._on_loop_thread = on_loop_thread
        self._lent = lent

    def __await__(self) -> Generator[Any, None, T]:
        import asyncio

        return asyncio.wrap_future(self._future).__await__()

    def result(self, timeout_s: float | None = None) -> T:
        """Block this thread until the host has answered.

        Raises:
            HostError: the host refused. FlowFailed: from `run_flow`. TimeoutError: no answer in time.
            RuntimeError: called on the event loop (an async or inline component), where it would wait for itself.
        """
        if self._on_loop_thread() and not self._future.done():
            raise RuntimeError(
                "Reply.result() would block the event loop: in an async component `await` the reply; "
                "a component that waits for the host cannot be inline"
            )
        if self._future.done():
            return self._future.result()
        with self._lent():
            return self._future.result(timeout_s)


class Context:
    """One call, as its component sees it. Annotate a parameter with it to receive it."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    @property
    def run_id(self) -> str | None:
        return self._call.trace("run_id")

    @property
    def step_id(self) -> str | None:
        return self._call.trace("step_id")

    @property
    def flow_id(self) -> str | None:
        return self._call.trace("flow_id")

    @property
    def item(self) -> int | None:
        """Index of the run's input that this call works on; None where the host does not tell."""
        return self._call.params.item

    @property
    def attempt(self) -> int:
        """From 1."""
        return self._call.params.attempt

    @property
    def idempotency_key(self) -> str | None:
        """The same for every attempt of one step execution; None where the host gives none.

        Delivery is at least once: hand this key to what must not happen twice.
        """
        return self._call.params.idempotency_key

    @property
    def path_params(self) -> Mapping[str, str]:
        """What the braces of the component's path matched."""
        return self._call.path_params

    @property
    def timeout_ms(self) -> int | None:
        """How long the host will wait for this call in all; None = no limit that it told."""
        return self._call.params.timeout_ms or None

    @property
    def deadline(self) -> float | None:
        """When the host stops waiting, on the clock of `time.monotonic()`; None = no limit."""
        timeout_ms = self.timeout_ms
        return None if timeout_ms is None else self._call.received_at + timeout_ms / 1000

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, not below 0; None = no limit."""
        deadline = self.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the host has given the call up. A sync component looks now and then; an async one is cancelled."""
        return self._call.cancelled

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger to stderr whose lines name the component and the step."""
        return self._call.log()

    def progress(self, done: float = 0, total: float = 0, message: str = "") -> None:
        """Tell the host that work goes on; `total` 0 = unknown. Cheap: only the latest of each moment is sent."""
        self._call.report_progress(float(done), float(total), message)

    def put_blob(self, data: Any, *, blob_type: Literal["data", "flow"] = "data") -> Reply[str]:
        """Store a JSON value and get its id."""
        return self._call.ask(_put_blob(data, blob_type))

    def get_blob(self, blob_id: str) -> Reply[Any]:
        """Read a stored JSON value. Fails with HostError if there is none."""
        return self._call.ask(_get_blob(blob_id))

    def run_flow(self, flow: str | Mapping[str, Any], input: Any = None) -> Reply[Any]:
        """Run a flow (its id, or the document itself) on one input and get its output. Fails with FlowFailed."""
        return self._call.ask(_run_flow(flow, input))

    def run_flows(
        self, flow: str | Mapping[str, Any], inputs: Sequence[Any], *, max_concurrency: int | None = None
    ) -> Reply[list[FlowResult]]:
        """Run a flow on many inputs and get the results in the order of the inputs; a failed one fails no other."""
        return self._call.ask(_run_flows(flow, list(inputs), max_concurrency))

    def metadata(self) -> Reply[Metadata]:
        """Get the metadata of the flow and of the step that made this call."""
        return self._call.ask(_metadata(self.flow_id, self.step_id))


def _put_blob(data: Any, blob_type: str) -> Conversation[str]:
    reply = yield "blobs/put", {"data": data, "blob_type": blob_type}
    return _member(reply, "blob_id", str)


def _get_blob(blob_id: str) -> Conversation[Any]:
    reply = yield "blobs/get", {"blob_id": blob_id}
    return _member(reply, "data", object)


def _flow_id(flow: str | Mapping[str, Any]) -> Conversation[str]:
    if isinstance(flow, str):
        return flow
    return (yield from _put_blob(flow, "flow"))


def _run_flow(flow: str | Mapping[str, Any], value: Any) -> Conversation[Any]:
    flow_id = yield from _flow_id(flow)
    reply = yield "flows/evaluate", {"flow_id": flow_id, "input": value}
    return FlowResult.from_wire(_member(reply, "result", dict)).unwrap()


def _run_flows(
    flow: str | Mapping[str, Any], inputs: list[Any], max_concurrency: int | None
) -> Conversation[list[FlowResult]]:
    if not inputs:
        return []
    flow_id = yield from _flow_id(flow)
    batch = {"flow_id": flow_id, "inputs": inputs, "max_concurrency": max_concurrency}
    reply = yield "flows/submit_batch", {name: value for name, value in batch.items() if value is not None}
    batch_id = _member(reply, "batch_id", str)
    reply = yield "flows/get_batch", {"batch_id": batch_id, "wait": True, "include_results": True}
    results: list[FlowResult | None] = [None] * len(inputs)
    for output in _member(reply, "outputs", list):
        match output:
            case {"batch_input_index": int(index), "result": dict(result)} if 0 <= index < len(results):
                results[index] = FlowResult.from_wire(result)
    return [
        result or FlowResult(ok=False, code="CANCELLED", message="the batch ended without a result of this input")
        for result in results
    ]


def _metadata(flow_id: str | None, step_id: str | None) -> Conversation[Metadata]:
    if flow_id is None:
        raise HostError(-32602, "the host did not tell the flow of this call, so its metadata cannot be asked for")
    asked = {"flow_id": flow_id} if step_id is None else {"flow_id": flow_id, "step_id": step_id}
    reply = yield "flows/get_metadata", asked
    return Metadata(flow=_member(reply, "flow_metadata", dict), step=reply.get("step_metadata") or {})


def _code_name(code: Any) -> str:
    """Return the name of a failure code; hosts send names or the wire's numbers."""
    return Code(code).name if code in Code.__members__.values() else str(code)


def _member(reply: Any, name: str, kind: type[T]) -> T:
    value = reply.get(name, msgspec.UNSET) if isinstance(reply, dict) else msgspec.UNSET
    if value is msgspec.UNSET or not isinstance(value, kind):
        raise _malformed(f"its `{name}`")
    return value


def _malformed(what: str) -> HostError:
    return HostError(-32603, f"the host's reply is malformed: {what} is missing or of another type")
