"""Following a run of a mesh to its end: its steps on stderr, its results in the end.

- The first Ctrl-C lets the run go on without us and says how to come back. For whoever has submitted it, a second one
  within `CANCEL_WINDOW_S` cancels the run; a third one waits for nothing.
- SIGTERM lets go at once.
- A cut connection is taken up again where it was; only after a minute without any server this gives up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from stepflow.cli import console, remote
from stepflow.cli.display.outcome import Ended, result_tree, run_tree
from stepflow.errors import StepflowError
from stepflow.run.views import StepEvent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stepflow.cli.display.live import View
    from stepflow.client import Client, Event, Run

CANCEL_WINDOW_S = 2.0

_KINDS: dict[str, Any] = {
    "step_started": "started",
    "step_progress": "progress",
    "step_completed": "completed",
    "step_failed": "failed",
    "step_retrying": "retrying",
    "step_sleeping": "sleeping",
    "step_waiting": "waiting",
}


@dataclass(slots=True)
class Following:
    """A run that is followed. `cancels`: a second Ctrl-C cancels it; `on_event` sees every event, too."""

    server: str | None
    view: View
    cancels: bool = False
    on_event: Callable[[Event], None] | None = None
    run_id: str = ""
    """Empty as long as the mesh cannot have the run."""
    begun: bool = field(default=False, init=False)
    """The mesh has said that it has the run."""
    items_ended: int = field(default=0, init=False)


def follow(following: Following, begin: Callable[[Client], Awaitable[tuple[str, int]]]) -> Ended:
    """Begin (or find) a run, follow it, and return how it ended.

    `begin` returns the run's id and its number of items, and may set `following.run_id` before it is sure of it.

    Raises:
        StepflowError: there is no such mesh or run.
        typer.Exit: 130 or 143; a signal has come, and people were told what that means for the run.
    """
    return asyncio.run(_Interruptible(following).run(begin))


class _Interruptible:
    """The work, and what signals do to it."""

    def __init__(self, following: Following) -> None:
        self._following = following
        self._signals = 0
        self._came = asyncio.Event()
        self._number = 0

    async def run(self, begin: Callable[[Client], Awaitable[tuple[str, int]]]) -> Ended:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        work = asyncio.create_task(remote.with_help(_work(self._following, begin)))
        came = asyncio.create_task(self._came.wait())
        try:
            await asyncio.wait((work, came), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
        except StepflowError:
            if self._following.begun:
                console.say(self._how_to_come_back())
            raise
        finally:
            self._following.view.end()
            for task in (work, came):
                task.cancel()
            await asyncio.gather(work, came, return_exceptions=True)
        await self._let_go()
        raise typer.Exit(128 + self._number)

    def _on_signal(self, number: int) -> None:
        self._signals += 1
        self._number = self._number or number
        if self._signals > 2:
            self._following.view.end()
            os._exit(128 + self._number)
        self._came.set()

    async def _let_go(self) -> None:
        """Tell people what becomes of the run, and cancel it if they insist."""
        following = self._following
        if not following.run_id:
            console.say("stopped before the run was submitted")
            return
        console.say(self._how_to_come_back())
        if not following.cancels or self._number != signal.SIGINT:
            return
        console.say(console.styled(f"Ctrl-C again within {CANCEL_WINDOW_S:g} s cancels it", "dim"))
        self._came.clear()
        if self._signals < 2:
            try:
                async with asyncio.timeout(CANCEL_WINDOW_S):
                    await self._came.wait()
            except TimeoutError:
                return
        await self._cancel()

    def _how_to_come_back(self) -> str:
        following = self._following
        again = f"stepflow runs watch {following.run_id}{remote.server_argument(following.server)}"
        if following.begun:
            return f"the run goes on without this command; come back with: {again}"
        return f"the mesh has not answered yet, and may have the run or not; look with: {again}"

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
    async with remote.connect(following.server) as client:
        following.run_id, items_total = await begin(client)
        following.begun = True
    # With an answer in hand, patience is worth it.
    async with remote.connect(following.server, remote.FOLLOW_PATIENCE_S) as client:
        following.view.begin(items_total)
        ticker = asyncio.create_task(_tick(following))
        try:
            run = await _watch(client, following)
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
        following.view.tick(run.items_total)
        return Ended(run, [result_tree(remote.outcome_of(item), run.status) async for item in client.items(run.run_id)])


async def _watch(client: Client, following: Following) -> Run:
    async with contextlib.aclosing(client.watch(following.run_id)) as events:
        async for event in events:
            if following.on_event is not None:
                following.on_event(event)
            match event.kind:
                case "item_completed" | "item_failed":
                    following.items_ended += 1
                case "run_ended":
                    assert event.run is not None
                    return event.run
                case kind if kind in _KINDS:
                    following.view.on_event(step_event(event))
    return await client.wait(following.run_id)


async def _tick(following: Following) -> None:
    """Have the view drawn anew, as often as it wants to be."""
    while True:
        await asyncio.sleep(3600 if following.view.interval_s is None else following.view.interval_s)
        following.view.tick(following.items_ended)


def step_event(event: Event) -> StepEvent:
    """Return a client's event as the views take it."""
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
        parent=event.parent,
    )


def event_tree(event: Event) -> dict[str, Any]:
    """Return an event as programs get it: what is set, and no result."""
    tree: dict[str, Any] = {"kind": event.kind, "at_ms": event.at_ms, "run_id": event.run_id}
    if event.kind.startswith(("step_", "sub_run")):
        tree |= {"item": event.item, "step_id": event.step_id, "component": event.component, "depth": event.depth}
        tree |= {"attempt": event.attempt} if event.attempt else {}
    elif event.kind.startswith("item_") or event.kind == "signalled":
        tree["item"] = event.item
    for name in ("duration_ms", "until_ms", "message", "sub_run_id", "executor_id"):
        value = getattr(event, name)
        tree |= {name: value} if value else {}
    if event.failure is not None:
        tree["error"] = {"code": event.failure.code.name, "message": event.failure.message}
    if event.run is not None:
        tree["run"] = run_tree(event.run)
    return tree
