"""The records of a queue: an offer (a call without a worker), a task (one dispatch of a call), a worker, its outbox."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.backend import HostCall


def _do_nothing() -> None:
    pass


class Outbox:
    """Messages to a worker on one stream, FIFO. `changed` is called after each change."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.ended = False
        self.broken = False
        self.changed: Callable[[], None] = _do_nothing

    def put(self, message: bytes) -> None:
        self.messages.append(message)
        self.changed()

    def end(self) -> None:
        """End the stream cleanly, after its messages. Only for workers that must end: their next failure ends them."""
        self.ended = True
        self.changed()

    def break_off(self) -> None:
        """End the stream with an error: the worker connects again soon."""
        self.broken = True
        self.end()


@dataclass(slots=True, eq=False)
class WorkerOffer:
    """A call for any worker, and the call's present task."""

    call: HostCall
    input_part: bytes
    since: float
    task: Task | None = None


@dataclass(slots=True, eq=False)
class Task:
    """One dispatch of a call. Call-backs bring `call_token`."""

    id: str
    call_token: str
    worker: Worker
    offer: WorkerOffer
    sent_at: float
    heard_at: float
    claimed_at: float = 0.0
    """0: not claimed. Of a task that was queued in its worker: when the component began."""
    claimed_by: str = ""
    """Id of the claimant: a worker may hand tasks to another process."""
    aborted_at: float | None = None
    runs_awaited: int = 0
    """Number of flows the component waits for now."""
    queued: bool = False
    """Claimed, but the component waits for a thread of its worker; no time of a timeout passes."""

    @property
    def aborted(self) -> bool:
        return self.aborted_at is not None

    @property
    def executing(self) -> bool:
        """True while a component works on a call that is still wanted."""
        return not self.aborted and not self.queued


@dataclass(slots=True, eq=False)
class Worker:
    """One worker, over all connections. `group` is the process behind the worker, if started here."""

    id: str
    group: object
    address: str
    concurrency: int
    lends: bool
    """Tasks waiting for a flow free their slot; only for workers with more slots of their own than `concurrency`."""
    outbox: Outbox | None = None
    listed: bool = False
    keys: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    question: str = ""
    """Id of the open question for components; empty after the answer."""
    asked_at: float = 0.0
    heard_at: float = 0.0
    retired_at: float | None = None
    """Since when the worker gets no more tasks: its process will be ended."""

    def aborted_before(self, instant: float) -> list[Task]:
        """Return the tasks aborted before an instant that the worker has not completed."""
        return [task for task in self.tasks.values() if task.aborted_at is not None and task.aborted_at < instant]

    @property
    def room(self) -> int:
        """Number of further tasks the worker may get now."""
        if self.outbox is None or not self.listed or self.retired_at is not None:
            return 0
        lent = sum(1 for task in self.tasks.values() if task.runs_awaited) if self.lends else 0
        return self.concurrency - len(self.tasks) + lent
