"""`CallsInFlight`: runs calls on the loop, in threads or inline, and answers each exactly once.

Invariants:
- A call is in `_calls` from its line until its answer.
- Only the functions of sync components run outside of the loop's thread; their results return through the inbox.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from stepflow.component.call import ComponentCall
from stepflow.component.errors import CallCancelled
from stepflow.component.failures import failure_line
from stepflow.component.logs import CURRENT
from stepflow.component.wire import success_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stepflow.component.call import Progress
    from stepflow.component.conversations import Conversation
    from stepflow.component.host_requests import HostRequests
    from stepflow.component.logs import LogReports
    from stepflow.component.loop_inbox import LoopInbox
    from stepflow.component.progress import ProgressReports
    from stepflow.component.queue_notices import QueueNotices
    from stepflow.component.reply import HostReply
    from stepflow.component.signature import RegisteredComponent
    from stepflow.component.threads import Threads
    from stepflow.component.wire import ExecuteParams, Id

T = TypeVar("T")


class CallsInFlight:
    """The calls of one server. `send` takes an answer line; `failed_code` is the JSON-RPC code of failed calls."""

    def __init__(
        self,
        inbox: LoopInbox,
        threads: Threads,
        requests: HostRequests,
        progress: ProgressReports,
        logs: LogReports,
        notices: QueueNotices,
        send: Callable[[bytes], None],
        *,
        failed_code: int,
        show_tracebacks: bool,
    ) -> None:
        self._inbox = inbox
        self._threads = threads
        self._requests = requests
        self._progress = progress
        self._logs = logs
        self.log_text = logs.log_text
        self.log_printed = logs.log_printed
        self._notices = notices
        self._send = send
        self._failed_code = failed_code
        self._show_tracebacks = show_tracebacks
        self._loop = asyncio.get_running_loop()
        self._calls: dict[Id, ComponentCall] = {}

    @property
    def takes_logs(self) -> bool:
        return self._logs.wanted

    def has_call(self, call_id: Id) -> bool:
        return call_id in self._calls

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks of async calls in flight."""
        return [call.task for call in self._calls.values() if call.task is not None]

    def start_call(
        self, call_id: Id, params: ExecuteParams, component: RegisteredComponent, path_params: Mapping[str, str]
    ) -> None:
        """Run a call. The id must not be in flight."""
        call = ComponentCall(self, call_id, params, component, path_params)
        self._calls[call_id] = call

        if component.mode == "async":
            call.task = self._loop.create_task(self._run_async(call))
        elif component.mode == "thread":
            if not self._threads.submit(call):
                self._notices.note_queued(call)
        else:
            self._settle(call, self._run(call))

    def cancel_call(self, call_id: Id) -> None:
        """Cancel a call. Idempotent; ids not in flight are ignored."""
        call = self._calls.get(call_id)
        if call is None or call.cancelled:
            return

        call.cancelled = True
        if call.component.mode == "thread":
            if self._threads.withdraw(call):
                self._settle(call, self._failure_line(call, _not_begun()))
                return
            self._threads.note_abandoned()
        if call.task is not None:
            # In the next turn: a task cancelled before its first step never runs, and the call would stay unanswered.
            self._loop.call_soon(call.task.cancel)
        self._requests.cancel(call)

    def ask(self, call: ComponentCall, conversation: Conversation[T]) -> HostReply[T]:
        return self._requests.start(call, conversation)

    def report_progress(self, call: ComponentCall, progress: Progress) -> None:
        self._progress.report(call, progress)

    def run_in_thread(self, call: ComponentCall) -> None:
        """Run a sync component in the calling thread of the pool, then settle the call on the loop."""
        self._notices.note_taken(call)
        line = self._failure_line(call, _not_begun()) if call.cancelled else self._run(call)
        self._inbox.post(lambda: self._settle_thread_call(call, line))

    def _run(self, call: ComponentCall) -> bytes:
        token = CURRENT.set(call)
        try:
            return success_line(call.id, call.component.function(**call.component.arguments(call)))
        except BaseException as error:  # SystemExit included: every call is answered
            return self._failure_line(call, error)
        finally:
            CURRENT.reset(token)

    async def _run_async(self, call: ComponentCall) -> None:
        CURRENT.set(call)  # in the context of this task alone
        try:
            line = success_line(call.id, await call.component.function(**call.component.arguments(call)))
        except BaseException as error:  # cancellation included: every call is answered
            line = self._failure_line(call, error)

        self._settle(call, line)

    def _settle_thread_call(self, call: ComponentCall, line: bytes) -> None:
        self._threads.note_finished(abandoned=call.cancelled)
        self._settle(call, line)

    def _settle(self, call: ComponentCall, line: bytes) -> None:
        self._progress.flush(call)
        self._logs.flush(call)
        call.ended = True
        del self._calls[call.id]
        self._send(line)

    def _failure_line(self, call: ComponentCall, error: BaseException) -> bytes:
        return failure_line(call, error, self._failed_code, show_traceback=self._show_tracebacks)


def _not_begun() -> CallCancelled:
    return CallCancelled("the call was cancelled before it began")
