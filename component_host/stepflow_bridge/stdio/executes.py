"""The executes in flight in one stdio server: the room for more, and the execute behind each call-back.

- An abandoned execute keeps its slot until the server answers.
- Without attributed call-backs there is one execute at a time. Only during a call-back of its own, calls of the flow
  asked for may come on top (`takes_call`); then the newest execute is the asker.
"""

from __future__ import annotations

import contextlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Raw, Struct

from component_host.stepflow_bridge import protocol
from component_host.stepflow_bridge.failures import settle_call
from component_host.stepflow_bridge.log_notices import pass_log
from component_host.stepflow_bridge.pool import NO_ROOM
from component_host.stepflow_bridge.retirement import AbandonedExecutes
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import Code, Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from component_host.backend import HostCall
    from component_host.supervision.report import ProcessReport


class StdioExecutes:
    """Executes by request id. `on_room` is called after each end of one."""

    def __init__(
        self, plugin: str, spans: protocol.SpanIds, concurrency: int | None, on_room: Callable[[], None]
    ) -> None:
        self.room = NO_ROOM
        """Number of further executes the server may get now."""
        self.concurrency = 1.0
        self.abandoned = AbandonedExecutes()
        self._plugin = plugin
        self._spans = spans
        self._configured = concurrency
        self._on_room = on_room
        self._calls: dict[int, HostCall | None] = {}
        """None: abandoned, and still running in the server."""
        self._attributed = False
        """Call-backs name their execute."""

    def __len__(self) -> int:
        return len(self._calls)

    def open_slots(self) -> None:
        """Make the slots available: the server is ready."""
        self.room = self.concurrency - len(self._calls)

    def close_slots(self) -> None:
        self.room = NO_ROOM

    def set_attributed(self, attributed: bool) -> None:
        """Note if call-backs name their execute; set the concurrency accordingly, unless configured."""
        self._attributed = attributed
        self.concurrency = float(self._configured or ("inf" if attributed else 1))
        if self.room != NO_ROOM:
            self.open_slots()

    # --- calls --------------------------------------------------------------------------------------------------

    def add_call(self, request_id: int, call: HostCall) -> None:
        self._calls[request_id] = call
        self.room -= 1

    def call_of(self, request_id: int) -> HostCall | None:
        """Return the call of an execute; None after its end or after `abandon_call`."""
        return self._calls.get(request_id)

    def abandon_call(self, request_id: int) -> None:
        """Forget the call; its execute keeps the slot until the server answers."""
        self._calls[request_id] = None
        self.abandoned.note_abandoned(request_id)

    @property
    def executing(self) -> bool:
        """True while the server executes a call that is still wanted."""
        return any(call is not None and not call.queued for call in self._calls.values())

    @property
    def stuck(self) -> bool:
        """True if abandoned executes take up all the room."""
        return self.room < 1 and all(call is None for call in self._calls.values())

    def takes_call(self, call: HostCall, asking: Collection[int]) -> bool:
        """Return True if there is room for a call, or the newest execute waits for the call's flow.

        Without the second case the flow would wait for the slot of the execute that waits for the flow. `asking` are
        the executes with open call-backs.
        """
        if self.room > 0:
            return True
        if self.room == NO_ROOM or not self._calls:
            return False

        newest, waiting = next(reversed(self._calls.items()))
        return waiting is not None and newest in asking and _descends(call, waiting)

    # --- replies ------------------------------------------------------------------------------------------------

    def settle_call(self, request_id: int, line: protocol.Line, process: ProcessReport | None = None) -> None:
        """End an execute with the server's reply."""
        call = self._calls.pop(request_id, _UNKNOWN)
        if call is _UNKNOWN:
            return
        self.room += 1
        if call is not None:
            settle_call(call, line, self._plugin, process)
        else:
            self.abandoned.note_answered(request_id)
        self._on_room()

    def fail_oversized(self, request_id: int) -> None:
        """End an execute whose reply was too long to read."""
        call = self._calls.get(request_id)
        if call is not None:
            message = f"the result is larger than the limit of {PAYLOAD_BYTES_MAX:,} bytes"
            call.fail(Failure(Code.COMPONENT_FAILED, message))
        self.settle_call(request_id, protocol.Line())

    def fail_calls(self, failure: Failure) -> None:
        """Fail all calls: the process has ended."""
        calls, self._calls = self._calls, {}
        self.abandoned.clear()
        for call in calls.values():
            if call is not None:
                call.fail(failure)

    def report_progress(self, params: Raw) -> None:
        with contextlib.suppress(*protocol.DECODE_ERRORS):
            progress = protocol.decode_progress(params)
            call = self._calls.get(progress.id) if isinstance(progress.id, int) else None
            if call is not None:
                call.progress(progress.done or 0.0, progress.total or 0.0, progress.message or "")

    def take_log(self, params: Raw) -> None:
        """Hand log lines to the call that they belong to."""
        with contextlib.suppress(*protocol.DECODE_ERRORS):
            log = protocol.decode_log(params)
            call = self._calls.get(log.id) if isinstance(log.id, int) else None
            if call is not None:
                pass_log(call, log)

    def note_queue(self, params: Raw, *, begun: bool) -> None:
        """Note calls that wait for a thread of the server, or have got one."""
        with contextlib.suppress(*protocol.DECODE_ERRORS):
            for request_id in protocol.decode_call_ids(params).ids:
                call = self._calls.get(request_id) if isinstance(request_id, int) else None
                if call is not None and begun:
                    call.note_begun()
                elif call is not None:
                    call.note_queued()

    # --- call-backs ---------------------------------------------------------------------------------------------

    def owner_of(self, line: protocol.Line) -> int | None:
        """Return the request id of the execute behind a call-back; None if ambiguous.

        The execute may have ended.
        """
        # 1. The span or trace is the execute's own.
        ids = _ids_of(line)
        owner = None if ids is None else self._spans.request_id(ids.trace_id, ids.span_id)
        if owner is not None:
            return owner

        # 2. Only one execute can ask.
        if len(self._calls) == 1 or (not self._attributed and self._stacked()):
            return next(reversed(self._calls), None)

        # 3. No ids, unlike others of its generation: one execute at a time from here on.
        if ids is None:
            self.set_attributed(False)
            return None

        # 4. A server that exports traces, in a traced run: the span is the server's, the trace the client's.
        alike = [
            request_id
            for request_id, call in self._calls.items()
            if call is not None and call.request.run_id == ids.run_id and call.request.step_id == ids.step_id
        ]
        return alike[0] if len(alike) == 1 else None

    def _stacked(self) -> bool:
        """Return True if each execute belongs to a flow that the execute before it waits for."""
        return all(
            below is not None and above is not None and _descends(above, below)
            for below, above in pairwise(self._calls.values())
        )


def _descends(call: HostCall, ancestor: HostCall) -> bool:
    """Return True if a flow that `ancestor` asked for made the call, at any depth: keys are nested."""
    return call.request.key.startswith(f"{ancestor.request.key}/")


class _CallbackIds(Struct):
    trace_id: str | None = None
    span_id: str | None = None
    run_id: str | None = None
    step_id: str | None = None


class _CallbackParams(Struct):
    observability: _CallbackIds | None = None


_decode_params = msgspec.json.Decoder(_CallbackParams).decode


def _ids_of(line: protocol.Line) -> _CallbackIds | None:
    if line.params is UNSET:
        return None
    try:
        return _decode_params(line.params).observability
    except protocol.DECODE_ERRORS:
        return None


_UNKNOWN: Any = object()
