"""The time limits of a queue, checked once a second.

- A worker without a stream and without heartbeats is lost after `GONE_S`.
- Silence alone proves nothing: a component that blocks the worker's event loop blocks the heartbeats too. But a worker
  with heartbeats for other tasks only has stopped work on the silent task.
- A worker not started here that keeps running aborted tasks gets their slots again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from component_host.stepflow_bridge.pull import messages
from component_host.stepflow_bridge.retirement import ABANDONED_S, abandoned_max
from stepflow.errors import Code, Failure
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from component_host.stepflow_bridge.pull.queue import TaskQueue
    from component_host.stepflow_bridge.pull.records import Task, Worker

log = get_logger("component_host.pull")

GONE_S = 15.0
"""Silence after which a worker without a stream is lost. Workers connect again after 2 s."""

SILENT_S = 30.0
"""Silence about one task, between heartbeats for others, after which the task is lost."""

assert GONE_S >= 3 * messages.HEARTBEAT_S  # two lost heartbeats cost nothing
assert SILENT_S > GONE_S


class QueueTimeouts:
    """Time limits of one queue. `queue_timeout_s`: wait for a worker; `execution_timeout_s`: begin to completion."""

    def __init__(self, queue: TaskQueue, *, queue_timeout_s: float, execution_timeout_s: float | None) -> None:
        self._queue = queue
        self._queue_timeout_s = queue_timeout_s
        self._execution_timeout_s = execution_timeout_s

    def tick(self) -> None:
        """Check all limits. To be called about once a second."""
        queue, now = self._queue, self._queue.clock()

        for worker in list(queue.workers):
            if worker.outbox is None and now - worker.heard_at > GONE_S:
                text = f"a worker of plugin {queue.plugin!r} went away while the call was in flight"
                queue.lose_worker(worker, Failure(Code.UNREACHABLE, text))
            elif not worker.lends:
                self._free_slots(worker, now)

        for task in queue.tasks.all_tasks():
            self._check_task(task, now)

        self._check_waiting(now)
        queue.dispatch()

    def _free_slots(self, worker: Worker, now: float) -> None:
        """Drop aborted tasks of a worker that cannot be restarted from here: their slots would never come back."""
        stuck = worker.aborted_before(now - ABANDONED_S)
        if stuck and len(stuck) >= abandoned_max(worker.concurrency):
            log.warning("worker keeps running aborted calls", plugin=self._queue.plugin, aborted=len(stuck))
            for task in stuck:
                self._queue.tasks.drop_task(task)

    def _check_task(self, task: Task, now: float) -> None:
        queue, limit_s = self._queue, self._execution_timeout_s
        if not task.claimed_at:
            if now - task.sent_at > self._queue_timeout_s and queue.workers.has_other_room(task.worker):
                queue.resend_task(task)
        elif limit_s is not None and now - task.claimed_at > limit_s and task.executing:
            task.aborted_at = now
            text = f"it ran longer than the {limit_s:g} s that plugin {queue.plugin!r} allows"
            task.offer.call.fail(Failure(Code.TIMEOUT, text))
        elif task.worker.heard_at - task.heard_at > SILENT_S and not task.aborted:
            queue.tasks.drop_task(task)
            text = f"the worker of plugin {queue.plugin!r} has stopped working on the call without completing it"
            task.offer.call.fail(Failure(Code.UNREACHABLE, text))

    def _check_waiting(self, now: float) -> None:
        queue = self._queue
        if queue.workers.any_connected:
            return

        while queue.waiting:
            offer = queue.waiting[0]
            waited_s = now - max(offer.since, queue.no_worker_since)
            if waited_s <= self._queue_timeout_s and not offer.call.settled:
                return
            queue.waiting.popleft()
            text = f"no worker of plugin {queue.plugin!r} was there for {self._queue_timeout_s:g} s"
            offer.call.fail(Failure(Code.UNREACHABLE, text))
