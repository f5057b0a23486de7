"""`serve()`: the front door of a component server. Chooses a transport: stdio, HTTP or gRPC pull.

Transports are imported on use; `--help`, `--list` and `--call` load none.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from stepflow.standard_streams import open_closed_streams

if TYPE_CHECKING:
    from collections.abc import Sequence

PORTS_MAX = 65_536


def serve(
    *,
    http: bool | int | str | None = None,
    pull: str | None = None,
    queue: str | None = None,
    concurrency: int | None = None,
    threads: int | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Serve all `@component` functions on stdin and stdout until the host closes stdin.

    With `http`, serve over HTTP until a signal: `True` listens on any free port of loopback, a number on that port,
    `"HOST:PORT"` on that address; the port is announced on stdout. There is no authentication: any client of the
    address can call the components.

    With `pull`, HOST:PORT, fetch calls from there over gRPC, from `queue`, at most `concurrency` at a time, until a
    signal. STEPFLOW_TRANSPORT=grpc in the environment, set by runtimes that start workers, has the same effect;
    missing arguments come from STEPFLOW_TASKS_URL, STEPFLOW_QUEUE_NAME and STEPFLOW_MAX_CONCURRENT.

    `threads` bounds the sync components that run at a time (default: cores + 4, at most 32). `argv` replaces the
    process's arguments: `--help` explains the program, `--list` prints the components as JSON, `--call NAME` runs one
    on JSON from stdin; other arguments are left to the author.

    Raises:
        SystemExit: 2 if a component or an option is wrong (explained on stderr), 128 + signal after a signal (0 with
            `pull`); and with `--help`, `--list` and `--call`.
    """
    from stepflow.component.registry import REGISTRY
    from stepflow.errors import Invalid

    open_closed_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)

    # 1. Check components and options.
    try:
        if not REGISTRY.components():
            raise Invalid("COMPONENT_INVALID", "there is nothing to serve: put @component on a function before serve()")
        if threads is not None and threads < 1:
            raise Invalid("COMPONENT_INVALID", f"serve(threads={threads}): at least one thread is needed")

        address = None if http is None or http is False else _address_of(http)
        pulls = pull is not None or (address is None and os.environ.get("STEPFLOW_TRANSPORT") == "grpc")
        if pulls and address is not None:
            raise Invalid("COMPONENT_INVALID", "serve(http=…, pull=…): give one of the two")

        for component in REGISTRY.components():
            component.prepare()
    except Invalid as problem:
        raise _usage_error(problem) from None

    # 2. Without a host: explain, list, or call once.
    if arguments[:1] in (["--help"], ["-h"]):
        from stepflow.component.tryout import print_help

        raise SystemExit(print_help(REGISTRY))
    if arguments[:1] == ["--list"]:
        from stepflow.component.tryout import list_components

        raise SystemExit(list_components(REGISTRY))
    if arguments[:1] == ["--call"]:
        from stepflow.component.tryout import call_component

        raise SystemExit(call_component(REGISTRY, arguments[1:]))

    # 3. Serve.
    from stepflow.component.process import configure_log

    configure_log()
    if address is not None:
        from stepflow.component.http.server import run_http

        run_http(*address, threads)
    elif pulls:
        _run_pull(threads, pull, queue, concurrency)
    else:
        from stepflow.component.stdio import run_stdio

        if sys.stdin is not None and sys.stdin.isatty():
            from stepflow.component.tryout import hint

            print(hint(REGISTRY), file=sys.stderr)
        run_stdio(threads)


def _run_pull(threads: int | None, pull: str | None, queue: str | None, concurrency: int | None) -> None:
    from stepflow.component.pull.options import pull_options
    from stepflow.component.pull.worker import run_pull
    from stepflow.errors import Invalid

    try:
        options = pull_options(os.environ, pull=pull, queue=queue, concurrency=concurrency)
    except Invalid as problem:
        raise _usage_error(problem) from None

    run_pull(options, threads)


def _address_of(http: int | str) -> tuple[str, int]:
    """Return host and port of the `http` argument. Raises: Invalid COMPONENT_INVALID."""
    from stepflow.errors import Invalid

    host, _, port = ("", "", "0") if http is True else str(http).rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < PORTS_MAX):
        raise Invalid("COMPONENT_INVALID", f"serve(http={http!r}): True, a port, or 'HOST:PORT' is needed")

    return host.strip("[]") or "127.0.0.1", int(port)


def _usage_error(problem: Exception) -> SystemExit:
    """Print a problem of the author's program to stderr; return the exit."""
    print(f"error: {problem}", file=sys.stderr)
    return SystemExit(2)
