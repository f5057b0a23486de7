"""The queue of one plugin with pull workers: the assignment of calls to workers, and the outcome of a lost worker.

A call is *offered*, *sent* to a worker as a task, *claimed* by the worker's first heartbeat, and *completed*. Promises:
- A worker never has more uncompleted tasks than its concurrency. If the worker has further slots, a task waiting for a
  flow is not counted, so a parent leaves room for its child.
- An unclaimed task of a lost worker is sent again, under another task id: a later claim of the old id is refused. A
  claimed task of a lost worker fails as UNREACHABLE: the work may be done, or half done.
- A cancelled task keeps its slot until its completion: workers of 0.12 and 0.13 cannot stop a component.
- The time of a call begins when it is sent, again when it is claimed, and again when its component begins if the worker
  reports the task as queued; none passes while it waits for a worker, or queued.
- Workers of one queue offer the same components: the latest list is the queue's, and any worker may get any call.

Not here: time limits (`timeouts`), sockets (`endpoint`), processes (`process`), the form of messages (`messages`).
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from typing import TYPE_CHECKING
from uuid import UUID

from component_host.backend import BackendListing, ComponentInfo
from component_host.stepflow_bridge.log_notices import pass_task_log
from component_host.stepflow_bridge.pull import messages
from component_host.stepflow_bridge.pull.records import Outbox, Task, Worker, WorkerOffer
from component_host.stepflow_bridge.pull.tasks import TaskTable
from component_host.stepflow_bridge.pull.workers import WorkerTable
from stepflow.errors import Code, Failure
from stepflow.pull import RECEIVE_BYTES_MAX
from stepflow.pull.v1 import pull_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.backend import HostCall

OFFERS_MAX = 10_000
"""Calls waiting for a worker with room."""

ALREADY_CLAIMED = pb.TaskHeartbeatResponse(should_abort=True, status=pb.TASK_STATUS_ALREADY_CLAIMED)


def _do_nothing(*_: object) -> None:
    pass


class TaskQueue:
    """Offers, tasks and workers of one plugin.

    `on_listing` is called after each list of components, `on_send` with the group of a worker before each call for it.
    """

    def __init__(
        self,
        plugin: str,
        *,
        on_listing: Callable[[], None] = _do_nothing,
        on_send: Callable[[object, HostCall], None] = _do_nothing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plugin = plugin
        self.clock = clock
        self.listing = BackendListing((), complete=False)

        self.tasks = TaskTable()
        self.workers = WorkerTable()
        self.waiting: deque[WorkerOffer] = deque()
        """Offers without a worker, FIFO."""

        self.down: Failure | None = None
        """The failure of the last start while no worker can come; None otherwise."""
        self.closing = False
        self.no_worker_since = clock()

        self._on_listing = on_listing
        self._on_send = on_send
        self._id_prefix = secrets.token_hex(6)
        self._id_base = secrets.randbits(96) << 32
        self._last_id = 0

    # --- calls --------------------------------------------------------------------------------------------------

    def offer_call(self, call: HostCall, input_part: bytes) -> None:
        """Give a call to a worker, now or as soon as there is room."""
        if self.closing:
            call.fail(Failure(Code.UNREACHABLE, f"plugin {self.plugin!r} is being stopped"))
        elif self.down is not None:
            call.fail(self.down)
        elif len(self.waiting) >= OFFERS_MAX:
            text = f"{OFFERS_MAX:,} calls are waiting for plugin {self.plugin!r} already"
            call.fail(Failure(Code.RESOURCE_UNAVAILABLE, text))
        else:
            offer = call.backend_state = WorkerOffer(call, input_part, self.clock())
            call.note_queued()
            self.waiting.append(offer)
            self.dispatch()

    def abort_call(self, call: HostCall) -> Task | None:
        """Abort a call's task at the worker's next heartbeat; return the task, if the call was sent."""
        offer: WorkerOffer | None = call.backend_state
        task = None if offer is None else offer.task
        if task is not None:
            task.aborted_at = self.clock()
        return task  # a waiting offer is skipped, its call being settled

    def dispatch(self) -> None:
        """Send waiting calls while there is room. To be called after each gain of room."""
        while self.waiting:
            worker = self.workers.roomiest_worker()
            if worker is None:
                return
            offer = self.waiting.popleft()
            if not offer.call.settled:
                self._send_task(offer, worker)

    def _send_task(self, offer: WorkerOffer, worker: Worker) -> None:
        self._last_id += 1
        now = self.clock()
        task_id = f"{self._id_prefix}-{self._last_id}"
        token = str(UUID(int=self._id_base + self._last_id, version=4))
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
        self._on_send(worker.group, offer.call)
        offer.call.note_begun()
        self.tasks.add_task(Task(task_id, token, worker, offer, now, now))
        worker.outbox.put(message)

    def resend_task(self, task: Task) -> None:
        """Take a task from its worker and put its call first in the queue."""
        self.tasks.drop_task(task)
        if not task.offer.call.settled:
            task.offer.call.note_queued()
            self.waiting.appendleft(task.offer)

    # --- workers ------------------------------------------------------------------------------------------------

    def connect_worker(
        self, worker_id: str, *, group: object, address: str, concurrency: int, lends: bool
    ) -> tuple[Worker, Outbox]:
        """Accept a worker's new stream; the first message asks for the components.

        Raises: Invalid WORKER_ID_MISSING; Overloaded WORKERS_FULL.
        """
        # 1. End the former stream: the worker noticed its death before us.
        worker = self.workers.find_worker(group, worker_id)
        if worker is not None and worker.outbox is not None:
            worker.outbox.break_off()
            self.disconnect_worker(worker, worker.outbox)

        # 2. Open the new stream.
        worker = self.workers.ensure_worker(worker_id, group, address, concurrency, lends=lends)
        outbox = worker.outbox = Outbox()
        worker.heard_at = self.clock()
        self.down = None

        # 3. Ask, or send the worker away.
        if not self.closing:
            self.ask_worker(worker)
        elif lends:
            outbox.end()  # started here, and told to end
        else:
            outbox.break_off()
        return worker, outbox

    def ask_worker(self, worker: Worker) -> None:
        """Ask a connected worker for its components; this also tests the connection."""
        if worker.outbox is not None and not worker.question:
            self._last_id += 1
            worker.question = f"{self._id_prefix}-{self._last_id}"
            worker.asked_at = self.clock()
            worker.outbox.put(messages.encode_discovery(worker.question, worker.address))

    def disconnect_worker(self, worker: Worker, outbox: Outbox) -> None:
        """Handle the end of a stream: unclaimed tasks go to other workers."""
        if worker.outbox is not outbox:
            return
        worker.outbox = None
        worker.question = ""
        worker.heard_at = self.clock()

        for task in [task for task in worker.tasks.values() if not task.claimed_at]:
            self.resend_task(task)
        if not worker.tasks:
            self.workers.drop_worker(worker)
        if not self.workers.any_connected:
            self.no_worker_since = self.clock()
        self.dispatch()

    def lose_group(self, group: object, failure: Failure) -> None:
        """Handle the exit of the process behind workers: claimed calls fail, unclaimed calls are sent again."""
        for worker in self.workers.of_group(group):
            self.lose_worker(worker, failure)
        self.dispatch()

    def lose_worker(self, worker: Worker, failure: Failure) -> None:
        for task in list(worker.tasks.values()):
            if task.claimed_at:
                self.tasks.drop_task(task)
                task.offer.call.fail(failure)
            else:
                self.resend_task(task)
        if worker.outbox is not None:
            worker.outbox.break_off()
            worker.outbox = None
        self.workers.drop_worker(worker)

    # --- requests of workers ------------------------------------------------------------------------------------

    def take_heartbeat(self, request: pb.TaskHeartbeatRequest) -> pb.TaskHeartbeatResponse | None:
        """Record a claim or a sign of life; None if this queue has no such task."""
        task = self.tasks.find_task(request.task_id)
        if task is None:
            return None

        # 1. Claim.
        wanted = not (task.aborted or task.offer.call.settled)
        if not task.claimed_at:
            if not wanted:  # a refused worker sends no completion
                self.tasks.drop_task(task)
                self.dispatch()
                return ALREADY_CLAIMED
            task.claimed_by = request.worker_id
            task.claimed_at = self.clock()
            task.offer.call.note_queued()  # the time begins again with the claim
            task.offer.call.note_begun()
        if task.claimed_by != request.worker_id:
            return ALREADY_CLAIMED

        # 2. Sign of life.
        task.heard_at = task.worker.heard_at = self.clock()
        if not wanted:
            return pb.TaskHeartbeatResponse(should_abort=True, status=pb.TASK_STATUS_IN_PROGRESS)

        # 3. The worker's own queue.
        if request.queued:
            task.queued = True
            task.offer.call.note_queued()
        elif task.queued:
            task.queued = False
            task.claimed_at = self.clock()
            task.offer.call.note_begun()

        # 4. Progress and log lines.
        if request.HasField("log"):
            pass_task_log(task.offer.call, request.log)
        if request.HasField("progress") or request.HasField("status_message"):
            total = 1.0 if request.HasField("progress") else 0.0
            task.offer.call.progress(request.progress, total, request.status_message)
        return pb.TaskHeartbeatResponse(status=pb.TASK_STATUS_IN_PROGRESS)

    def complete_task(self, task_id: str) -> HostCall | None:
        """Free the slot of a task and return its call; None if this queue has no such task."""
        task = self.tasks.find_task(task_id)
        if task is None:
            return None
        self.tasks.drop_task(task)
        task.worker.heard_at = self.clock()
        if task.worker.outbox is None and not task.worker.tasks:
            self.workers.drop_worker(task.worker)
        self.dispatch()
        return task.offer.call

    def take_listing(self, task_id: str, components: tuple[ComponentInfo, ...], *, complete: bool) -> None:
        """Record the components of a worker; ignored unless `task_id` is an open question of this queue."""
        worker = self.workers.asked_worker(task_id)
        if worker is None:
            return

        worker.question = ""
        worker.listed = True
        worker.heard_at = self.clock()
        worker.keys = messages.dispatch_keys(components)

        self.listing = BackendListing(components, complete=complete)
        self._on_listing()
        self.dispatch()

    # --- the end ------------------------------------------------------------------------------------------------

    def fail_waiting(self, failure: Failure) -> None:
        """Fail the calls without a worker."""
        while self.waiting:
            self.waiting.popleft().call.fail(failure)

    def fail_all(self, failure: Failure) -> None:
        """Fail every call and drop every worker."""
        for task in self.tasks.all_tasks():
            self.tasks.drop_task(task)
            task.offer.call.fail(failure)
        self.fail_waiting(failure)
        self.workers.break_off_streams()


def _too_long(size: int) -> Failure:
    return Failure(
        Code.INVALID_INPUT,
        f"with its input the assignment is {size:,} bytes and workers take at most {RECEIVE_BYTES_MAX:,}; "
        "pass large values through a blob (put_blob, get_blob)",
    )
