"""The calls of one plugin whose workers pull: who has what, since when, and what becomes of it.

A call is *offered*, *sent* to a worker as a task, *claimed* by the worker's first heartbeat, and *completed*. Promises:
- A worker never has more uncompleted tasks than its concurrency. Where the worker itself has more places than that,
  a task that waits for a flow which it runs is not counted, so a parent leaves room for its child.
- A call that was sent and not claimed when its worker went away is sent again, under another task id: whoever claims
  the old one later, is refused. A claimed one that is lost fails as UNREACHABLE: it may have been done, or half done.
- A worker lives while its stream does, or while it is heard of. Silence alone says nothing: a component that blocks
  the worker's event loop blocks its heartbeats too. But a worker that is heard of for other tasks and not for this
  one, does not work on this one any more.
- A cancelled task keeps its place until it is completed: workers of 0.12 and 0.13 cannot stop a component.
- Workers of one queue are taken to offer the same: the latest list is the queue's, and any worker may get any call.

Not here: sockets (`pull_door`), processes (`stepflow_pull`), and the form of messages (`pull_messages`).
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from component_host.backend import BackendListing, ComponentInfo
from component_host.stepflow_bridge.pull import messages
from stepflow.errors import Code, Failure, Invalid, Overloaded
from stepflow.pull import RECEIVE_BYTES_MAX
from stepflow.pull.v1 import pull_pb2 as pb
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.backend import HostCall

log = get_logger("component_host.pull")

OFFERS_MAX = 10_000
"""Calls that wait for a worker with room."""

WORKERS_MAX = 10_000

GONE_S = 15.0
"""A worker without a stream is given up when nothing was heard of it for so long. It connects again after 2 s."""

SILENT_S = 30.0
"""A task is given up when its worker was heard of for others so long after it was last heard of for this one."""

assert GONE_S >= 3 * messages.HEARTBEAT_S  # two lost heartbeats cost nothing
assert SILENT_S > GONE_S


class Outbox:
    """What goes to a worker on one stream, in order. `changed` is called when there is something to do."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.ended = False
        self.broken = False
        self.changed: Callable[[], None] = _nothing

    def put(self, message: bytes) -> None:
        self.messages.append(message)
        self.changed()

    def end(self) -> None:
        """End the stream well, behind what is in it. Only for workers that are to end: the next failure ends them."""
        self.ended = True
        self.changed()

    def break_off(self) -> None:
        """End the stream with an error: its worker connects again in a moment."""
        self.broken = True
        self.end()


def _nothing() -> None:
    pass


@dataclass(slots=True, eq=False)
class Offer:
    """A call that wants a worker, and the task through which one has it."""

    call: HostCall
    input_part: bytes
    since: float
    task: Task | None = None


@dataclass(slots=True, eq=False)
class Task:
    """One sending of a call. `call_token` names it in call-backs."""

    id: str
    call_token: str
    worker: Worker
    offer: Offer
    sent_at: float
    heard_at: float
    claimed_at: float = 0.0
    """0 = not claimed."""
    claimed_by: str = ""
    """The id of whoever claimed it; a worker may hand tasks to another process."""
    aborted: bool = False
    runs_awaited: int = 0
    """Flows that its component runs and waits for now."""


@dataclass(slots=True, eq=False)
class Worker:
    """One worker, over all its connections. `group` is what it shares its end with: the process that we started."""

    id: str
    group: object
    address: str
    concurrency: int
    lends: bool
    """A task that waits for a flow takes no place: only where the worker itself has more places than we use."""
    outbox: Outbox | None = None
    listed: bool = False
    keys: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    question: str = ""
    """The id under which it is asked for its components; empty when it has answered."""
    asked_at: float = 0.0
    heard_at: float = 0.0

    @property
    def room(self) -> int:
        """How many tasks more it may get now."""
        if self.outbox is None or not self.listed:
            return 0
        lent = sum(1 for task in self.tasks.values() if task.runs_awaited) if self.lends else 0
        return self.concurrency - len(self.tasks) + lent


