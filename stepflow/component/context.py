"""`Context`: the facts of a call, and requests to the host while the call runs.

Async and sync components share the class. Every request is sent at once and returns a `Reply`: async components
await the reply, sync components call `.result()` on it.

Invariant: every request carries the `observability` object of the execute byte for byte, so that the host can
attribute the request to the step.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from stepflow.component import conversations

if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping, Sequence

    from stepflow.component.conversations import Conversation, FlowResult, Metadata
    from stepflow.component.reply import HostReply
    from stepflow.component.wire import ExecuteParams

T = TypeVar("T")


class CallFacts(Protocol):
    """The part of a call that its component may see."""

    params: ExecuteParams
    path_params: Mapping[str, str]
    cancelled: bool
    received_at: float
    """Seconds on the clock of `time.monotonic()`."""

    def trace(self, name: Literal["run_id", "step_id", "flow_id"]) -> str | None: ...
    def log(self) -> logging.LoggerAdapter[logging.Logger]: ...
    def report_progress(self, done: float, total: float, message: str) -> None: ...
    def ask(self, conversation: Conversation[T]) -> HostReply[T]: ...


class Context:
    """One call, as seen by the component. Annotate a parameter with `Context` to receive the object."""

    __slots__ = ("_call",)

    def __init__(self, call: CallFacts) -> None:
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
        """0-based index of the run's input; None if the host sends none."""
        return self._call.params.item

    @property
    def attempt(self) -> int:
        """1-based."""
        return self._call.params.attempt

    @property
    def idempotency_key(self) -> str | None:
        """Key shared by all attempts of one step execution; None if the host sends none.

        Delivery is at least once: pass the key to external operations that must not be repeated.
        """
        return self._call.params.idempotency_key

    @property
    def path_params(self) -> Mapping[str, str]:
        """Texts matched by the braces of the component's path."""
        return self._call.path_params

    @property
    def timeout_ms(self) -> int | None:
        """Total time the host grants the call, in milliseconds; None = no limit sent."""
        return self._call.params.timeout_ms or None

    @property
    def deadline(self) -> float | None:
        """Instant at which the host stops waiting, on the clock of `time.monotonic()`; None = no limit."""
        timeout_ms = self.timeout_ms
        return None if timeout_ms is None else self._call.received_at + timeout_ms / 1000

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, never negative; None = no limit."""
        deadline = self.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """True once the host has cancelled the call. Sync components poll the flag; async ones get a cancellation."""
        return self._call.cancelled

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """Logger of the call: the host shows the lines with the run and the step. Other hosts: to stderr."""
        return self._call.log()

    def progress(self, done: float = 0, total: float = 0, message: str = "") -> None:
        """Report progress to the host; `total` 0 = unknown. Cheap: only the latest report of each interval is sent."""
        self._call.report_progress(float(done), float(total), message)

    def put_blob(self, data: Any, *, blob_type: Literal["data", "flow"] = "data") -> HostReply[str]:
        """Store a JSON value; the reply is the blob id."""
        return self._call.ask(conversations.put_blob(data, blob_type))

    def get_blob(self, blob_id: str) -> HostReply[Any]:
        """Read a stored JSON value. The reply raises HostError if the blob does not exist."""
        return self._call.ask(conversations.get_blob(blob_id))

    def run_flow(self, flow: str | Mapping[str, Any], input: Any = None) -> HostReply[Any]:
        """Run a flow, given by id or as a document, on one input; the reply is the output, or raises FlowFailed."""
        return self._call.ask(conversations.run_flow(flow, input))

    def run_flows(
        self, flow: str | Mapping[str, Any], inputs: Sequence[Any], *, max_concurrency: int | None = None
    ) -> HostReply[list[FlowResult]]:
        """Run a flow on many inputs; the reply lists the results in input order. Failures are independent."""
        return self._call.ask(conversations.run_flows(flow, list(inputs), max_concurrency))

    def metadata(self) -> HostReply[Metadata]:
        """Read the metadata of the calling flow and step."""
        return self._call.ask(conversations.get_metadata(self.flow_id, self.step_id))
