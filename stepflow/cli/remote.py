"""Talking to a mesh: which one is meant, one connection per command, and what people are told when nobody answers.

Commands import this for their help as well, so nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from stepflow.client import Client, Item, Run, Step, Tls
    from stepflow.codec import Json
    from stepflow.errors import Failure
    from stepflow.flow import Redactor

DEFAULT_SERVER = "localhost:7840"

PATIENCE_S = 2.0
"""How long a command looks for a server that does not answer. Somebody waits at a terminal."""

FOLLOW_PATIENCE_S = 60.0
"""The same for commands that follow a run, once they have had an answer: control planes come and go meanwhile."""

ID_SEARCH_RUNS_MAX = 1_000
"""The beginning of an id is looked for among so many of the newest runs."""

UUID_CHARS = 36

CANCEL_WAIT_S = 10.0
"""How long a cancelled run may take to end before nobody waits for it any more."""

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        envvar="STEPFLOW_SERVER",
        show_envvar=False,
        help=f"The mesh. Default: STEPFLOW_SERVER, else {DEFAULT_SERVER}.",
    ),
]
LocalOrServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        envvar="STEPFLOW_SERVER",
        show_envvar=False,
        help="Ask this mesh instead of the local store. Default: STEPFLOW_SERVER.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN_ID", help="The run, or how its id begins.")]

_T = TypeVar("_T")


def ask(server: str | None, work: Callable[[Client], Awaitable[_T]]) -> _T:
    """Connect, do the work, and return what it gives.

    Raises: Unavailable `SERVER_UNAVAILABLE`, whose text says how to come by a mesh; what the work raises.
    """
    import asyncio

    async def connected() -> _T:
        async with connect(server) as client:
            return await work(client)

    return asyncio.run(with_help(connected()))


def connect(server: str | None, patience_s: float = PATIENCE_S) -> Client:
    """Return a client, to be entered. Nothing is connected yet."""
    from stepflow.client import Client

    return Client(server or DEFAULT_SERVER, tls=tls_from_environment(), patience_s=patience_s)


async def with_help(work: Awaitable[_T]) -> _T:
    """Await; say how to come by a mesh when there is none."""
    from stepflow.errors import Unavailable

    try:
        return await work
    except Unavailable as error:
        if error.reason != "SERVER_UNAVAILABLE":
            raise
        where, way = error.details.get("servers", DEFAULT_SERVER), error.details.get("way", "")
        through = f" {way}" if way else ""
        raise Unavailable(
            error.reason,
            f"no mesh answers at {where}{through}; start one on this machine with `stepflow dev`, or name another one "
            "with --server or STEPFLOW_SERVER",
            servers=where,
        ) from None


def tls_from_environment() -> Tls | None:
    """Return the TLS settings that the environment gives, None for none. Raises: Invalid `TLS_INVALID`."""
    ca, cert, key = (os.environ.get(f"STEPFLOW_TLS_{name}") for name in ("CA", "CERT", "KEY"))
    if not (ca or cert or key):
        return None
    from stepflow.client import Tls

    return Tls(cert=Path(cert) if cert else None, key=Path(key) if key else None, ca=Path(ca) if ca else None)


def server_argument(server: str | None) -> str:
    """Return what people have to add to a command that is to reach the same mesh; empty for the default one."""
    if server is None or server in (DEFAULT_SERVER, os.environ.get("STEPFLOW_SERVER")):
        return ""
    return f" --server {server}"


async def find_run(client: Client, text: str) -> str:
    """Return the id that is or begins with `text`. Raises: NotFound, Invalid (more than one)."""
    from stepflow.errors import Invalid, NotFound

    if len(text) >= UUID_CHARS:
        return text
    newest = first(client.list_runs(page_size=ID_SEARCH_RUNS_MAX), ID_SEARCH_RUNS_MAX)
    found = [run.run_id async for run in newest if text and run.run_id.startswith(text.lower())]
    if len(found) > 1:
        shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
        raise Invalid("RUN_ID_AMBIGUOUS", f"{len(found)} runs begin with {text}: {shown}; give more of the id")
    if not found:
        raise NotFound(
            "RUN_NOT_FOUND",
            f"no run here begins with {text[:80]!r} (the newest {ID_SEARCH_RUNS_MAX:,} were looked at); "
            "`stepflow runs list` shows them",
        )
    return found[0]


async def first(listed: AsyncIterator[_T], number: int) -> AsyncIterator[_T]:
    """Yield at most so many, and ask for no more."""
    if number <= 0:
        return
    async for element in listed:
        yield element
        number -= 1
        if number == 0:
            return


def outcome_of(found: Item | Step) -> Json | Failure | None:
    """Return how an item or a step of a client has ended, as far as it has."""
    from stepflow.codec import Json

    return Json(found.raw) if found.raw else found.failure


async def redactor(client: Client, run: Run) -> Redactor:
    """Return what keeps the secrets of a run out of texts; a mesh shows no inputs, so only the flow's own are known."""
    from stepflow.flow import Redactor, flow_from_tree

    _, document = await client.get_flow(run.flow_id)
    return Redactor(flow_from_tree(document))
