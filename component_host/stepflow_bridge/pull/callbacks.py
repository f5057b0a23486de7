"""Call-backs of pull workers: sub-runs and blobs, in the name of the call whose task made them.

- A call-back of an ended call is refused.
- The protocol does not attribute blob requests: any call in flight at the endpoint admits them, and blob ids are valid
  everywhere.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from component_host.stepflow_bridge.pull import messages
from stepflow.errors import FailedPrecondition, Overloaded
from stepflow.off_loop import off_loop
from stepflow.pull.v1 import pull_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from component_host.backend import BlobAccess
    from component_host.stepflow_bridge.pull.queue import TaskQueue
    from component_host.stepflow_bridge.pull.records import Task

CALLBACKS_MAX = 1_000
"""Requests of components served at a time."""

BLOBS_MAX = 64
"""Blob requests served at a time, each up to the largest payload; more wait."""

WAIT_S_DEFAULT = 300
"""Wait for a flow if the component names no time."""

WAIT_S_MAX = 24 * 3_600
"""Longest wait for a flow; the component may ask again."""


class PullCallbacks:
    """The call-backs of one endpoint. `queues` returns the queues served there."""

    def __init__(self, queues: Callable[[], list[TaskQueue]]) -> None:
        self._queues = queues
        self._open = 0
        self._blob_slots = asyncio.Semaphore(BLOBS_MAX)

    async def submit_run(self, request: pb.OrchestratorSubmitRunRequest) -> pb.OrchestratorRunStatus:
        """Raises: Overloaded; FailedPrecondition CALL_ENDED; errors of the run's owner."""
        with self._counted():
            task = self._task_of(request.root_run_id)
            call, asked = task.offer.call, request.run_request

            # 1. Start without a wait: the wait has a time limit of its own.
            start = messages.read_submission(request)
            wait, start.wait = start.wait, False
            report = await call.start_run(start)

            # 2. Wait.
            if wait:
                run_id = report.run_id
                final_report = await self._await_run(task, run_id, asked.timeout_secs)
                report = final_report or await call.get_run(run_id, wait=False)
            return messages.run_status(report, root_run_id=request.root_run_id, results=wait)

    async def get_run(self, request: pb.OrchestratorGetRunRequest) -> pb.OrchestratorRunStatus:
        """Raises: Overloaded; FailedPrecondition CALL_ENDED; NotFound."""
        with self._counted():
            task = self._task_of(request.root_run_id)
            report = await self._await_run(task, request.run_id, request.timeout_secs) if request.wait else None
            if report is None:
                report = await task.offer.call.get_run(request.run_id, wait=False)
            return messages.run_status(report, root_run_id=request.root_run_id, results=request.include_results)

    async def _await_run(self, task: Task, run_id: str, timeout_s: int) -> Any:
        """Return the report of an ended run; None after the time limit."""
        task.runs_awaited += 1
        try:
            for queue in self._queues():
                queue.dispatch()  # the task may lend its slot now
            async with asyncio.timeout(min(timeout_s or WAIT_S_DEFAULT, WAIT_S_MAX)):
                return await task.offer.call.get_run(run_id, wait=True)
        except TimeoutError:
            return None
        finally:
            task.runs_awaited -= 1

    async def put_blob(self, request: pb.PutBlobRequest) -> pb.PutBlobResponse:
        """Raises: Overloaded; FailedPrecondition; Invalid; Unavailable."""
        async with self._blob_access() as blobs:
            content, blob_type = await off_loop(request.ByteSize(), messages.blob_content, request)
            blob_id = await blobs.put(content, blob_type=blob_type)
            return pb.PutBlobResponse(blob_id=blob_id)

    async def get_blob(self, request: pb.GetBlobRequest) -> pb.GetBlobResponse:
        """Raises: Overloaded; FailedPrecondition; Invalid; NotFound; Unavailable."""
        async with self._blob_access() as blobs:
            content, blob_type = await blobs.get(request.blob_id)
            reply: pb.GetBlobResponse = await off_loop(
                len(content), messages.blob_reply, request.blob_id, content, blob_type
            )
            return reply

    def _task_of(self, call_token: str) -> Task:
        queues = self._queues()
        found = [task for queue in queues if (task := queue.tasks.task_of_token(call_token)) is not None]
        if found and (call_token or sum(len(queue.tasks) for queue in queues) == 1):
            return found[0]
        raise FailedPrecondition("CALL_ENDED", "no call in flight has this `root_run_id`: the call that asks has ended")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._open >= CALLBACKS_MAX:
            raise Overloaded("CALLBACKS_FULL", f"{CALLBACKS_MAX:,} requests of components are being served already")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    @asynccontextmanager
    async def _blob_access(self) -> AsyncIterator[BlobAccess]:
        with self._counted():
            async with self._blob_slots:
                calls = (queue.tasks.any_call() for queue in self._queues())
                call = next((call for call in calls if call is not None), None)
                if call is None:
                    raise FailedPrecondition("NO_CALL", "blobs are for executing components, and no call is in flight")
                yield call.blobs
