"""`ComponentCall`: one execute in flight, from its line to its answer."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

import msgspec

from stepflow.component.wire import UNREADABLE, ExecuteParams, Id, TraceIds

if TYPE_CHECKING:
    import asyncio
    from collections import deque
    from collections.abc import Mapping

    from stepflow.component.conversations import Conversation
    from stepflow.component.logs import CallLog
    from stepflow.component.reply import HostReply
    from stepflow.component.signature import RegisteredComponent

T = TypeVar("T")

LOG = logging.getLogger("stepflow.component")

Progress: TypeAlias = tuple[float, float, str]
"""Done, total, message."""


class CallOwner(Protocol):
    """Runs calls, and carries their requests, progress and log lines to the host. From any thread."""

    @property
    def takes_logs(self) -> bool: ...

    def ask(self, call: ComponentCall, conversation: Conversation[T]) -> HostReply[T]: ...
    def report_progress(self, call: ComponentCall, progress: Progress) -> None: ...
    def log_text(self, call: ComponentCall, level: str, text: str) -> bool: ...
    def log_printed(self, call: ComponentCall, stream: str, text: str) -> bool: ...
    def run_in_thread(self, call: ComponentCall) -> None: ...


class ComponentCall:
    """One execute in flight: the data behind `Context`, and the state kept by the server's parts."""

    __slots__ = (
        "_trace",
        "cancelled",
        "component",
        "ended",
        "id",
        "log_lines",
        "owner",
        "params",
        "path_params",
        "progress",
        "progress_noted",
        "progress_sent_at",
        "queue_told",
        "received_at",
        "request_ids",
        "task",
    )

    def __init__(
        self,
        owner: CallOwner,
        call_id: Id,
        params: ExecuteParams,
        component: RegisteredComponent,
        path_params: Mapping[str, str],
    ) -> None:
        self.owner = owner
        self.id = call_id
        self.params = params
        self.component = component
        self.path_params = path_params
        self.cancelled = False
        self.ended = False
        self.received_at = time.monotonic()

        self.task: asyncio.Task[None] | None = None
        """Of an async component."""

        self.request_ids: set[str] | None = None
        """Unanswered requests to the host."""

        self.progress: deque[Progress] | None = None
        """The latest unsent report, if any; a deque because component threads append while the loop pops."""

        self.progress_noted = False
        self.progress_sent_at = 0.0
        self.log_lines: CallLog | None = None
        """None until the component logs or prints."""
        self.queue_told = False
        """The host was told that the call waits for a thread."""
        self._trace: TraceIds | None = None

    def trace(self, name: Literal["run_id", "step_id", "flow_id"]) -> str | None:
        """Return an id from the parameters, falling back to `observability`."""
        value: str | None = getattr(self.params, name)
        if value is not None:
            return value

        if self._trace is None:
            try:
                self._trace = msgspec.json.decode(self.params.observability, type=TraceIds)
            except UNREADABLE:  # absent, null, or of a shape private to the host
                self._trace = TraceIds()
        found: str | None = getattr(self._trace, name)
        return found

    def ask(self, conversation: Conversation[T]) -> HostReply[T]:
        return self.owner.ask(self, conversation)

    def report_progress(self, done: float, total: float, message: str) -> None:
        self.owner.report_progress(self, (done, total, message))

    @property
    def takes_logs(self) -> bool:
        """True if the host takes log lines of this call."""
        return not self.ended and self.owner.takes_logs

    def log_text(self, level: str, text: str) -> bool:
        """Log a text of `logging`; return False if the host gets none."""
        return self.owner.log_text(self, level, text)

    def log_printed(self, stream: str, text: str) -> bool:
        """Log printed text; return False if the host gets none."""
        return self.owner.log_printed(self, stream, text)

    def run_in_thread(self) -> None:
        self.owner.run_in_thread(self)

    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        if self.takes_logs:
            return logging.LoggerAdapter(LOG, {})  # the host names component and step itself
        where = f"{self.component.path} step={self.trace('step_id')} run={self.trace('run_id')}"
        return _PrefixedLog(LOG, {"where": where})


class _PrefixedLog(logging.LoggerAdapter[logging.Logger]):
    """Prefixes each line with the component and the step."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        where = self.extra["where"] if self.extra else ""
        return f"[{where}] {msg}", kwargs
