"""A mesh of real processes under load, for tests: submit runs, inject faults, verify every result and journal."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepflow.client import Client
from stepflow.store import keys
from stepflow.store.lease import LEASE_TTL_S

from . import wait_until_async
from .load import KINDS, Asked, begin, faults_in_result
from .mesh import ledger_of
from .truth import Journal, faults_of, read_journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from stepflow.store.etcd.store import EtcdStore

    from .mesh import Processes, Service

WAIT_S = 60.0

OUTAGE_S = LEASE_TTL_S + 1.5
"""Longer than a lease TTL: every lease has expired by then."""


RUN_S = 110.0


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, RUN_S))


@dataclass
class Scene:
    """A mesh with a client, and the runs submitted to it."""

    mesh: Processes
    client: Client
    store: EtcdStore
    asked: list[Asked] = field(default_factory=list)

    async def load(self, runs: int, *, ms: float, kinds: tuple[Any, ...] = KINDS) -> None:
        first = len(self.asked)
        asked = [Asked.new(kinds[number % len(kinds)], number) for number in range(first, first + runs)]
        await asyncio.gather(*(begin(self.client, each, ms=ms) for each in asked))
        self.asked += asked

    async def executions(self, count: int) -> None:
        """Return once `count` executions have started."""
        ledger = ledger_of(self.mesh.folder)
        await wait_until_async(lambda: len(ledger.begun) >= count, f"{count} executions have begun", WAIT_S)

    async def verify(self) -> list[Journal]:
        """Wait for all runs; assert that no result is lost and that no journaled step was executed again."""
        results = [faults_in_result(self.client, asked, timeout_s=WAIT_S) for asked in self.asked]
        faults = [fault for found in await asyncio.gather(*results) for fault in found]
        runs = self.mesh.run_store(self.store)
        journals = [await read_journal(runs, self.mesh.blobs(), asked.run_id) for asked in self.asked]
        executions = ledger_of(self.mesh.folder).by_run()
        for journal in journals:
            faults += faults_of(journal, executions.pop(journal.run_id, []))
        assert executions == {}, "every execution belongs to a run that was asked for"
        assert faults == []
        return journals

    async def owned_by(self, executor: Service) -> set[str]:
        found = await self.store.range(keys.assigned_to(executor.id))
        return {keys.parse_assigned(item.key)[1] for item in found.items}

    async def session_is_gone(self, executor_id: str) -> None:
        session = keys.session_executor(executor_id)
        watch = self.store.watch(session)
        async with asyncio.timeout(WAIT_S):
            while await self.store.get(session) is not None:
                await anext(aiter(watch))
        watch.close()

    async def owners(self, journals: list[Journal]) -> set[str]:
        return {
            adoption.executor_id for journal in journals for each in journal.adoptions.values() for adoption in each
        }


@asynccontextmanager
async def scene(mesh: Processes, *controls: Service) -> AsyncIterator[Scene]:
    addresses = ",".join(control.address for control in controls)
    async with Client(addresses, patience_s=WAIT_S) as client, mesh.store() as store:
        yield Scene(mesh, client, store)


def adoptions_of(journal: Journal) -> list[bool]:
    """Return one flag per owner of a run, in order: True if the run was handed over to it."""
    return [adoption.handed_over for adoption in journal.adoptions[0]]


__all__ = ["OUTAGE_S", "WAIT_S", "Scene", "adoptions_of", "run", "scene"]
