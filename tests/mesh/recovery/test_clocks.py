"""Wall clocks that are set while runs wait, and services whose clocks differ."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from support.load import chain
from support.mesh import Processes, ledger_config, processes
from support.scene import WAIT_S, run
from support.wall_clock import HOUR_MS, WallClock

from stepflow.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.etcd import EtcdServer

NAP_MS = 1_500

SLEEP = {"id": "w", "component": "/builtin/sleep", "input": {"duration_ms": NAP_MS}}
SIGNAL = {"id": "w", "component": "/builtin/wait_for_signal", "input": {"name": "go", "timeout_ms": NAP_MS}}
BACK_OFF = {
    "id": "w",
    "component": "/ledger/flaky",
    "input": {"value": 1, "failures": 1},
    "onError": {
        "action": "retry",
        "maxRetries": 1,
        "backoff": {"type": "constant", "delayMs": NAP_MS},
    },
}


@pytest.fixture
def mesh(etcd: EtcdServer, tmp_path: Path) -> Iterator[Processes]:
    with processes(etcd, tmp_path, f"{uuid4().hex[:12]}/") as mesh:
        yield mesh


def flow_of(step: dict[str, Any]) -> dict[str, Any]:
    return {"schema": "https://stepflow.org/schemas/v1/flow.json", "steps": [step], "output": {"$step": "w"}}


async def begin_wait(client: Client, step: dict[str, Any]) -> str:
    """Submit a run, and return its id once its step waits."""
    run_id = await client.submit(flow_of(step), {})
    async with asyncio.timeout(WAIT_S):
        async for event in client.watch(run_id):
            if event.kind in ("step_sleeping", "step_waiting", "step_retrying"):
                return run_id
    raise AssertionError("the step never waits")


async def ends_in_time(client: Client, run_id: str, *, skew_ms: int = 0) -> None:
    """`skew_ms`: how far the clock of the last owner is ahead of that of the first."""
    ended = await client.wait(run_id, timeout_s=WAIT_S)
    assert ended.ended, "the wait lasts as long as the clock was set back"
    for step in [step async for step in client.steps(run_id)]:
        assert step.duration_ms is not None
        assert 0 <= step.duration_ms - max(0, skew_ms) < HOUR_MS / 2, "as exact as the clocks of its owners"


@pytest.mark.parametrize("step", [SLEEP, SIGNAL, BACK_OFF], ids=["sleep", "signal", "back-off"])
def test_a_wait_ends_in_time_although_the_clock_of_its_executor_is_set_back_an_hour(
    mesh: Processes, tmp_path: Path, step: dict[str, Any]
) -> None:
    clock = WallClock(tmp_path)
    mesh.host(ledger_config(tmp_path), env=clock.env)
    mesh.executor(env=clock.env)
    control = mesh.control_plane()

    async def scenario() -> None:
        async with Client(control.address) as client:
            run_id = await begin_wait(client, step)
            clock.set(-HOUR_MS)
            await ends_in_time(client, run_id)

    run(scenario())


@pytest.mark.parametrize(
    ("first_ms", "second_ms"),
    [(0, -HOUR_MS), (HOUR_MS, 0), (-HOUR_MS, 0)],
    ids=["the next owner lags", "the first owner was ahead", "the next owner is ahead"],
)
def test_a_wait_ends_in_time_after_a_take_over_between_owners_whose_clocks_differ(
    mesh: Processes, tmp_path: Path, first_ms: int, second_ms: int
) -> None:
    mesh.host(ledger_config(tmp_path))
    first = mesh.executor(env=WallClock(tmp_path, "first", ahead_ms=first_ms).env)
    control = mesh.control_plane()

    async def scenario() -> None:
        async with Client(control.address) as client:
            run_id = await begin_wait(client, SLEEP)
            first.kill()
            await asyncio.to_thread(mesh.executor, env=WallClock(tmp_path, "second", ahead_ms=second_ms).env)
            await ends_in_time(client, run_id, skew_ms=second_ms - first_ms)

    run(scenario())


@pytest.mark.parametrize("ahead_ms", [HOUR_MS, -HOUR_MS])
def test_durations_are_right_although_the_clock_of_the_host_is_an_hour_off(
    mesh: Processes, tmp_path: Path, ahead_ms: int
) -> None:
    mesh.host(ledger_config(tmp_path), env=WallClock(tmp_path, ahead_ms=ahead_ms).env)
    mesh.executor()
    control = mesh.control_plane()

    async def scenario() -> None:
        async with Client(control.address) as client:
            run_id = await client.submit(chain(2).flow, {"value": 1, "ms": 50})
            await ends_in_time(client, run_id)
            steps = [step async for step in client.steps(run_id)]
            assert all(step.duration_ms is not None and step.duration_ms >= 50 for step in steps)
            ended = [event async for event in client.watch(run_id) if event.kind == "step_completed"]
            assert [event.duration_ms for event in ended] == [step.duration_ms for step in steps]

    run(scenario())
