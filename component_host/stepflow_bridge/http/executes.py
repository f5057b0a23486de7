"""The executes in flight in one HTTP server: slots, slots lent to flows, and the end of each execute.

- An abandoned execute keeps its slot until the server answers: only our SDK can stop a component.
- An execute waiting for a flow lends its slot to the calls of the flow.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec import UNSET

from component_host.stepflow_bridge import protocol
from component_host.stepflow_bridge.log_notices import pass_log
from component_host.stepflow_bridge.pool import NO_ROOM
from component_host.stepflow_bridge.retirement import AbandonedExecutes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from msgspec import Raw

    from component_host.backend import HostCall
    from stepflow.errors import Failure


class HttpExecutes:
    """Executes by number. `on_room` is called whenever another may be sent."""

    def __init__(self, concurrency: int, on_room: Callable[[], None]) -> None:
        self.concurrency = float(concurrency)
        self.abandoned = AbandonedExecutes()
        self._on_room = on_room
        self._ready = False
        self._calls: dict[int, HostCall | None] = {}
        """None: abandoned, and still running in the server."""
        self._lent: Counter[int] = Counter()
        """Number of flows awaited by each execute that has lent its slot."""

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def room(self) -> float:
        """Number of further executes the server may get now."""
        return self.concurrency - len(self._calls) + len(self._lent) if self._ready else NO_ROOM

    @property
    def stuck(self) -> bool:
        """True if abandoned executes take up all the room."""
        return self.room < 1 and not self.calls()

    def open_slots(self) -> None:
        """Make the slots available: the server is ready."""
        self._ready = True

    def close_slots(self) -> None:
        self._ready = False

    @contextmanager
    def lent_slot(self, number: int) -> Iterator[None]:
        """Lend the slot of an execute while a call-back waits for a flow."""
        self._lent[number] += 1
        self._on_room()
        try:
            yield
        finally:
            self._lent[number] -= 1
            if not self._lent[number]:
                del self._lent[number]

    def calls(self) -> list[HostCall]:
        """Return the calls in flight."""
        return [call for call in self._calls.values() if call is not None]

    def call_of(self, number: int) -> HostCall | None:
        """Return the call of an execute; None after its end or after `abandon_call`."""
        return self._calls.get(number)

    def add_call(self, number: int, call: HostCall) -> None:
        self._calls[number] = call

    def abandon_call(self, number: int) -> None:
        """Forget the call; its execute keeps the slot until the server answers."""
        self._calls[number] = None
        self.abandoned.note_abandoned(number)

    def finish_call(self, number: int, failure: Failure | None) -> None:
        """Free the slot of an execute; `failure` is for a call not settled yet."""
        if number not in self._calls:
            return  # of a process that has ended

        call = self._calls.pop(number)
        if call is None:
            self.abandoned.note_answered(number)
        elif failure is not None:
            call.fail(failure)
        self._on_room()

    def fail_calls(self, failure: Failure) -> None:
        """Fail all calls: the server is gone."""
        calls, self._calls = self._calls, {}
        self.abandoned.clear()
        for call in calls.values():
            if call is not None:
                call.fail(failure)

    def take_notice(self, number: int, line: protocol.Line) -> None:
        """Handle a notification on the answer to an execute: progress, or a notice of the server's queue."""
        call = self._calls.get(number)
        if call is None:
            return
        if line.method == protocol.QUEUED:
            call.note_queued()
        elif line.method == protocol.BEGUN:
            call.note_begun()
        elif line.params is UNSET:
            return
        elif line.method == protocol.PROGRESS:
            self._report_progress(call, line.params)
        elif line.method == protocol.LOG:
            _take_log(call, line.params)

    def _report_progress(self, call: HostCall, params: Raw) -> None:
        with contextlib.suppress(*protocol.DECODE_ERRORS):
            progress = protocol.decode_progress(params)
            call.progress(progress.done or 0.0, progress.total or 0.0, progress.message or "")


def _take_log(call: HostCall, params: Raw) -> None:
    with contextlib.suppress(*protocol.DECODE_ERRORS):
        pass_log(call, protocol.decode_log(params))
