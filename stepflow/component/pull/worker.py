"""`PullWorker`: follows the stream of assignments, and ends by a signal or when the runtime is gone.

- A broken stream is reopened under the same worker id; claimed tasks continue meanwhile.
- At most `concurrency` tasks run at a time; the stream is not read further while all slots are taken.
- After SIGTERM or SIGINT no task begins. Running tasks may end within the grace; the rest is reported as UNREACHABLE.
  A second signal, later than `stop_signals.REPEAT_S`, ends the grace. The exit code is 0.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc

from stepflow.component.call import LOG
from stepflow.component.process import cancel_calls, run_and_leave
from stepflow.component.pull.remote import PullRemote, explain
from stepflow.component.pull.tasks import PullTasks
from stepflow.component.threads import Threads
from stepflow.pull.v1 import pull_pb2 as pb
from stepflow.stop_signals import StopSignals

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from stepflow.component.pull.options import PullOptions

RECONNECT_S_MIN = 0.5
RECONNECT_S_MAX = 5.0

LAST_REPORTS_S = 1.0
"""Time at the end to report unfinished tasks."""


def run_pull(options: PullOptions, threads: int | None) -> None:
    """Fetch and execute until a signal, with at most `threads` threads. Raises: SystemExit."""
    run_and_leave(_serve(options, threads))


async def _serve(options: PullOptions, threads: int | None) -> tuple[int, bool]:
    """Return the exit code, and True if threads are stuck in components."""
    pool = Threads(threads)
    worker = PullWorker(options, pool, PullRemote(options.blob_url))
    code = await worker.run()
    return code, await cancel_calls(worker.calls(), pool)


class PullWorker:
    """One worker under a random id. `run` is the whole life."""

    def __init__(self, options: PullOptions, threads: Threads, remote: PullRemote) -> None:
        self._options = options
        self._remote = remote
        self._id = str(uuid4())
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(options.concurrency)
        self._work: set[asyncio.Task[None]] = set()
        """Tasks of the event loop: one for each assignment and each request of a component."""
        self._stopping = asyncio.Event()
        self._grace_over = asyncio.Event()
        """Set by a second signal."""
        self._tasks = PullTasks(self._id, remote, threads, self._stopping, self._spawn)

    def calls(self) -> list[asyncio.Task[None]]:
        """Return the tasks of async components."""
        return self._tasks.calls()

    async def run(self) -> int:
        """Work until a signal or the end of the patience; return the exit code."""
        with StopSignals(self._loop, self._on_signal):
            return await self._run()

    async def _run(self) -> int:
        # 1. Follow the stream until a signal.
        following = asyncio.create_task(self._follow_assignments(), name="pull")
        stopping = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            await asyncio.wait((following, stopping), return_when=asyncio.FIRST_COMPLETED)
            failed = following.done() and not following.cancelled() and following.exception() is not None
        finally:
            for task in (following, stopping):
                task.cancel()
            await asyncio.gather(following, stopping, return_exceptions=True)
        if failed:
            LOG.error("internal error: the worker ends", exc_info=following.exception())

        # 2. End the tasks.
        await self._finish_tasks()
        await self._remote.close()
        return 1 if failed else 0

    def _on_signal(self, _number: int, request: int) -> None:
        if request > 1:
            self._grace_over.set()
        self._stopping.set()

    async def _finish_tasks(self) -> None:
        """Grant running tasks the grace; then cancel and report the rest."""
        if self._work:
            LOG.info("stopping; %d calls may end within %g s", len(self._work), self._options.grace_s)
            self._tasks.wake()

            grace_over = asyncio.create_task(self._grace_over.wait())
            ending = asyncio.gather(*self._work, return_exceptions=True)
            await asyncio.wait((grace_over, ending), timeout=self._options.grace_s, return_when=asyncio.FIRST_COMPLETED)
            grace_over.cancel()

        self._tasks.stop()
        if self._work:
            await asyncio.wait(set(self._work), timeout=LAST_REPORTS_S)

    async def _follow_assignments(self) -> None:
        """Read assignments, and reconnect with back-off. Returns when the patience is over, or the parent is gone."""
        pause_s = RECONNECT_S_MIN
        lost_at = self._loop.time()
        parent = os.getppid()
        request = pb.PullTasksRequest(queue_name=self._options.queue, worker_id=self._id)

        while True:
            # 1. Follow one stream to the end.
            was_open = False
            try:
                async for assignment in self._remote.pull(self._options.tasks_url, request):
                    was_open = True
                    pause_s = RECONNECT_S_MIN
                    await self._accept(assignment)
                was_open = True
                reason = "the stream has ended"
            except grpc.aio.AioRpcError as error:
                reason = explain(error, self._options.tasks_url)

            # 2. The patience begins with the end of an open stream, busy or idle.
            if was_open:
                lost_at = self._loop.time()
            if pause_s == RECONNECT_S_MIN:  # one line per loss
                LOG.warning("no tasks from %s: %s; trying again", self._options.tasks_url, reason)

            # 3. Give up, or pause.
            patience_s = self._options.patience_s
            lost_s = self._loop.time() - lost_at
            if patience_s is not None and (lost_s > patience_s or os.getppid() != parent):
                LOG.warning("the runtime that started this worker is gone; ending")
                return

            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RECONNECT_S_MAX)

    async def _accept(self, assignment: pb.TaskAssignment) -> None:
        """Begin a task once a slot is free; the stream waits meanwhile."""
        if assignment.HasField("list_components"):
            self._spawn(self._tasks.list_components(assignment))
            return

        await self._slots.acquire()
        self._spawn(self._execute(assignment))

    async def _execute(self, assignment: pb.TaskAssignment) -> None:
        try:
            await self._tasks.execute(assignment)
        finally:
            self._slots.release()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._note_done)

    def _note_done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("internal error: a task was dropped", exc_info=error)
