"""The component host: admits calls from executors, dispatches to backends, holds results until acknowledged.

Invariants:
- Each (idempotency key, attempt) is executed once, for any number of requests from any number of executors: the same
  attempt joins the call in flight or gets the held result, a higher attempt supersedes the older call, a lower attempt
  is refused.
- Each call gets one result, even from a failing backend, unless cancelled, superseded or acknowledged.
- A call survives the loss of the executor's stream; the result is held for the next owner of the run.
- A call from an owner with a smaller epoch than the partition's newest is refused, unless the store says that this
  owner is the present one (`disputes`).
- `admit` makes all refusals: STALE_EPOCH, STALE_ATTEMPT, and any new call once the host is closing. Later problems (a
  plugin that is not running, an input too large) fail an admitted call: see `dispatch`.
- No call begins while the host does not count as registered (`Dispatcher.may_begin`). At the end
  of the session all other calls are dropped (`end_session`): executors have given up on these, and other hosts may run
  the same attempts.
- A result that the blob store refuses waits for the store, counted among the held results; nothing is executed again.
  The oldest such result ends as UNREACHABLE when the held results exceed their bound.
- A forgotten call (acknowledged, cancelled, superseded, or held too long) leaves no trace.

The modules: `plugins` (life of the backends), `replacements` (new backends), `call_table` (calls and epochs),
`disputes` (about epochs), `dispatch` (from admission to the backend), `call` (the outcome), `held_results`,
`deadlines`, `stream` (frames). A call passes `stream` and `host` twice, with the request and with the result, and every
other module once.

Does not: retry, route, or know flows. Streams are plain callables: one process and gRPC look the same from here.
"""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from component_host.call import Call, release_memory
from component_host.call_table import CallTable
from component_host.call_tasks import CallTasks
from component_host.dispatch import Dispatcher
from component_host.disputes import Disputes
from component_host.held_results import HELD_BYTES_MAX, HELD_S_MAX, HeldResults
from component_host.logs import HostLogs
from component_host.plugins import HostedPlugins
from component_host.replacements import Replacements
from component_host.results import not_kept, unreachable
from component_host.stream import HostStream
from stepflow.mesh.v1 import host_pb2
from stepflow.store.blobs import WaitingBlobs
from stepflow.store.inline_bound import InlineBound
from stepflow.value_budget import ValueBudget

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    from component_host.backend import Backend
    from stepflow.errors import Failure
    from stepflow.store.blobs import BlobStore

OUTPUTS_SHARE = 4
"""Large outputs are checked and stored at a time up to one part of so many of the memory for large values."""


