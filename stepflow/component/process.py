"""The process of a component server: descriptors, log, event loop, signals, and the exit.

Limit: a component stuck in a thread cannot be interrupted; `leave` then ends the process without the interpreter's
clean-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from stepflow.component.logs import CallHandler, captured_output
from stepflow.stop_signals import StopSignals

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from stepflow.component.threads import Threads

ENDING_S = 1.0
"""Time for async components to clean up at the end."""


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop: uvloop's if installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def configure_log() -> None:
    """Log at the level of STEPFLOW_LOG_LEVEL, with the calls or to stderr, unless the author has set up logging."""
    logging.basicConfig(level=_log_level(), handlers=[CallHandler()])


def debugging() -> bool:
    """Return True if STEPFLOW_LOG_LEVEL is `debug`: failures then carry tracebacks."""
    return _log_level() <= logging.DEBUG


def _log_level() -> int:
    """Return the level named by STEPFLOW_LOG_LEVEL; INFO if unset or unknown."""
    level = logging.getLevelNamesMapping().get(os.environ.get("STEPFLOW_LOG_LEVEL", "info").upper())
    return logging.INFO if level is None else level


def take_descriptors() -> tuple[int, int]:
    """Return private copies of stdin and stdout; descriptor 0 becomes /dev/null, descriptor 1 becomes stderr."""
    # Not inherited by child processes: an inherited copy would hold the pipe open after the server's end.
    fd_in, fd_out = os.dup(0), os.dup(1)

    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)

    # After the switch: text printed while the module loaded is no protocol either.
    sys.stdout.flush()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    return fd_in, fd_out


@contextlib.contextmanager
def exit_code_on_signal() -> Iterator[asyncio.Future[int]]:
    """Give a future of the running loop that SIGTERM, SIGINT or SIGHUP settles with 128 + signal."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    with StopSignals(loop, lambda number, _request: set_exit_code(ended, 128 + number)):
        yield ended


def set_exit_code(ended: asyncio.Future[int], code: int) -> None:
    """Set the exit code, unless the future is done."""
    if not ended.done():
        ended.set_result(code)


def run_and_leave(serving: Coroutine[Any, Any, tuple[int, bool]]) -> None:
    """Run a server, which returns exit code and stuck threads, and end the process accordingly.

    Returns for exit code 0, so that the author's program continues. Raises: SystemExit.
    """
    leave(*run_server(serving))


def run_server(serving: Coroutine[Any, Any, tuple[int, bool]]) -> tuple[asyncio.AbstractEventLoop, int, bool]:
    """Run a server to the end; return the loop, the exit code, and True if threads are stuck in components."""
    import gc

    loop = new_loop()
    gc.freeze()  # imported modules live as long as the process: collections can skip them
    with captured_output():
        return loop, *loop.run_until_complete(serving)


def leave(loop: asyncio.AbstractEventLoop, code: int, stuck: bool) -> None:
    """End the process if `code` is not 0 or threads are stuck. Raises: SystemExit."""
    if stuck:
        # At a normal exit the interpreter waits for stuck threads, or crashes when one prints meanwhile.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    loop.close()
    if code:
        raise SystemExit(code)


async def cancel_calls(tasks: Sequence[asyncio.Task[None]], threads: Threads) -> bool:
    """Cancel async calls and grant `ENDING_S` for clean-up; return True if tasks or threads are stuck."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=ENDING_S)

    # In a task of its own: a cancelled shutdown would wait for the very threads that may be stuck.
    executor_ended = asyncio.ensure_future(asyncio.get_running_loop().shutdown_default_executor())
    await asyncio.wait([executor_ended], timeout=ENDING_S)
    return threads.busy() or not all(task.done() for task in (executor_ended, *tasks))
