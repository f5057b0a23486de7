"""When a server is started again that has ended: at once when that was wanted, else after a pause that doubles.

The pause begins at 0.1 s, ends at 30 s, and is the smallest again after a server that stayed up for a while.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from component_host.backend import with_stderr
from stepflow.errors import StepflowError, Unavailable
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.backend import Health

log = get_logger("component_host.restarts")

BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 30.0
HEALTHY_S = 10.0
"""A process that ran this long starts with the smallest delay again."""

START_FAILURES_MAX = 3


class Restartable(Protocol):
    """One server, through all its restarts."""

    end_was_wanted: bool
    how_it_ended: str

    def stderr_tail(self) -> str: ...

    async def start(self) -> None:
        """Raises: StepflowError."""
        ...

    async def ended(self) -> None: ...


async def keep_up(
    server: Restartable,
    health: Health,
    *,
    plugin: str,
    on_up: Callable[[], None],
    on_hopeless: Callable[[StepflowError], None],
) -> None:
    """Start a server again whenever it has ended, for ever, and tell `health` of it. It runs at first.

    `on_up` is called when it runs again, `on_hopeless` at each start that fails from the third in a row on.
    """
    loop = asyncio.get_running_loop()
    delay_s = BACKOFF_S_MIN
    failures = 0
    while True:
        up_since = loop.time()
        await server.ended()
        if loop.time() - up_since >= HEALTHY_S:
            delay_s = BACKOFF_S_MIN
        if not server.end_was_wanted:
            health.lost(server, with_stderr(server.how_it_ended, server.stderr_tail()))
            log.warning("server ended; starting it again", plugin=plugin, how=server.how_it_ended)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, BACKOFF_S_MAX)
        while (error := await _start(server)) is not None:
            failures += 1
            health.lost(server, error.message)
            log.warning("server did not start", plugin=plugin, reason=error.reason, error=error.message)
            if failures >= START_FAILURES_MAX:
                on_hopeless(error)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, BACKOFF_S_MAX)
        failures = 0
        health.serves(server)
        on_up()


async def _start(server: Restartable) -> StepflowError | None:
    try:
        await server.start()
    except StepflowError as error:
        return error
    except Exception as error:  # no descriptor, no thread: without this the server would never be started again
        log.error("server could not be started", error=type(error).__name__, exc_info=True)
        why = str(error) if isinstance(error, OSError) else type(error).__name__
        return Unavailable("SERVER_START_FAILED", f"the server could not be started: {why}")
    return None


__all__ = ["Restartable", "keep_up"]
