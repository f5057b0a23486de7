"""Servers on stdio that read more slowly than they are sent: what does not fit the pipe waits."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import uvloop
from support.host_side import Call, MemoryBlobs, started

from component_host.supervision import pipes
from component_host.supervision.pipes import OUTGOING_BYTES_MAX, StdinWriter
from stepflow.errors import Code, Failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from component_host.stepflow_bridge.stdio.backend import StepflowStdioBackend

    Backends = Callable[..., StepflowStdioBackend]

BIG = 6_000_000
CALLS = 24


def most_outgoing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list with the most bytes that ever waited for a server."""
    most = [0]
    write = StdinWriter.write

    def measured(self: StdinWriter, line: bytes) -> None:
        write(self, line)
        most[0] = max(most[0], self.outgoing_bytes)

    monkeypatch.setattr(StdinWriter, "write", measured)
    return most


def test_calls_that_do_not_fit_the_pipe_wait_and_later_small_ones_follow(
    own: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = most_outgoing(monkeypatch)

    async def test() -> None:
        async with started(own()) as backend:
            calls = [Call("/files/{*rest}", {"value": "x" * BIG}, path_params={"rest": "a"}) for _ in range(CALLS)]
            calls.append(Call("/picky", {"number": 7}))
            for call in calls:
                backend.execute(call)
            assert most[0] <= OUTGOING_BYTES_MAX + BIG + 1_000
            outcomes = await asyncio.gather(*(call.outcome(60) for call in calls))
            assert [
                outcome if isinstance(outcome, (int, Failure)) else len(outcome["value"]) for outcome in outcomes
            ] == [
                *(CALLS * [BIG]),
                7,
            ]
            assert most[0] <= OUTGOING_BYTES_MAX + BIG + 1_000

    uvloop.run(test())


def test_replies_that_do_not_fit_the_pipe_wait(own: Backends, monkeypatch: pytest.MonkeyPatch) -> None:
    most = most_outgoing(monkeypatch)

    async def test() -> None:
        blobs = MemoryBlobs()
        blob_id = await blobs.put(json.dumps("x" * BIG).encode())
        async with started(own()) as backend:
            calls = [Call("/kept", {"blob_id": blob_id}, blobs=blobs) for _ in range(CALLS)]
            for call in calls:
                backend.execute(call)
            assert await asyncio.gather(*(call.outcome(60) for call in calls)) == CALLS * [BIG]
            assert most[0] <= OUTGOING_BYTES_MAX + BIG + 20_000

    uvloop.run(test())


def test_a_server_that_reads_nothing_for_long_is_ended_and_the_waiting_calls_go_on(
    rude: Backends, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipes, "UNREAD_S_MAX", 0.3)

    async def test() -> None:
        async with started(rude("stops_reading", str(tmp_path / "stopped"))) as backend:
            calls = [Call("/it", "x" * BIG) for _ in range(8)]
            for call in calls:
                backend.execute(call)
            outcomes = await asyncio.gather(*(call.outcome() for call in calls))
            failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
            assert 1 <= len(failed) <= 5  # those in the pipe
            assert {failure.code for failure in failed} == {Code.UNREACHABLE}
            assert [outcome for outcome in outcomes if not isinstance(outcome, Failure)] == (8 - len(failed)) * [BIG]

    uvloop.run(test())