class TaskQueue:
    """See the head of this module. `on_listing` is called whenever a worker has said what it offers."""

    def __init__(
        self,
        plugin: str,
        *,
        queue_timeout_s: float,
        execution_timeout_s: float | None,
        on_listing: Callable[[], None] = _nothing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.listing = BackendListing((), complete=False)
        self.workers: dict[tuple[object, str], Worker] = {}
        self.down: Failure | None = None
        """Why there can be no worker; None while there is hope."""
        self.closing = False
        self._plugin = plugin
        self._queue_timeout_s = queue_timeout_s
        self._execution_timeout_s = execution_timeout_s
        self._on_listing = on_listing
        self._clock = clock
        self._tasks: dict[str, Task] = {}
        self._tokens: dict[str, Task] = {}
        self._waiting: deque[Offer] = deque()
        self._nobody_since = clock()
        """Since when no worker is connected."""
        self._id_prefix = secrets.token_hex(6)
        self._id_base = secrets.randbits(96) << 32
        self._sent = 0

    # --- calls --------------------------------------------------------------------------------------------------

    def offer(self, call: HostCall, input_part: bytes) -> None:
        """Give a call to a worker, now or when one has room."""
        if self.closing:
            call.fail(Failure(Code.UNREACHABLE, f"plugin {self._plugin!r} is being stopped"))
        elif self.down is not None:
            call.fail(self.down)
        elif len(self._waiting) >= OFFERS_MAX:
            text = f"{OFFERS_MAX:,} calls are waiting for plugin {self._plugin!r} already"
            call.fail(Failure(Code.RESOURCE_UNAVAILABLE, text))
        else:
            offer = call.backend_state = Offer(call, input_part, self._clock())
            self._waiting.append(offer)
            self.dispatch()

    def abort(self, call: HostCall) -> Task | None:
        """Have the worker told at its next heartbeat that nobody wants the call any more; return the task, if sent."""
        offer: Offer | None = call.backend_state
        task = None if offer is None else offer.task
        if task is not None:
            task.aborted = True
        return task  # an offer that waits is passed over, because its call is settled

    def task_of(self, call_token: str) -> Task | None:
        """Find the task whose component makes a call-back. Without a token: the only one there is."""
        if not call_token and len(self._tokens) == 1:
            return next(iter(self._tokens.values()))
        return self._tokens.get(call_token)

    @property
    def sent(self) -> int:
        """How many calls workers have."""
        return len(self._tokens)

    def any_call(self) -> HostCall | None:
        """Return a call that is with a worker, if there is one."""
        return next((task.offer.call for task in self._tasks.values() if not task.offer.call.settled), None)

    def dispatch(self) -> None:
        """Send waiting calls as far as there is room. To be called whenever there may be more of it."""
        while self._waiting:
            worker = max(self.workers.values(), key=_room, default=None)
            if worker is None or worker.room <= 0:
                return
            offer = self._waiting.popleft()
            if not offer.call.settled:
                self._send(offer, worker)

    def _send(self, offer: Offer, worker: Worker) -> None:
        self._sent += 1
        now = self._clock()
        task_id = f"{self._id_prefix}-{self._sent}"
        token = str(UUID(int=self._id_base + self._sent, version=4))
        message = messages.encode_assignment(
            offer.call,
            offer.input_part,
            task_id=task_id,
            component=messages.dispatch_key(offer.call, worker.keys),
            address=worker.address,
            call_token=token,
        )
        if len(message) > RECEIVE_BYTES_MAX:
            offer.call.fail(_too_long(len(message)))
            return
        assert worker.outbox is not None
        task = offer.task = Task(task_id, token, worker, offer, now, now)
        self._tasks[task_id] = self._tokens[token] = worker.tasks[task_id] = task
        worker.outbox.put(message)

    def _forget(self, task: Task) -> None:
        self._tasks.pop(task.id, None)
        self._tokens.pop(task.call_token, None)
        task.worker.tasks.pop(task.id, None)
        task.offer.task = None

    # --- workers ------------------------------------------------------------------------------------------------

    def connect(
        self, worker_id: str, *, group: object, address: str, concurrency: int, lends: bool
    ) -> tuple[Worker, Outbox]:
        """Take a worker's new stream; it is asked for its components first.

        Raises: Invalid WORKER_ID_MISSING; Overloaded WORKERS_FULL."""
        if not worker_id:
            raise Invalid("WORKER_ID_MISSING", "PullTasks needs a `worker_id`")
        worker = self.workers.get((group, worker_id))
        if worker is not None and worker.outbox is not None:
            worker.outbox.break_off()  # it has noticed before us that its former stream is dead
            self.disconnect(worker, worker.outbox)
            worker = self.workers.get((group, worker_id))
        if worker is None:
            if len(self.workers) >= WORKERS_MAX:
                raise Overloaded("WORKERS_FULL", f"{WORKERS_MAX:,} workers pull from this queue already")
            worker = self.workers[group, worker_id] = Worker(worker_id, group, address, concurrency, lends)
        outbox = worker.outbox = Outbox()
        worker.heard_at = self._clock()
        self.down = None
        if not self.closing:
            self.ask(worker)
        elif lends:
            outbox.end()  # ours, and told to end
        else:
            outbox.break_off()
        return worker, outbox

    def ask(self, worker: Worker) -> None:
        """Ask a connected worker for its components, and thereby whether it still reads."""
        if worker.outbox is not None and not worker.question:
            self._sent += 1
            worker.question = f"{self._id_prefix}-{self._sent}"
            worker.asked_at = self._clock()
            worker.outbox.put(messages.encode_discovery(worker.question, worker.address))

    def disconnect(self, worker: Worker, outbox: Outbox) -> None:
        """A stream has ended. What was sent over it and is not claimed goes to others."""
        if worker.outbox is not outbox:
            return
        worker.outbox = None
        worker.question = ""
        worker.heard_at = self._clock()
        for task in [task for task in worker.tasks.values() if not task.claimed_at]:
            self._send_again(task)
        if not worker.tasks:
            self._remove(worker)
        if not any(other.outbox is not None for other in self.workers.values()):
            self._nobody_since = self._clock()
        self.dispatch()

    def _send_again(self, task: Task) -> None:
        self._forget(task)
        if not task.offer.call.settled:
            self._waiting.appendleft(task.offer)

    def lose(self, group: object, failure: Failure) -> None:
        """The process behind workers has ended: their claimed calls fail, the others are sent again."""
        for worker in [worker for worker in self.workers.values() if worker.group is group]:
            self._lose(worker, failure)
        self.dispatch()

    def _lose(self, worker: Worker, failure: Failure) -> None:
        for task in list(worker.tasks.values()):
            if task.claimed_at:
                self._forget(task)
                task.offer.call.fail(failure)
            else:
                self._send_again(task)
        if worker.outbox is not None:
            worker.outbox.break_off()
            worker.outbox = None
        self._remove(worker)

    def _remove(self, worker: Worker) -> None:
        self.workers.pop((worker.group, worker.id), None)

    # --- what workers say ---------------------------------------------------------------------------------------

    def heartbeat(self, request: pb.TaskHeartbeatRequest) -> pb.TaskHeartbeatResponse | None:
        """Take a claim or a sign of life; None when the task is not one of this queue."""
        task = self._tasks.get(request.task_id)
        if task is None:
            return None
        wanted = not (task.aborted or task.offer.call.settled)
        if not task.claimed_at:
            if not wanted:  # a worker that may not begin, completes nothing
                self._forget(task)
                self.dispatch()
                return ALREADY_CLAIMED
            task.claimed_by = request.worker_id
            task.claimed_at = self._clock()
        if task.claimed_by != request.worker_id:
            return ALREADY_CLAIMED
        task.heard_at = task.worker.heard_at = self._clock()
        if not wanted:
            return pb.TaskHeartbeatResponse(should_abort=True, status=pb.TASK_STATUS_IN_PROGRESS)
        if request.HasField("progress") or request.HasField("status_message"):
            total = 1.0 if request.HasField("progress") else 0.0
            task.offer.call.progress(request.progress, total, request.status_message)
        return pb.TaskHeartbeatResponse(status=pb.TASK_STATUS_IN_PROGRESS)

    def completed(self, task_id: str) -> HostCall | None:
        """A task has ended: free its place and return its call; None when the task is not one of this queue."""
        task = self._tasks.get(task_id)
        if task is None:
            return None
        self._forget(task)
        task.worker.heard_at = self._clock()
        if task.worker.outbox is None and not task.worker.tasks:
            self._remove(task.worker)
        self.dispatch()
        return task.offer.call

    def listed(self, task_id: str, components: tuple[ComponentInfo, ...], *, complete: bool) -> None:
        """A worker says what it offers; nothing happens when this queue has not asked, or not lately."""
        worker = next((each for each in self.workers.values() if each.question == task_id), None)
        if worker is None:
            return
        worker.question = ""
        worker.listed = True
        worker.heard_at = self._clock()
        worker.keys = messages.dispatch_keys(components)
        self.listing = BackendListing(components, complete=complete)
        self._on_listing()
        self.dispatch()

    # --- time ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Look for what has taken too long. To be called about once a second."""
        now = self._clock()
        for worker in list(self.workers.values()):
            if worker.outbox is None and now - worker.heard_at > GONE_S:
                text = f"a worker of plugin {self._plugin!r} went away while the call was in flight"
                self._lose(worker, Failure(Code.UNREACHABLE, text))
        for task in list(self._tasks.values()):
            self._check(task, now)
        self._check_waiting(now)
        self.dispatch()

    def _check(self, task: Task, now: float) -> None:
        limit_s = self._execution_timeout_s
        if not task.claimed_at:
            others = (worker.room for worker in self.workers.values() if worker is not task.worker)
            if now - task.sent_at > self._queue_timeout_s and max(others, default=0) > 0:
                self._send_again(task)
        elif limit_s is not None and now - task.claimed_at > limit_s and not task.aborted:
            task.aborted = True
            text = f"it ran longer than the {limit_s:g} s that plugin {self._plugin!r} allows"
            task.offer.call.fail(Failure(Code.TIMEOUT, text))
        elif task.worker.heard_at - task.heard_at > SILENT_S and not task.aborted:
            self._forget(task)
            text = f"the worker of plugin {self._plugin!r} has stopped working on the call without completing it"
            task.offer.call.fail(Failure(Code.UNREACHABLE, text))

    def _check_waiting(self, now: float) -> None:
        if any(worker.outbox is not None for worker in self.workers.values()):
            return
        while self._waiting:
            offer = self._waiting[0]
            if now - max(offer.since, self._nobody_since) <= self._queue_timeout_s and not offer.call.settled:
                return
            self._waiting.popleft()
            text = f"no worker of plugin {self._plugin!r} was there for {self._queue_timeout_s:g} s"
            offer.call.fail(Failure(Code.UNREACHABLE, text))

    # --- the end ------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a worker works on a call that somebody wants."""
        return any(task.claimed_at and not task.offer.call.settled for task in self._tasks.values())

    def end_streams(self, group: object = None) -> None:
        """End the workers' streams (those of a group), which asks them to end."""
        for worker in self.workers.values():
            if worker.outbox is not None and group in (None, worker.group):
                worker.outbox.end()

    def fail_waiting(self, failure: Failure) -> None:
        """Fail the calls that no worker has."""
        while self._waiting:
            self._waiting.popleft().call.fail(failure)

    def fail_all(self, failure: Failure) -> None:
        """Fail every call and forget every worker."""
        for task in list(self._tasks.values()):
            self._forget(task)
            task.offer.call.fail(failure)
        self.fail_waiting(failure)
        for worker in self.workers.values():
            if worker.outbox is not None and not worker.outbox.ended:
                worker.outbox.break_off()
        self.workers.clear()


ALREADY_CLAIMED = pb.TaskHeartbeatResponse(should_abort=True, status=pb.TASK_STATUS_ALREADY_CLAIMED)


def _room(worker: Worker) -> int:
    return worker.room


def _too_long(size: int) -> Failure:
    return Failure(
        Code.INVALID_INPUT,
        f"with its input the assignment is {size:,} bytes and workers take at most {RECEIVE_BYTES_MAX:,}; "
        "pass large values through a blob (put_blob, get_blob)",
    )
