"""Following a run of a mesh to the end: steps on stderr, then the results.

- The first Ctrl-C stops following and prints the command to follow again; the run continues. After `submit`, a
  second Ctrl-C within `CANCEL_WINDOW_S` cancels the run, and a third ends the process at once.
- SIGTERM and SIGHUP stop following at once.
- A signal repeated within `stop_signals.REPEAT_S` is one Ctrl-C: it must not cancel the run.
- While no executor drives the run, the reason is printed, once for each.
- After a lost connection the events resume where they stopped; after `FOLLOW_PATIENCE_S` without a server the command
  fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from stepflow.cli import console, exits, remote
from stepflow.cli.display.outcome import Ended, read_already
from stepflow.cli.display.results import StoredResults
from stepflow.errors import StepflowError
from stepflow.log_lines import StepLog
from stepflow.retry import doubling
from stepflow.run.views import StepEvent
from stepflow.stop_signals import StopSignals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stepflow.cli.display.streamed import ResultStream
    from stepflow.cli.display.view import View
    from stepflow.client import Client, ClientEvent, Run

CANCEL_WINDOW_S = 2.0
"""Time between the first and the second Ctrl-C in which the second cancels the run."""

QUEUE_LOOK_S = (1.0, 5.0)
"""First and longest pause between two looks at what keeps the run queued, doubling."""

_KINDS: dict[str, Any] = {
    "step_started": "started",
    "step_progress": "progress",
    "step_completed": "completed",
    "step_failed": "failed",
    "step_skipped": "skipped",
    "step_retrying": "retrying",
    "step_sleeping": "sleeping",
    "step_waiting": "waiting",
}


@dataclass(slots=True)
class Following:
    """A run that is followed. `cancels`: a second Ctrl-C cancels the run. `on_event` also gets every event."""

    server: str | None
    view: View
    cancels: bool = False
    on_event: Callable[[ClientEvent], None] | None = None
    run_id: str = ""
    """Empty until the run may have reached the mesh."""
    begun: bool = field(default=False, init=False)
    """The mesh has confirmed the run."""
    refused: bool = False
    """The mesh is busy and has refused the run so far."""
    timeout_s: float | None = None
    """After this time the run is followed no more."""
    items_ended: int = field(default=0, init=False)
    stream: ResultStream | None = None
    """Writes the results of a batch while it runs."""


def follow(following: Following, begin: Callable[[Client], Awaitable[tuple[str, int]]]) -> Ended:
    """Begin (or find) a run, follow the run to the end, and return the outcome.

    `begin` returns the run's id and the number of items. If the mesh may have the run before `begin` returns, `begin`
    sets `following.run_id` earlier.

    Raises:
        StepflowError: there is no such mesh or run.
        typer.Exit: 128 + signal, after a signal, or 124, after `timeout_s`; the state of the run has been printed.
    """
    return asyncio.run(_Interruptible(following).run(begin))


class _Interruptible:
    """Follows a run until it ends or a signal arrives."""

    def __init__(self, following: Following) -> None:
        self._following = following
        self._signals = 0
        self._signalled = asyncio.Event()
        self._first_signal = 0
        """Number of the first signal; 0 before any."""

    async def run(self, begin: Callable[[Client], Awaitable[tuple[str, int]]]) -> Ended:
        with StopSignals(asyncio.get_running_loop(), self._on_signal):
            return await self._run(begin)

    async def _run(self, begin: Callable[[Client], Awaitable[tuple[str, int]]]) -> Ended:
        work = asyncio.create_task(remote.with_help(_work(self._following, begin)))
        signalled = asyncio.create_task(self._signalled.wait())
        try:
            timeout_s = self._following.timeout_s
            await asyncio.wait((work, signalled), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
        except StepflowError:
            if self._following.begun:
                console.say(self._resume_hint())
            raise
        finally:
            self._following.view.end()
            for task in (work, signalled):
                task.cancel()
            await asyncio.gather(work, signalled, return_exceptions=True)

        if not self._signals:
            console.say(f"--timeout is over: {self._state()}")
            raise typer.Exit(exits.TIMED_OUT)
        await self._stop_following()
        raise typer.Exit(128 + self._first_signal)

    def _on_signal(self, number: int, request: int) -> None:
        self._signals = request
        self._first_signal = self._first_signal or number
        if self._signals > 2:
            self._following.view.end()
            os._exit(128 + self._first_signal)
        self._signalled.set()

    async def _stop_following(self) -> None:
        """Print what becomes of the run; cancel the run after a second Ctrl-C."""
        following = self._following
        console.say(self._state())
        if not following.run_id:
            return
        if following.refused or not following.cancels or self._first_signal != signal.SIGINT:
            return

        console.say(console.styled(f"Ctrl-C again within {CANCEL_WINDOW_S:g} s cancels the run", "dim"))
        self._signalled.clear()
        if self._signals < 2:  # else the second Ctrl-C arrived while the work was being cancelled
            try:
                async with asyncio.timeout(CANCEL_WINDOW_S):
                    await self._signalled.wait()
            except TimeoutError:
                return

        await self._cancel()

    def _state(self) -> str:
        return self._resume_hint() if self._following.run_id else "stopped before the run was submitted"

    def _resume_hint(self) -> str:
        following = self._following
        again = f"stepflow runs watch {following.run_id}{remote.server_argument(following.server)}"
        if following.begun:
            return f"the run continues without this command; follow it again with: {again}"
        if following.refused:
            return f"the mesh was busy; should it have accepted the run in the end, follow it with: {again}"
        return f"the mesh has not answered, so the run may or may not exist; check with: {again}"

    async def _cancel(self) -> None:
        following = self._following
        async with remote.connect(following.server) as client:
            await remote.with_help(client.cancel(following.run_id))
            console.say("cancelling …")
            try:
                async with asyncio.timeout(remote.CANCEL_WAIT_S):
                    run = await client.wait(following.run_id)
            except (TimeoutError, StepflowError):
                console.say(f"run {following.run_id} was told to end")
            else:
                console.say(f"run {run.run_id} has ended: {run.status}")


async def _work(following: Following, begin: Callable[[Client], Awaitable[tuple[str, int]]]) -> Ended:
    """Begin the run and follow it to the end, over two connections of different patience."""
    async with remote.connect(following.server) as client:
        following.run_id, items_total = await begin(client)
        following.begun, following.refused = True, False

    # The mesh has the run: from here on, wait for a server that restarts.
    async with remote.connect(following.server, remote.FOLLOW_PATIENCE_S) as client:
        following.view.begin(items_total)
        helpers = [asyncio.create_task(_tick(following)), asyncio.create_task(_tell_queued(client, following.run_id))]
        if following.stream is not None:
            helpers.append(asyncio.create_task(_write_results(client, following.run_id, following.stream)))
        try:
            run = await _watch(client, following)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

        following.view.tick(run.items_total)
        if following.stream is not None:
            with contextlib.suppress(StepflowError):  # `finish` reads the rest again
                await following.stream.drain(partial(remote.numbered, client, run.run_id), run.items_total)
        command = remote.results_command(following.server, run.run_id)
        # The result of a single run is read before the connection ends, unless it is large.
        found = [remote.outcome_of(item) async for item in client.items(run.run_id)] if run.items_total <= 1 else []
    stored = StoredResults(run.status, lambda first: remote.outcomes(following.server, run.run_id, first))
    return Ended(run, read_already(found, run.status) or stored, command)


async def _watch(client: Client, following: Following) -> Run:
    """Pass the events of the run on until the run has ended."""
    async with contextlib.aclosing(client.watch(following.run_id, include_logs=True)) as events:
        async for event in events:
            if following.on_event is not None:
                following.on_event(event)
            match event.kind:
                case "item_completed" | "item_failed":
                    following.items_ended += 1
                    if following.stream is not None:
                        following.stream.note([event.item])
                case "history_incomplete":
                    console.warn(f"no further steps can be shown: {event.message}")
                case "run_ended":
                    assert event.run is not None
                    return event.run
                case "step_logged":
                    following.view.on_log(step_log(event))
                case kind if kind in _KINDS:
                    following.view.on_event(step_event(event))
    return await client.wait(following.run_id)


async def _tell_queued(client: Client, run_id: str) -> None:
    """Print what keeps the run queued, whenever it changes."""
    told = ""
    for pause_s in doubling(*QUEUE_LOOK_S):
        await asyncio.sleep(pause_s)
        try:
            reason = (await client.get(run_id)).queued_reason
        except StepflowError:  # `_watch` reports it, if it lasts
            continue
        if reason != told:
            console.say(f"the run is queued ({reason})" if reason else "the run goes on")
            told = reason


async def _write_results(client: Client, run_id: str, stream: ResultStream) -> None:
    """Write the results of a batch as its items end, until cancelled. What a busy mesh refuses is read later."""
    while True:
        with contextlib.suppress(StepflowError):
            await stream.follow(partial(remote.numbered, client, run_id))
        await asyncio.sleep(QUEUE_LOOK_S[0])


async def _tick(following: Following) -> None:
    """Redraw the view at `view.interval_s`."""
    while True:
        await asyncio.sleep(3600 if following.view.interval_s is None else following.view.interval_s)
        following.view.tick(following.items_ended)


def step_log(event: ClientEvent) -> StepLog:
    """Convert a client's event with log lines for the views."""
    return StepLog(
        run_id=event.run_id,
        item=event.item,
        step_id=event.step_id,
        step_index=event.step_index,
        component=event.component,
        depth=event.depth,
        attempt=event.attempt,
        lines=event.lines,
        dropped=event.dropped,
    )


def step_event(event: ClientEvent) -> StepEvent:
    """Convert a client's event for the views."""
    return StepEvent(
        kind=_KINDS[event.kind],
        run_id=event.run_id,
        depth=event.depth,
        item=event.item,
        step_id=event.step_id,
        step_index=event.step_index,
        component=event.component,
        attempt=event.attempt,
        at_ms=event.at_ms,
        duration_ms=event.duration_ms or None,
        failure=event.failure,
        until_ms=event.until_ms,
        message=event.message,
        done=event.done,
        total=event.total,
        parent=event.parent,
        path=event.path,
    )
