"""The tasks of a queue, by id and by call token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from component_host.backend import HostCall
    from component_host.stepflow_bridge.pull.records import Task


class TaskTable:
    """The tasks with workers. Each task is also in `Worker.tasks` and in `WorkerOffer.task`."""

    def __init__(self) -> None:
        self._by_id: dict[str, Task] = {}
        self._by_token: dict[str, Task] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def all_tasks(self) -> list[Task]:
        return list(self._by_id.values())

    def add_task(self, task: Task) -> None:
        self._by_id[task.id] = self._by_token[task.call_token] = task.worker.tasks[task.id] = task
        task.offer.task = task

    def drop_task(self, task: Task) -> None:
        self._by_id.pop(task.id, None)
        self._by_token.pop(task.call_token, None)
        task.worker.tasks.pop(task.id, None)
        task.offer.task = None

    def find_task(self, task_id: str) -> Task | None:
        return self._by_id.get(task_id)

    def task_of_token(self, call_token: str) -> Task | None:
        """Return the task whose component makes a call-back. Without a token: the only task."""
        if not call_token and len(self._by_token) == 1:
            return next(iter(self._by_token.values()))
        return self._by_token.get(call_token)

    def any_call(self) -> HostCall | None:
        """Return an unsettled call, if there is one."""
        return next((task.offer.call for task in self._by_id.values() if not task.offer.call.settled), None)

    @property
    def busy(self) -> bool:
        """True while a worker executes an unsettled call."""
        return any(task.claimed_at and not task.offer.call.settled for task in self._by_id.values())
