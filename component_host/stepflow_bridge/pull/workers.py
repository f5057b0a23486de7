"""The workers of a queue, by group and id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from component_host.stepflow_bridge.pull.records import Worker
from stepflow.errors import Invalid, Overloaded

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKERS_MAX = 10_000


class WorkerTable:
    """Workers with a stream, or heard of lately. Equal ids in different groups are different workers."""

    def __init__(self) -> None:
        self._workers: dict[tuple[object, str], Worker] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def __len__(self) -> int:
        return len(self._workers)

    def find_worker(self, group: object, worker_id: str) -> Worker | None:
        return self._workers.get((group, worker_id))

    def ensure_worker(self, worker_id: str, group: object, address: str, concurrency: int, *, lends: bool) -> Worker:
        """Return a worker, added if unknown. Raises: Invalid WORKER_ID_MISSING; Overloaded WORKERS_FULL."""
        if not worker_id:
            raise Invalid("WORKER_ID_MISSING", "PullTasks needs a `worker_id`")

        worker = self.find_worker(group, worker_id)
        if worker is None:
            if len(self._workers) >= WORKERS_MAX:
                raise Overloaded("WORKERS_FULL", f"{WORKERS_MAX:,} workers pull from this queue already")
            worker = self._workers[group, worker_id] = Worker(worker_id, group, address, concurrency, lends)

        return worker

    def drop_worker(self, worker: Worker) -> None:
        self._workers.pop((worker.group, worker.id), None)

    def asked_worker(self, question: str) -> Worker | None:
        """Return the worker with this open question."""
        return next((worker for worker in self._workers.values() if worker.question == question), None)

    def roomiest_worker(self) -> Worker | None:
        """Return the worker with the most room; None if all are full."""
        worker = max(self._workers.values(), key=_room, default=None)
        return None if worker is None or worker.room <= 0 else worker

    def has_other_room(self, excluded: Worker) -> bool:
        return any(worker.room > 0 for worker in self._workers.values() if worker is not excluded)

    @property
    def any_connected(self) -> bool:
        return any(worker.outbox is not None for worker in self._workers.values())

    def of_group(self, group: object) -> list[Worker]:
        return [worker for worker in self._workers.values() if worker.group is group]

    def end_streams(self, group: object = None) -> None:
        """End the streams of a group (None: all streams) cleanly, which tells the workers to end."""
        for worker in self._workers.values():
            if worker.outbox is not None and group in (None, worker.group):
                worker.outbox.end()

    def break_off_streams(self) -> None:
        """End all streams with an error, except those already ended, and drop all workers."""
        for worker in self._workers.values():
            if worker.outbox is not None and not worker.outbox.ended:
                worker.outbox.break_off()
        self._workers.clear()


def _room(worker: Worker) -> int:
    return worker.room