class ComponentHost:
    """The backends of one process, with all calls. Implements `call.HostedCallOwner` and `stream.StreamOwner`."""

    def __init__(
        self,
        host_id: str,
        backends: Mapping[str, Backend],
        blobs: BlobStore,
        *,
        held_bytes_max: int = HELD_BYTES_MAX,
        held_s_max: float = HELD_S_MAX,
        value_bytes_max: int = 0,
        logs: HostLogs | None = None,
    ) -> None:
        """`value_bytes_max`: memory for large inputs and outputs; 0 for a share of what the process has.

        `logs`: those that the backends were built with.
        """
        self.id = host_id
        self.blobs = WaitingBlobs(blobs)
        self.inline_bound = InlineBound()
        self.held_s_max = held_s_max
        self.logs = logs or HostLogs()
        self.callback_ids: Iterator[int] = count(1)
        self.value_budget = ValueBudget(value_bytes_max)
        self.output_turns = ValueBudget(max(1, self.value_budget.bytes_max // OUTPUTS_SHARE))

        self.plugins = HostedPlugins(host_id, backends)
        self._tasks = CallTasks(host_id)
        self.dispatcher = Dispatcher(host_id, self.plugins, self.blobs, self._tasks, self.value_budget, self.logs)
        self.deadlines = self.dispatcher.deadlines
        self.plugins.resume = self.dispatcher.dispatch

        self.held_results: HeldResults[Call] = HeldResults(
            partial(_drop_result, self), bytes_max=held_bytes_max, age_s_max=held_s_max
        )

        self._table = CallTable()
        self.replacements = Replacements(self.plugins, self._table.calls_in)
        self.disputes = Disputes(self._table)
        self._streams: set[HostStream] = set()
        """Open streams, and closed ones whose call-backs wait for the next owner."""
        self._closing: asyncio.Task[None] | None = None

    @property
    def calls_held(self) -> int:
        """Number of calls, in flight or with an unacknowledged result."""
        return len(self._table)

    @property
    def calls_in_flight(self) -> int:
        """Number of calls without a result."""
        return len(self._table) - len(self.held_results)

    async def start(self, names: Iterable[str] | None = None, changed: Callable[[], None] = lambda: None) -> None:
        """Start the named backends (all by default) concurrently; return when each is ready or has failed.

        `changed` is called at the end of each start. Failures are kept in `plugins.failures`, for the caller to report;
        a failed plugin fails its own calls only. Each backend is started once: a
        second call waits for the same start.

        Raises:
            NotFound: PLUGIN_UNKNOWN; nothing is started then.
            FailedPrecondition: HOST_STOPPED.
        """
        await self.plugins.start(names, changed)

    async def close(self) -> None:
        """Stop all backends, cancelling starts under way. Calls in flight fail with UNREACHABLE.

        Open streams get these results before the return. Idempotent; a concurrent close is joined.
        """
        if self._closing is None:
            self.plugins.stopping = True  # before the first await: a start or call after it would outlive the host
            self._closing = asyncio.create_task(self._close(), name=f"close host {self.id}")

        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        # 1. No more expiries.
        self.deadlines.close()
        self.held_results.close()

        # 2. Stop the backends, which fail their own calls; then the host's tasks for calls.
        await asyncio.gather(self.plugins.close(), self.replacements.close())
        await self._tasks.close()
        await self.disputes.close()

        # 3. Fail the calls that still have no result, and the call-backs that nothing can answer any more.
        for call in self._table.all_calls():
            call.break_off(_stopped(self.id))
        for stream in list(self._streams):
            stream.give_up()

    def connect(
        self,
        deliver: Callable[[host_pb2.HostFrame], None],
        hang_up: Callable[[], None] = lambda: None,
        *,
        executor_id: str = "",
    ) -> HostStream:
        """Open an executor's stream. `deliver` gets the outgoing frames, on the event loop.

        `hang_up` is called once incoming frames in transit have become void.
        """
        stream = HostStream(self, deliver, hang_up, executor_id)
        self._streams.add(stream)
        return stream

    def forget_stream(self, stream: HostStream) -> None:
        """Drop a closed stream without call-backs."""
        self._streams.discard(stream)

    def end_session(self) -> None:
        """Drop all calls without a backend, and hang up all streams, with the calls in transit.

        The other calls continue, and their results are held.
        """
        for call in self._table.all_calls():
            if call.backend is None and call.result is None:
                self.forget_call(call)

        for stream in list(self._streams):
            stream.hang_up()

    def admit(self, stream: HostStream, request: host_pb2.Call, *, settled: bool = False) -> None:
        """Join, supersede or begin a call; or answer with a refusal. `settled`: after the dispute about its epoch."""
        # 1. Fence former owners of the partition.
        partition = self._table.partition(request.root_run_id, request.partition)
        if request.epoch < partition.epoch:
            if settled or not self.disputes.settle_call(stream, request, partial(self.admit, settled=True)):
                stream.refuse_call(request, unreachable("STALE_EPOCH", "the run has a newer owner"))
            return
        partition.epoch = request.epoch

        # 2. Join the same attempt, refuse an older one, supersede by a newer one.
        known = self._table.find_call(request.key)
        if known is not None:
            if known.request.attempt == request.attempt:
                known.join(stream, request)
                return
            if known.request.attempt > request.attempt:
                stream.refuse_call(request, unreachable("STALE_ATTEMPT", "a later attempt is under way"))
                return
            self.forget_call(known)

        # 3. Refuse new calls once stopping. After the join: held results are still given out.
        if self._closing is not None:
            stream.refuse_call(request, _stopped(self.id))
            return

        # 4. Register the call, then dispatch.
        call = Call(self, stream, request)
        self._table.add_call(partition, call)
        stream.expect_result(call)
        self.dispatcher.dispatch(call)

    def record_result(self, call: Call, result: host_pb2.CallResult, result_bytes: int) -> None:
        """Send and hold the result of a call. Ignored for a forgotten call, and for a second result."""
        if call.forgotten or call.result is not None:
            return
        call.result = result

        stream = call.stream
        stream.drop_call(call)
        stream.send_result(result)

        self.held_results.hold(call, result_bytes + len(call.input))
        call.input = b""
        release_memory(call, self.value_budget)

    def acknowledge(self, stream: HostStream, ack: host_pb2.Ack) -> None:
        """Forget a call after the executor has journaled the result.

        Ignored from a former owner, that is, if another open stream has joined the call: the present owner may still
        need the result.
        """
        call = self._table.find_call(ack.key)
        if call is None or call.request.attempt > ack.attempt:
            return

        if call.stream is stream or call.stream.closed:
            self.forget_call(call)

    def forget_call(self, call: Call) -> None:
        """Cancel a call in flight, or release a held result. Idempotent."""
        if call.forgotten:
            return
        call.forgotten = True
        release_memory(call, self.value_budget)
        self._table.remove_call(call)

        self.held_results.release(call)
        if call.result is not None:
            return

        call.stream.drop_call(call)
        if not call.settled:
            call.settle()
            self.dispatcher.undispatch(call)

    def spawn(self, call: Call, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run `work(*arguments)` for a call in a task; only off the hot path (blobs, large outputs)."""
        self._tasks.spawn(call, work, *arguments)

    def attach(self, asked: host_pb2.AttachRun) -> list[host_pb2.HeldCall]:
        """Return the calls of a partition, in flight or held, to the new owner; none to a former owner."""
        # 1. Fence former owners.
        partition = self._table.partition(asked.run_id, asked.partition)
        if asked.epoch < partition.epoch:
            return []

        # 2. From here on the new owner's epoch counts.
        partition.epoch = asked.epoch

        # 3. List the calls; the owner joins each by sending it again.
        return [
            host_pb2.HeldCall(run_id=asked.run_id, key=key, attempt=call.request.attempt)
            for key, call in partition.calls.items()
        ]


def _drop_result(host: ComponentHost, call: Call) -> None:
    """Drop a held result, or end a call whose result waits for the blob store."""
    if call.result is None:
        call.end_with(not_kept(host.blobs.store.trouble))
    else:
        host.forget_call(call)


def _stopped(host_id: str) -> Failure:
    return unreachable("HOST_STOPPED", f"component host {host_id} was stopped")


__all__ = ["ComponentHost"]
