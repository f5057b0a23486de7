"""Restarts of an ended server: at once after a wanted end, else after a doubling pause.

The pause starts at 0.1 s, doubles up to 30 s, and starts over after an uptime of 10 s.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Protocol

from component_host.backend import with_stderr
from stepflow.errors import StepflowError, Unavailable
from stepflow.retry import doubling
from stepflow.telemetry import get_logger
from stepflow.vital import keep_running

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.backend import ServerHealth

log = get_logger("component_host.restarts")

BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 30.0
HEALTHY_S = 10.0
"""Uptime after which the pause starts over."""

START_FAILURES_MAX = 3
"""Failed starts in a row before `on_hopeless` is called."""


class Restartable(Protocol):
    """A server, through all restarts."""

    stopping: bool
    """True if the last end was wanted by the backend."""
    exit_reason: str

    def stderr_tail(self) -> str: ...

    async def start(self) -> None:
        """Raises: StepflowError."""
        ...

    async def ended(self) -> None: ...


async def supervise(
    server: Restartable,
    health: ServerHealth,
    *,
    plugin: str,
    on_up: Callable[[], None],
    on_hopeless: Callable[[StepflowError], None],
) -> None:
    """Restart a running server after each end, without limit, and record each end and start in `health`.

    `on_up` is called after each restart, `on_hopeless` after each failed start from the third in a row on. A defect in
    any of these calls ends no supervision.
    """
    work = partial(_supervise, server, health, plugin, on_up, on_hopeless)
    await keep_running(log, "supervision of a server", work, plugin=plugin)


async def _supervise(
    server: Restartable,
    health: ServerHealth,
    plugin: str,
    on_up: Callable[[], None],
    on_hopeless: Callable[[StepflowError], None],
) -> None:
    loop = asyncio.get_running_loop()
    pauses = doubling(BACKOFF_S_MIN, BACKOFF_S_MAX)

    while True:
        # 1. Wait for the end.
        up_since = loop.time()
        await server.ended()
        if loop.time() - up_since >= HEALTHY_S:
            pauses = doubling(BACKOFF_S_MIN, BACKOFF_S_MAX)

        # 2. Pause after an unwanted end.
        if not server.stopping:
            health.lost(server, with_stderr(server.exit_reason, server.stderr_tail()))
            log.warning("server ended; starting it again", plugin=plugin, how=server.exit_reason)
            await asyncio.sleep(next(pauses))

        # 3. Start, until a start succeeds.
        failures = 0
        while (error := await _start(server)) is not None:
            failures += 1
            health.lost(server, error.message)
            log.warning("server did not start", plugin=plugin, reason=error.reason, error=error.message)
            if failures >= START_FAILURES_MAX:
                on_hopeless(error)
            await asyncio.sleep(next(pauses))

        # 4. Serve again.
        health.serves(server)
        on_up()


async def _start(server: Restartable) -> StepflowError | None:
    try:
        await server.start()
    except StepflowError as error:
        return error
    except Exception as error:  # no descriptor, no thread: raised, it would end all restarts of this server
        log.error("server could not be started", error=type(error).__name__, exc_info=True)
        why = str(error) if isinstance(error, OSError) else type(error).__name__
        return Unavailable("SERVER_START_FAILED", f"the server could not be started: {why}")
    return None


__all__ = ["Restartable", "supervise"]
