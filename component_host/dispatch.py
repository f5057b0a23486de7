"""The way of an admitted call to its backend: plugin ready, input fetched, host registered, clock started.

- Calls wait, in FIFO order, during the start of the plugin, during a change of its backend, and while `may_begin` is
  False.
- A call with a large input also waits for memory (`value_budget`), before the input is fetched.
- The clock of a call starts with the hand-over to the backend, not before. It stands while the call waits there for a
  server or a thread (`Call.note_queued`).
- An exception of a backend fails one call and no other call of the same frame.

Not here: admission, refusal, deduplication and held results (`host`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from component_host.deadlines import Deadlines
from component_host.plugins import PluginState
from component_host.results import fetch_blob, unreachable
from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX, encode
from stepflow.errors import Code, DataLoss, Failure, Invalid, NotFound, StepflowError
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.backend import Backend
    from component_host.call import Call
    from component_host.call_tasks import CallTasks
    from component_host.logs import HostLogs
    from component_host.plugins import HostedPlugin, HostedPlugins
    from stepflow.store.blobs import WaitingBlobs
    from stepflow.value_budget import ValueBudget

log = get_logger(__name__)

REGISTERED_POLL_S = 0.05
"""Interval of checking `may_begin` while calls wait for it."""


class Dispatcher:
    """Hands calls to the backends of one host; cancels and expires calls."""

    def __init__(
        self,
        host_id: str,
        plugins: HostedPlugins,
        blobs: WaitingBlobs,
        tasks: CallTasks,
        value_budget: ValueBudget,
        logs: HostLogs,
    ) -> None:
        self.deadlines: Deadlines[Call] = Deadlines(self._expire_call, is_waiting=lambda call: bool(call.callbacks))
        self.may_begin: Callable[[], bool] = lambda: True
        """Return True while executors count on this host; set by `Registration`."""
        self.value_budget = value_budget
        self._host_id = host_id
        self._plugins = plugins
        self._blobs = blobs
        self._tasks = tasks
        self._logs = logs
        self._unregistered: dict[Call, None] = {}
        """Calls that wait for `may_begin`, in FIFO order."""

    def dispatch(self, call: Call) -> None:
        """Execute a call without a backend, or let the call wait, or fail the call."""
        if call.settled:
            return  # forgotten during a wait

        plugin = self._plugins.find_plugin(call.request.plugin)
        if plugin.must_wait(call.request.depth):
            plugin.waiting[call] = None
            return
        if plugin.state is not PluginState.READY:
            call.fail(self._not_running(plugin))
            return

        payload = call.request.input
        if call.input:
            self._execute(call, plugin)  # it waited after its input was there
        elif payload.blob:
            self._tasks.spawn(call, self._fetch_input, call)
        elif len(payload.json) > INLINE_BYTES_MAX:
            call.fail(_input_too_large(len(payload.json)))
        else:
            call.input = payload.json
            self._execute(call, plugin)

    def undispatch(self, call: Call) -> None:
        """Cancel a settled call in the backend, or end the wait for the plugin."""
        if call.backend is None:
            self._plugins.find_plugin(call.request.plugin).waiting.pop(call, None)
        else:
            self._cancel_in_backend(call, call.backend)

    def _expire_call(self, call: Call, message: str) -> None:
        """Fail an overdue call with TIMEOUT."""
        if not call.settled:
            call.fail(Failure(Code.TIMEOUT, message))
            self.undispatch(call)

    def _execute(self, call: Call, plugin: HostedPlugin) -> None:
        if not self.may_begin():
            self._wait_for_registration(call)
            return
        backend = plugin.backend
        assert backend is not None

        # 1. Start the clock.
        call.backend = backend
        call.start_clock()
        call.begin_log(self._logs.of(plugin.name))

        # 2. Execute. A defect of one backend must not lose the other calls of the frame.
        try:
            backend.execute(call)
        except Exception as error:
            log_defect(log, "backend failed on a call by a defect", error, plugin=plugin.name)
            call.fail(_defect(plugin.name, error))
            self._cancel_in_backend(call, backend)

    def _wait_for_registration(self, call: Call) -> None:
        if not self._unregistered:
            asyncio.get_running_loop().call_later(REGISTERED_POLL_S, self._retry_unregistered)
        self._unregistered[call] = None

    def _retry_unregistered(self) -> None:
        waiting, self._unregistered = self._unregistered, {}
        for call in waiting:
            if not call.settled:
                self.dispatch(call)

    async def _fetch_input(self, call: Call) -> None:
        # 1. Wait for memory, in order. The call keeps the memory until its result is there.
        size = call.request.input.blob_bytes or PAYLOAD_BYTES_MAX
        await self.value_budget.take(size)
        if call.settled or call.forgotten:
            self.value_budget.release(size)
            return
        call.input_bytes = size

        # 2. Fetch the input.
        try:
            call.input = await fetch_blob(self._blobs, call.request.input.blob, call.request.root_run_id)
        except StepflowError as error:
            lost = isinstance(error, (NotFound, DataLoss, Invalid))  # for the next attempt, too
            code = Code.ORCHESTRATOR_ERROR if lost else Code.UNREACHABLE
            message = f"the step's input could not be read: {error.message}"
            call.fail(Failure(code, message, encode({"reason": error.reason})))
        else:
            self.dispatch(call)  # the plugin may have changed meanwhile

    def _cancel_in_backend(self, call: Call, backend: Backend) -> None:
        try:
            backend.cancel(call)
        except Exception as error:
            log_defect(log, "backend failed to cancel a call by a defect", error, plugin=call.request.plugin)

    def _not_running(self, plugin: HostedPlugin) -> Failure:
        if plugin.error is not None:
            return unreachable(plugin.error.reason, f"plugin {plugin.name!r} did not start: {plugin.error.message}")
        if plugin.backend is None:
            return unreachable("PLUGIN_UNKNOWN", f"host {self._host_id} does not run plugin {plugin.name!r}")
        return unreachable("PLUGIN_NOT_STARTED", f"plugin {plugin.name!r} is not started on host {self._host_id}")


def _input_too_large(size: int) -> Failure:
    message = f"an inline input of {size:,} bytes; above {INLINE_BYTES_MAX:,} it must be a blob"
    return Failure(Code.ORCHESTRATOR_ERROR, message, encode({"reason": "INPUT_NOT_A_BLOB"}))


def _defect(plugin: str, error: Exception) -> Failure:
    message = f"plugin {plugin!r} failed on the call: {type(error).__name__} inside the host; see its log"
    return Failure(Code.WORKER_ERROR, message)


__all__ = ["Dispatcher"]
