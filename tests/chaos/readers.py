"""Readers of ended runs, while everything else breaks: each answer is complete, or says that nothing answers now.

A reader takes a random ended run, live in the store, lingering or packed, and reads it through a random control plane:
the run, its items, its steps, and its events from the beginning. The first answers are compared with what the flow
must give and with the journal, which the judge compares with the ledger; all later answers with the first ones. Some
runs are deleted, and are then found never again.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from support.load import answers, faults_in_result

from stepflow.client import Client
from stepflow.errors import DeadlineExceeded, NotFound, StepflowError, Unavailable
from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.fleet import Fleet
    from support.load import Asked
    from support.truth import Journal

    from stepflow.store import Store

READERS = 3
PATIENCE_S = 5.0
"""Of a reader's client: short, so that other control planes are asked, too."""

PAUSE_S = 0.05
RETRY_S = 0.2
DELETED_SHARE = 0.02


@dataclass
class EndedRun:
    """A run whose user has seen its end."""

    asked: Asked
    cancelled: bool
    journal: Journal
    answers: dict[str, Any] | None = None
    """As read first."""


class Readers:
    """Read and delete ended runs from `start` to `stop`. Each run has one reader at a time."""

    def __init__(self, fleet: Fleet, store: Store, seed: int, say: Callable[[str], None]) -> None:
        """`store`: as the mesh sees it, without packed runs."""
        self.wrong: list[str] = []
        """Answers that differ from what they must be."""
        self.counts: Counter[str] = Counter()
        """Of readings: `read`, of them `packed`; `unavailable`; and `deleted` runs."""
        self.deleted: list[str] = []
        self._runs: list[EndedRun] = []
        self._fleet = fleet
        self._store = store
        self._seed = seed
        self._say = say
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, run: EndedRun) -> None:
        self._runs.append(run)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._reader(number)) for number in range(READERS)]

    async def stop(self) -> None:
        """End after the readings that are under way."""
        self._over = True
        await asyncio.gather(*self._tasks)

    async def read_all(self) -> None:
        """Read every run that is left once more, and look for each deleted one; all of it must answer now."""
        left = list(self._runs)

        async def read(client: Client) -> None:
            while left:
                run = left.pop()
                if not await self._read(run, client) and not await self._read(run, client):
                    self._note(f"{run.asked.run_id} cannot be read although nothing is broken any more")

        async with AsyncExitStack() as stack:
            clients = await self._clients(stack)
            await asyncio.gather(*(read(client) for client in clients for _ in range(READERS)))
            for number, run_id in enumerate(self.deleted):
                await self._find_nothing(run_id, clients[number % len(clients)])

    @property
    def summary(self) -> str:
        return "readings: " + ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))

    async def _clients(self, stack: AsyncExitStack) -> list[Client]:
        slots = self._fleet.of("control_plane")
        clients = [Client(slot.front.endpoint, patience_s=PATIENCE_S) for slot in slots]
        return [await stack.enter_async_context(client) for client in clients]

    async def _reader(self, number: int) -> None:
        dice = random.Random(f"{self._seed} reader {number}")
        async with AsyncExitStack() as stack:
            clients = await self._clients(stack)
            while not self._over:
                await asyncio.sleep(PAUSE_S)
                if not self._runs or self._fleet.users_away.is_set():
                    continue

                run = self._runs.pop(dice.randrange(len(self._runs)))
                try:
                    gone = await self._visit(run, clients, dice)
                except StepflowError as error:  # the store of the campaign itself does not answer
                    gone = False
                    self.counts[f"campaign: {error.reason}"] += 1
                if not gone:
                    self._runs.append(run)

    async def _visit(self, run: EndedRun, clients: list[Client], dice: random.Random) -> bool:
        """Read a run, and perhaps delete it; return True if it is deleted."""
        client = dice.choice(clients)
        if await self._read(run, client) and dice.random() < DELETED_SHARE:
            await self._delete(run.asked.run_id, client)
            await self._find_nothing(run.asked.run_id, dice.choice(clients))
            return True
        if self.deleted and dice.random() < DELETED_SHARE:
            await self._find_nothing(dice.choice(self.deleted), client)
        return False

    async def _read(self, run: EndedRun, client: Client) -> bool:
        """Read a run and compare; return False if nothing answered in time."""
        run_id = run.asked.run_id
        name = f"{run.asked.kind.name} {run_id}"
        try:
            faults = await faults_in_result(client, run.asked, timeout_s=1, cancelled=run.cancelled)
            found = await answers(client, run_id)
        except (Unavailable, DeadlineExceeded):
            self.counts["unavailable"] += 1
            await asyncio.sleep(RETRY_S)
            return False
        except StepflowError as error:
            self._note(f"{name} is unreadable: {error.reason}: {error.message}")
            return True

        if run.answers is None:
            run.answers = found
            faults += faults_of_steps(name, run.journal, found)
        faults += [
            f"{name}: {part} is {found[part]!r:.600}, was {first!r:.600}"
            for part, first in run.answers.items()
            if found[part] != first
        ]
        for fault in faults:
            self._note(fault)
        self.counts["read"] += 1
        self.counts["packed"] += await self._store.get(keys.run(run_id)) is None
        return True

    async def _delete(self, run_id: str, client: Client) -> None:
        while True:
            try:
                await client.delete(run_id)
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(RETRY_S)
                continue
            except NotFound:
                pass  # an earlier try was carried out
            except StepflowError as error:
                self._note(f"{run_id} cannot be deleted: {error.reason}: {error.message}")
            break
        self.counts["deleted"] += 1
        self.deleted.append(run_id)

    async def _find_nothing(self, run_id: str, client: Client) -> None:
        try:
            found = await client.get(run_id)
        except NotFound:
            return
        except (Unavailable, DeadlineExceeded):
            return
        self._note(f"{run_id} was deleted, and is {found.status}")

    def _note(self, fault: str) -> None:
        self.wrong.append(fault)
        self._say(f"WRONG: {fault}")


def faults_of_steps(name: str, journal: Journal, found: dict[str, Any]) -> list[str]:
    """Compare the first answers with the journal: each step that it completed is there."""
    steps = [step for step in found["steps"] if step.status in ("completed", "failed")]
    faults: list[str] = []
    if len(steps) != len(journal.completed):
        faults.append(f"{name} lists {len(steps)} ended steps; its journal has {len(journal.completed)}")
    if found["events"][-1].kind != "run_ended":
        faults.append(f"{name}: its events end with {found['events'][-1].kind}")
    return faults


__all__ = ["EndedRun", "Readers"]
