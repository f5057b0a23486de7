"""The health of a process: what the service says of itself, and what the store says."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from support import wait_for_value, wait_until_async

from stepflow.rpc import health
from stepflow.rpc.health import LIVENESS, READINESS, ProcessHealth
from stepflow.store.sqlite.store import SqliteStore
from stepflow.vital import Vitals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

NOT_SERVING, SERVING = "NOT_SERVING", "SERVING"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "STORE_CHECK_S", 0.01)


async def told(process: ProcessHealth, name: str) -> str:
    servicer: Any = process._servicer
    reply = await servicer.Check(health_pb2.HealthCheckRequest(service=name), None)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


@asynccontextmanager
async def process_with(vitals: Callable[[], Vitals]) -> AsyncIterator[ProcessHealth]:
    process = ProcessHealth()
    process.add_to(grpc.aio.server(), [])
    store = await SqliteStore.open(":memory:")
    await process.open()
    await process.begin(store, vitals=vitals)
    try:
        yield process
    finally:
        await process.close()
        await store.close()


async def until(process: ProcessHealth, name: str, status: str) -> None:
    await wait_for_value(lambda: told(process, name), f"{name} is {status}", lambda now: now == status)


def test_a_service_that_cannot_work_is_not_ready_until_it_can_and_stays_alive() -> None:
    async def scenario() -> None:
        problem = [""]
        async with process_with(lambda: Vitals(problem[0])) as process:
            assert await told(process, READINESS) == SERVING
            problem[0] = "no session"
            await until(process, READINESS, NOT_SERVING)
            assert await told(process, LIVENESS) == SERVING
            problem[0] = ""
            await until(process, READINESS, SERVING)

    asyncio.run(scenario())


def test_a_service_whose_vital_task_has_ended_is_not_alive() -> None:
    async def scenario() -> None:
        ended: list[str] = []
        async with process_with(lambda: Vitals(ended=ended)) as process:
            assert await told(process, LIVENESS) == SERVING
            ended.append("watch assignments")
            await until(process, LIVENESS, NOT_SERVING)
            await until(process, READINESS, NOT_SERVING)

    asyncio.run(scenario())


def test_the_check_outlives_a_defect_in_what_it_asks() -> None:
    async def scenario() -> None:
        asked = 0

        def vitals() -> Vitals:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise RuntimeError("a defect")
            return Vitals("no session")

        async with process_with(vitals) as process:
            await until(process, READINESS, NOT_SERVING)
            await wait_until_async(lambda: asked > 3, "the check goes on")

    asyncio.run(scenario())
