"""Restarts of servers after every kind of failed start."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from component_host.backend import ServerHealth
from component_host.supervision import restarts
from stepflow import vital

if TYPE_CHECKING:
    import pytest


class Server:
    """A server that ends at once; the first starts raise `failures`."""

    stopping = False
    exit_reason = "ended"

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.up = asyncio.Event()
        self.ends = 1

    def stderr_tail(self) -> str:
        return ""

    async def start(self) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.up.set()

    async def ended(self) -> None:
        if not self.ends:
            await asyncio.Event().wait()
        self.ends -= 1


def test_a_server_is_started_again_although_the_system_had_no_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error used to end the supervisor: the server stayed down, and its calls waited without end."""
    monkeypatch.setattr(restarts, "BACKOFF_S_MIN", 0.001)

    async def main() -> None:
        health = ServerHealth(lambda: None)
        server = Server(OSError(24, "Too many open files"), RuntimeError("can't start new thread"))
        hopeless: list[str] = []
        keeping = asyncio.create_task(
            restarts.supervise(
                server,
                health,
                plugin="p",
                on_up=lambda: None,
                on_hopeless=lambda error: hopeless.append(error.message),
            )
        )
        async with asyncio.timeout(10):
            await server.up.wait()
        keeping.cancel()
        assert health.last_error == "the server could not be started: RuntimeError"
        assert hopeless == []

    asyncio.run(main())


def test_a_defect_in_what_is_told_of_a_restart_does_not_end_the_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "BACKOFF_S_MIN", 0.001)
    monkeypatch.setattr(vital, "RESTART_S_MIN", 0.001)

    async def main() -> None:
        server, told = Server(), asyncio.Event()
        server.ends = 2

        def on_up() -> None:
            if not server.ends:
                told.set()
            raise RuntimeError("a defect")

        keeping = asyncio.create_task(
            restarts.supervise(
                server, ServerHealth(lambda: None), plugin="p", on_up=on_up, on_hopeless=lambda _error: None
            )
        )
        async with asyncio.timeout(10):
            await told.wait()
        assert not keeping.done()
        keeping.cancel()

    asyncio.run(main())
