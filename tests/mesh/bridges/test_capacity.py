"""Capacity comes back although components never return: behind the host, with real servers and real timeouts."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import uvloop
from support import ROOT, is_alive, wait_until_async
from support.host_side import context
from support.scripted_host import ExecutorEnd, error_of

from component_host.host import ComponentHost
from component_host.stepflow_bridge import retirement
from component_host.stepflow_bridge.http.backend import HttpServerConfig, StepflowHttpBackend
from component_host.stepflow_bridge.pull.backend import PullConfig, StepflowPullBackend
from component_host.stepflow_bridge.stdio.backend import StdioServerConfig, StepflowStdioBackend
from stepflow.store.blobs import BlobStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from component_host.backend import Backend

SERVER = str(ROOT / "tests" / "data" / "servers" / "stuck.py")
LONG_S = 3_600.0
STUCK_S = 60.0
"""Bound of a wait for a server that is restarted on a busy machine."""


def over_stdio(*args: str, **config: Any) -> StepflowStdioBackend:
    started = StdioServerConfig(command=sys.executable, args=[SERVER, *args], env={"PYTHONPATH": str(ROOT)}, **config)
    return StepflowStdioBackend(context(), started)


def over_http(**config: Any) -> StepflowHttpBackend:
    started = HttpServerConfig(command=sys.executable, args=[SERVER, "--http"], env={"PYTHONPATH": str(ROOT)}, **config)
    return StepflowHttpBackend(context(), started)


def over_pull(*args: str, **config: Any) -> StepflowPullBackend:
    started = PullConfig(
        queue_name="kit",
        command=sys.executable,
        args=[SERVER, *args],
        env={"PYTHONPATH": str(ROOT)},
        concurrency=100,
        **config,
    )
    return StepflowPullBackend(context(), started)


BOTH = pytest.mark.parametrize("make", [over_stdio, over_http])
ALL = pytest.mark.parametrize("make", [over_stdio, over_http, over_pull])
OLD = pytest.mark.parametrize("make", [over_stdio, over_pull])


@asynccontextmanager
async def hosting(backend: Backend) -> AsyncIterator[ExecutorEnd]:
    host = ComponentHost("h1", {"kit": backend}, BlobStore.open("memory://"))
    await host.start()
    try:
        yield ExecutorEnd(host)
    finally:
        await host.close()


class Steps:
    """Calls of one executor, each of a step of its own."""

    def __init__(self, executor: ExecutorEnd) -> None:
        self.executor = executor
        self.count = 0

    def call(self, component: str, timeout_ms: int = 0, **input: Any) -> int:
        self.count += 1
        return self.executor.call(
            f"s{self.count}", f"/{component}", json=msgspec.json.encode(input), timeout_ms=timeout_ms
        )

    async def output(self, call_id: int) -> Any:
        results = self.executor.results
        await wait_until_async(
            lambda: any(result.call_id == call_id for result in self.executor.results), "a result", STUCK_S
        )
        results = [result for result in self.executor.results if result.call_id == call_id]
        assert results[0].WhichOneof("outcome") == "result", results[0]
        return msgspec.json.decode(results[0].result.json)

    async def failures(self, calls: list[int]) -> set[tuple[str, str]]:
        wanted = set(calls)
        await wait_until_async(
            lambda: wanted <= {result.call_id for result in self.executor.results}, "all have ended", STUCK_S
        )
        return {error_of(result) for result in self.executor.results if result.call_id in wanted}


@ALL
def test_a_quick_call_behind_sixty_that_hang_succeeds_at_its_first_attempt(make: Any) -> None:
    async def test() -> None:
        async with hosting(make()) as executor:
            steps = Steps(executor)
            hanging = [steps.call("hang", 500, seconds=LONG_S) for _ in range(60)]
            quick = steps.call("quick", 500)
            assert isinstance(await steps.output(quick), int)
            assert await steps.failures(hanging) == {("TIMEOUT", "")}

    uvloop.run(test())


@OLD
def test_a_server_that_does_not_tell_who_waits_for_a_thread_is_counted_from_the_hand_over(make: Any) -> None:
    async def test() -> None:
        async with hosting(make("--old")) as executor:
            steps = Steps(executor)
            hanging = [steps.call("hang", 500, seconds=LONG_S) for _ in range(40)]
            assert await steps.failures(hanging) == {("TIMEOUT", "")}
            assert isinstance(await steps.output(steps.call("quick", 20_000)), int)

    uvloop.run(test())


@BOTH
def test_a_server_full_of_abandoned_calls_is_started_again_once_its_live_call_has_ended(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retirement, "ABANDONED_S", 0.1)
    monkeypatch.setattr(retirement, "LIVE_S", LONG_S)

    async def test() -> None:
        backend = make()
        async with hosting(backend) as executor:
            steps = Steps(executor)
            first = await steps.output(steps.call("quick"))
            live = steps.call("wait_for_file", path=str(tmp_path / "go"))
            hanging = [steps.call("hang", 200, seconds=LONG_S) for _ in range(retirement.ABANDONED_MAX)]
            assert await steps.failures(hanging) == {("TIMEOUT", "")}

            # Retired: further calls wait, also longer than their timeout, and the live one goes on.
            await wait_until_async(lambda: "32 calls" in backend.health.last_error, "the server is retired", STUCK_S)
            waiting = steps.call("quick", 10_000)
            assert is_alive(first)
            (tmp_path / "go").touch()
            assert await steps.output(live) == "found"

            # Started again.
            assert await steps.output(waiting) != first
            await wait_until_async(lambda: not is_alive(first), "the former process is gone", STUCK_S)
            assert backend.health.restarts == 1

    uvloop.run(test())


def test_a_live_call_delays_the_restart_of_a_stuck_server_only_for_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retirement, "ABANDONED_S", 0.1)
    monkeypatch.setattr(retirement, "LIVE_S", 0.5)

    async def test() -> None:
        async with hosting(over_stdio(concurrency=4)) as executor:
            steps = Steps(executor)
            first = await steps.output(steps.call("quick"))
            live = steps.call("hang", seconds=LONG_S)
            hanging = [steps.call("hang", 200, seconds=LONG_S) for _ in range(2)]
            assert await steps.failures(hanging) == {("TIMEOUT", "")}
            assert await steps.failures([live]) == {("UNREACHABLE", "")}
            assert await steps.output(steps.call("quick")) != first

    uvloop.run(test())


def test_another_process_takes_the_load_while_a_stuck_one_is_retired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retirement, "ABANDONED_S", 0.1)
    monkeypatch.setattr(retirement, "LIVE_S", LONG_S)

    async def test() -> None:
        backend = over_stdio(concurrency=2, processes=2)
        async with hosting(backend) as executor:
            steps = Steps(executor)
            live = [steps.call("wait_for_file", path=str(tmp_path / "go")) for _ in range(2)]  # one in each process
            assert await steps.failures([steps.call("hang", 200, seconds=LONG_S)]) == {("TIMEOUT", "")}
            await wait_until_async(lambda: backend.health.last_error, "one is retired", STUCK_S)
            assert isinstance(await steps.output(steps.call("quick", 10_000)), int)
            (tmp_path / "go").touch()
            assert [await steps.output(call) for call in live] == ["found"] * 2
            await wait_until_async(lambda: backend.health.restarts == 1, "it was started again", STUCK_S)

    uvloop.run(test())


def test_the_slots_of_a_remote_server_come_back_although_its_components_never_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retirement, "ABANDONED_S", 0.1)

    async def test() -> None:
        there = over_http()
        await there.start()
        try:
            url = str(there._http_servers[0]._connection.endpoint._url)  # type: ignore[union-attr]  # it has started
            remote = StepflowHttpBackend(context(), HttpServerConfig(url=url, concurrency=2))
            async with hosting(remote) as executor:
                steps = Steps(executor)
                hanging = [steps.call("hang", 200, seconds=LONG_S) for _ in range(2)]
                assert await steps.failures(hanging) == {("TIMEOUT", "")}
                assert isinstance(await steps.output(steps.call("quick")), int)
        finally:
            await there.close()

    uvloop.run(test())
