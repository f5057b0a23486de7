"""Work that signals stop in order: SIGINT, SIGTERM and SIGHUP cancel it, so that component servers end with it.

The second signal ends the process at once; guards end the servers. See `stepflow.stop_signals` for repeated signals.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from stepflow.stop_signals import StopSignals

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_T = TypeVar("_T")


class Interrupted(Exception):
    """A signal has stopped the work."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def run_interruptibly(work: Coroutine[Any, Any, _T], before_exit: Callable[[], None] = lambda: None) -> _T:
    """Run a coroutine on a new event loop. `before_exit` is called when a second signal ends the process.

    Raises: Interrupted; the errors of `work`.
    """
    import uvloop

    async def main() -> _T:
        task = asyncio.ensure_future(work)
        received: list[int] = []

        def stop(signum: int, request: int) -> None:
            if request > 1:
                before_exit()
                os._exit(128 + signum)
            received.append(signum)
            task.cancel()

        with StopSignals(asyncio.get_running_loop(), stop):
            try:
                return await task
            except asyncio.CancelledError:
                if not received:
                    raise
                raise Interrupted(received[0]) from None

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def run_or_exit(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine on a new event loop. Raises: typer.Exit (128 + signal); the errors of `work`."""
    try:
        return run_interruptibly(work)
    except Interrupted as interrupted:
        raise typer.Exit(128 + interrupted.signum) from None


__all__ = ["Interrupted", "run_interruptibly", "run_or_exit"]
