"""Connecting to a mesh: address and TLS settings, a connection per command, the error when no server answers."""

from __future__ import annotations

import os
import shlex
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stepflow.cli.options import DEFAULT_SERVER
from stepflow.cli.target import mesh_option
from stepflow.codec import Json, LargeJson

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from stepflow.cli.output import Numbered, Outcomes
    from stepflow.client import Client, Run, RunItem, RunStep, Tls
    from stepflow.errors import Failure
    from stepflow.flow import Redactor

PATIENCE_S = 2.0
"""How long a command tries to reach a server; short, because a person waits at the terminal."""

FOLLOW_PATIENCE_S = 60.0
"""The same for commands that follow a run, once a server has answered: control planes restart during a long run."""

ID_SEARCH_RUNS_MAX = 1_000
"""A prefix of an id is searched among this many of the newest runs."""

ITEMS_PER_PAGE = 1_000
"""Items of a batch read with one call, if small; the server ends a page of large results earlier."""

UUID_CHARS = 36

CANCEL_WAIT_S = 10.0
"""How long a command waits for a cancelled run to end."""

_T = TypeVar("_T")


def ask(server: str | None, work: Callable[[Client], Awaitable[_T]]) -> _T:
    """Connect, do the work, and return the result.

    Raises: Unavailable `SERVER_UNAVAILABLE`, with the next step (start or name a mesh); the errors of `work`.
    """
    import asyncio

    async def connected() -> _T:
        async with connect(server) as client:
            return await work(client)

    return asyncio.run(with_help(connected()))


def connect(server: str | None, patience_s: float = PATIENCE_S) -> Client:
    """Return a client to enter (`async with`). Nothing is connected yet."""
    from stepflow.client import Client

    return Client(server or DEFAULT_SERVER, tls=tls_from_environment(), patience_s=patience_s)


async def with_help(work: Awaitable[_T]) -> _T:
    """Await the work; if no server answers, add to the error how to start or name a mesh."""
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
    """Return the TLS settings of the environment, None without any. Raises: Invalid `TLS_INVALID`."""
    ca, cert, key = (os.environ.get(f"STEPFLOW_TLS_{name}") for name in ("CA", "CERT", "KEY"))
    if not (ca or cert or key):
        return None
    from stepflow.client import Tls

    return Tls(cert=Path(cert) if cert else None, key=Path(key) if key else None, ca=Path(ca) if ca else None)


def server_argument(server: str | None) -> str:
    """Return the `--server` option of a suggested command, empty if the command reaches the mesh without."""
    return mesh_option(server or DEFAULT_SERVER)


def results_command(server: str | None, run_id: str) -> str:
    """Return the command that prints the stored results of a run."""
    # With --server always: without it the command may look in a folder.
    return f"stepflow runs show {run_id} --result --server {shlex.quote(server or DEFAULT_SERVER)}"


async def find_run(client: Client, text: str, server: str) -> str:
    """Return the id of the run that RUN names, in the mesh at `server`. Raises: NotFound, Invalid (ambiguous)."""
    from stepflow.errors import NotFound
    from stepflow.ids import LAST, is_named, only_one

    if len(text) >= UUID_CHARS:
        return text
    if text == LAST:
        found = [run.run_id async for run in first(client.list_runs(page_size=1), 1)]
    else:
        newest = first(client.list_runs(page_size=ID_SEARCH_RUNS_MAX), ID_SEARCH_RUNS_MAX)
        found = [run.run_id async for run in newest if is_named(run.run_id, text)]
    if found:
        return only_one(found, len(found), text)

    what = "no run" if text == LAST else f"no run whose id begins or ends with {text[:80]!r}"
    searched = "" if text == LAST else f" (the newest {ID_SEARCH_RUNS_MAX:,} were searched)"
    hint = f"`stepflow runs list --server {shlex.quote(server)}` shows its runs"
    raise NotFound("RUN_NOT_FOUND", f"the mesh at {server} has {what}{searched}; {hint}")


async def first(listed: AsyncIterator[_T], number: int) -> AsyncIterator[_T]:
    """Yield at most `number` elements, and request no more."""
    if number <= 0:
        return
    async for element in listed:
        yield element
        number -= 1
        if number == 0:
            return


async def outcomes(server: str | None, run_id: str, first: int = 0) -> Outcomes:
    """Yield the outcomes of the items of an ended run from `first` on, over a connection of its own."""
    async with connect(server, FOLLOW_PATIENCE_S) as client, aclosing(numbered(client, run_id, first)) as items:
        async for _, outcome in items:
            yield outcome


async def numbered(client: Client, run_id: str, first: int) -> Numbered:
    """Yield the items of a run from `first` on, with their outcomes; None of an item that has not ended."""
    from functools import partial

    from stepflow.cli.output import LargeOutcome

    async for item in client.items(run_id, page_size=ITEMS_PER_PAGE, first=first):
        outcome = outcome_of(item)
        if isinstance(outcome, LargeJson):
            yield item.item, LargeOutcome(outcome.text_bytes, partial(client.get_result, run_id, item.item))
        else:
            yield item.item, outcome


async def one_result(server: str | None, run_id: str, item: int) -> Outcomes:
    """Yield the result of an item, over a connection of its own."""
    from functools import partial

    from stepflow.cli.output import LargeOutcome

    async with connect(server, FOLLOW_PATIENCE_S) as client:
        yield LargeOutcome(0, partial(client.get_result, run_id, item))


def outcome_of(found: RunItem | RunStep) -> Json | Failure | LargeJson | None:
    """Return the outcome of an item or step of a client, None before the end."""
    if found.result_bytes:
        return LargeJson(found.result_bytes)
    return Json(found.raw) if found.raw else found.failure


async def redactor(client: Client, run: Run) -> Redactor:
    """Return the redactor of a run. A mesh shows no inputs, so only the secrets in the flow are known."""
    from stepflow.flow import Redactor, flow_from_tree

    _, document = await client.get_flow(run.flow_id)
    return Redactor(flow_from_tree(document))
