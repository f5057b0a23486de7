"""A long campaign of faults against a mesh under load: `make chaos MINUTES=10 SEED=7`.

The seed determines the load and the faults: their targets, order and durations; their exact timing depends on the
machine. Concurrently, users run flows of every kind and compare the results; ended runs are packed into segments a
second later, and readers read them all the time. At the end every fault is healed, every run must end and be packed,
every process must exit on SIGTERM, the journals are compared with the ledger of the component servers, and nothing but
segments and their blobs may be left.

Prints one line with the verdict. If a guarantee was violated, the exit code is 1 and the logs, the ledger and the
journals are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from chaos.faults import ALONE, FAULTS, LONG_S, Stage, disk_of_the_blobs
from chaos.leftovers import keys_of_runs, leftovers, packed_runs
from chaos.readers import EndedRun, Readers
from support import wait_until_async
from support.etcd import EtcdCluster, running_cluster
from support.fleet import Fleet, fleet, processes_of
from support.load import BATCH, KINDS, Asked, begin, faults_in_result, newer
from support.mesh import ledger_of, processes
from support.truth import Journal, faults_of, read_journal

from stepflow.client import Client
from stepflow.errors import DeadlineExceeded, StepflowError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from stepflow.store import Store

USERS = 24
CONTROLS, EXECUTORS, HOSTS, NEWER_HOSTS, MEMBERS = 2, 3, 2, 1, 3
LATE_S = 15.0
"""After that long, each run that is left is named."""

FACTS_TOLD = 4

CALM_S = 120.0
"""How long a run may take once everything is healed."""

END_S = 15.0
"""How long what a killed process has started may live on."""

PACKED_S = 60.0
"""How long after the last run until all are packed."""

LINGER_S = 1.0
"""Ended runs stay in the store this long."""

OUTAGE_SHARE = 0.1
OUTAGE_S_MAX = 60.0
"""An outage of the blob store takes this part of the campaign, up to a minute."""

PATIENCE_S = 300.0
"""Of a user, while the mesh is down."""

TAKE_OVER_P99_MS = 1_000
PROGRESS_S = 10.0
KINDS_MIN = 10
"""Of faults, below which a campaign proves nothing: two minutes bring about fifteen."""

READ_MIN = 30
"""Of readings of packed runs."""

FAULTS_SHOWN = 20
CALLS_MS = (0, 0, 20, 100, 400, 1_500)
BATCH_ITEMS = (3, 70, 130)
"""One partition, two, three."""

NEWER = newer()
PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"), "http://127.0.0.1:9")
"""In the environment of all processes and of the users: nothing listens there, and no part of a mesh may care."""

CANCEL_SHARE = 0.05
BATCH_SHARE = 0.03


@dataclass
class Tally:
    """What has happened so far."""

    begun: int = 0
    ended: int = 0
    cancelled: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Results that are not what the flow must give."""
    trouble: list[str] = field(default_factory=list)
    """Faults that went otherwise than they must."""
    stuck: int = 0
    late: int = 0
    left: list[str] = field(default_factory=list)
    """What is in the store or the blob store at the end, and must not."""
    packed: tuple[int, int] = (0, 0)
    """Runs and segments at the end."""
    journals: list[Journal] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return sum(len(journal.completed) for journal in self.journals)


class Campaign:
    """One mesh, its users, and what is done to it."""

    def __init__(self, fleet: Fleet, client: Client, store: Store, seed: int, say: Callable[[str], None]) -> None:
        self.tally = Tally()
        self._fleet = fleet
        self._client = client
        self.store = store
        self._runs = fleet.mesh.run_store(store)
        """For journals: those of packed runs, too."""
        self._blobs = fleet.mesh.blobs()
        self._seed = seed
        self._say = say
        self.readers = Readers(fleet, store, seed, say)
        self._over = False
        self._open: dict[str, Asked] = {}
        """Runs whose users wait for them."""
        self._active: Counter[str] = Counter()
        self._exclusive = asyncio.Lock()
        self._begun_at = time.monotonic()

    async def run(self, minutes: float) -> None:
        self.readers.start()
        users = [asyncio.create_task(self._user(number)) for number in range(USERS)]
        progress = asyncio.create_task(self._progress())
        until = time.monotonic() + minutes * 60
        outage_s = max(LONG_S, min(OUTAGE_S_MAX, OUTAGE_SHARE * minutes * 60))
        lanes = [asyncio.create_task(self._lane(number, until, outage_s)) for number in range(2)]
        await asyncio.gather(*lanes)
        self._say("all faults are healed; waiting for the runs that are left")
        self._over = True
        _, late = await asyncio.wait(users, timeout=LATE_S)
        if late:
            await self._tell_late()
        done, left = await asyncio.wait(users, timeout=CALM_S)
        for task in done:
            task.result()
        self.tally.stuck = len(left)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        progress.cancel()
        await asyncio.gather(progress, return_exceptions=True)
        await self._see_packed()

    async def _see_packed(self) -> None:
        """Wait until the last run is packed, and read all of them again."""
        await self.readers.stop()
        deadline = time.monotonic() + PACKED_S
        while (left := await keys_of_runs(self.store)) and time.monotonic() < deadline:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.5)
        self.tally.left += [f"{key} is left in the store" for key in left]
        await self.readers.read_all()
        self.tally.packed = await packed_runs(self.store)

    async def _tell_late(self) -> None:
        """Say of each run that is not over yet what its journal says."""
        self.tally.late = len(self._open)
        for asked in list(self._open.values()):
            journal = await self._patiently(lambda asked=asked: read_journal(self._runs, self._blobs, asked.run_id))
            now_ms = time.time_ns() // 1_000_000
            facts = [
                (each.at_ms, f"adopted by {each.executor_id}")
                for owners in journal.adoptions.values()
                for each in owners
            ]
            facts += [
                (done.at_ms, f"{done.key[37:]} done, attempt {done.attempt}") for done in journal.completed.values()
            ]
            facts += [(lost.at_ms, f"{lost.key[37:]} lost, attempt {lost.attempt}") for lost in journal.failed]
            told = "; ".join(
                f"{what} {(now_ms - at_ms) / 1000:.1f} s ago" for at_ms, what in sorted(facts)[-FACTS_TOLD:]
            )
            self._say(f"late: {asked.kind.name} {asked.run_id}, {journal.ends} ends: {told or 'no journal'}")

    # --- load ---------------------------------------------------------------------------------------------------------

    async def _user(self, number: int) -> None:
        dice = random.Random(f"{self._seed} user {number}")
        while not self._over:
            if self._fleet.users_away.is_set():
                await asyncio.sleep(0.1)
                continue
            value, ms = dice.randrange(1_000_000), dice.choice(CALLS_MS)
            kind, values, cancel_s = dice.choice((*KINDS, NEWER)), [value], None
            if dice.random() < BATCH_SHARE:
                kind, values = BATCH, list(range(value, value + dice.choice(BATCH_ITEMS)))
            elif dice.random() < CANCEL_SHARE:
                cancel_s = dice.uniform(0, 1)
            self.tally.begun += 1
            asked = Asked.new(kind, *values)
            await self._patiently(lambda asked=asked, ms=ms: begin(self._client, asked, ms=ms))
            if cancel_s is not None:
                await asyncio.sleep(cancel_s)
                await self._patiently(lambda asked=asked: self._client.cancel(asked.run_id))
            await self._see_through(asked, cancelled=cancel_s is not None)

    async def _see_through(self, asked: Asked, *, cancelled: bool) -> None:
        """Wait for a run, and compare."""
        self._open[asked.run_id] = asked
        found: list[str] = await self._patiently(
            lambda: faults_in_result(self._client, asked, timeout_s=3600, cancelled=cancelled)
        )
        self.tally.wrong += found
        for text in found:
            self._say(f"WRONG: {text}")
        journal = await self._patiently(lambda: read_journal(self._runs, self._blobs, asked.run_id))
        self.tally.journals.append(journal)
        self.readers.add(EndedRun(asked, cancelled, journal))
        del self._open[asked.run_id]
        self.tally.ended += 1
        self.tally.cancelled += cancelled

    async def _patiently(self, work: Callable[[], Awaitable[object]]) -> object:
        """Do what may be repeated until there is an answer."""
        while True:
            try:
                return await work()
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(0.2)

    # --- faults -------------------------------------------------------------------------------------------------------

    async def _lane(self, number: int, until: float, outage_s: float) -> None:
        """Do one fault after the other. Two lanes make pairs of faults meet."""
        dice = random.Random(f"{self._seed} lane {number}")
        bag: list[str] = []
        while time.monotonic() < until:
            if not bag:
                bag = sorted(FAULTS) + sorted(ALONE)
                dice.shuffle(bag)
            await asyncio.sleep(dice.uniform(0.2, 4.0))
            name = bag.pop()
            stage = Stage(self._fleet, self.store, random.Random(dice.random()), outage_s)
            if name in ALONE:
                async with self._exclusive:
                    while self._active:  # noqa: ASYNC110  # a fault of the other lane is under way
                        await asyncio.sleep(0.1)
                    await self._do(name, stage)
            else:
                async with self._exclusive:  # not begun while something happens that wants to be alone
                    pass
                await self._do(name, stage)

    async def _do(self, name: str, stage: Stage) -> None:
        self._active[name] += 1
        try:
            if await FAULTS[name](stage):
                self.tally.faults[name] += 1
        except StepflowError:
            pass  # what it wanted to know was not to be had: the store is down just now
        except AssertionError as error:
            self.tally.trouble.append(f"{name}: {error}")
            self._say(f"WRONG: {self.tally.trouble[-1]}")
        finally:
            self._active[name] -= 1
            self._active += Counter()  # without those that are over

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            tally, now = self.tally, "; ".join(self._active) or "calm"
            faults, read = sum(tally.faults.values()), self.readers.counts["read"]
            self._say(f"{tally.ended} runs, {tally.steps} steps, {faults} faults, {read} readings; now: {now}")


def take_overs_ms(fleet: Fleet, journals: Sequence[Journal]) -> list[int]:
    """Return how long after the kill of its executor each run had another one, where nothing else was wrong."""
    killed = {kill.executor_id: kill.at_ms for kill in fleet.kills}
    return sorted(
        later.at_ms - killed[former.executor_id]
        for journal in journals
        for owners in journal.adoptions.values()
        for former, later in pairwise(owners)
        if former.executor_id in killed
    )


def percentile(values: Sequence[int], share: float) -> int:
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0


async def campaign(folder: Path, minutes: float, seed: int, say: Callable[[str], None]) -> list[str]:
    """Run it and return what is wrong; the verdict is said. SIGTERM and Ctrl-C break it off and leave no process."""
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    with (
        running_cluster(folder / "etcd", members=MEMBERS) as members,
        processes(EtcdCluster(members), folder, "chaos/") as mesh,
    ):
        os.environ |= PROXIES
        disk_of_the_blobs(folder)
        async with (
            fleet(
                mesh,
                members,
                controls=CONTROLS,
                executors=EXECUTORS,
                hosts=HOSTS,
                newer_hosts=NEWER_HOSTS,
                control_args=("--linger", str(LINGER_S)),
            ) as there,
            Client(there.controls, patience_s=PATIENCE_S) as client,
            mesh.store() as store,
        ):
            say(f"{len(there.slots)} processes and {MEMBERS} members of etcd are there; {USERS} users begin")
            work = Campaign(there, client, store, seed, say)
            await work.run(minutes)
            return await judge(there, work, folder, say)


async def judge(fleet: Fleet, work: Campaign, folder: Path, say: Callable[[str], None]) -> list[str]:
    """Hold everything against everything, and say the verdict."""
    tally, readers = work.tally, work.readers
    ends = fleet.died() + await fleet.end_all()
    etcds = {member.process.pid for member in fleet.members if member.process}
    with suppress(AssertionError):  # those that are left are told below
        await wait_until_async(lambda: not set(processes_of(folder)) - etcds, "all processes have ended", END_S)
    leaked = sorted(set(processes_of(folder)) - etcds)
    kept = {journal.run_id for journal in tally.journals} - set(readers.deleted)
    tally.left += await leftovers(work.store, fleet.mesh.blobs(), folder / "blobs", kept)
    executions = ledger_of(folder).by_run()
    again = [fault for journal in tally.journals for fault in faults_of(journal, executions.get(journal.run_id, []))]
    moved = take_overs_ms(fleet, tally.journals)
    p50, p99 = percentile(moved, 0.5), percentile(moved, 0.99)
    wrong = [
        *tally.wrong,
        *tally.trouble,
        *readers.wrong,
        *tally.left,
        *again,
        *ends,
        *(f"process {pid} is left" for pid in leaked),
    ]
    if tally.stuck:
        wrong.append(f"{tally.stuck} runs are stuck")
    if p99 > TAKE_OVER_P99_MS:
        load = f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"
        wrong.append(f"the take-over took {p99} ms (p99); the limit is {TAKE_OVER_P99_MS} ms; {load}")
    if readers.counts["packed"] < READ_MIN:
        wrong.append(f"only {readers.counts['packed']} readings of packed runs")
    if not (moved and tally.steps and len(tally.faults) >= KINDS_MIN):
        wrong.append("too little happened to say anything: give it more minutes")
    for text in wrong[:FAULTS_SHOWN]:
        say(text)
    for name, count in sorted(tally.faults.items()):
        say(f"  {count:4} x {name}")
    say(f"{tally.packed[0]} runs in {tally.packed[1]} segments at the end; {readers.summary}")
    say(
        f"{'FAILED' if wrong else 'PASSED'}: {tally.ended} runs ({tally.cancelled} with a cancel), "
        f"{tally.steps} steps, {sum(tally.faults.values())} faults of {len(tally.faults)} kinds; "
        f"{len(tally.wrong)} lost results, {len(readers.wrong)} wrong readings, {len(tally.left)} leftovers, "
        f"{len(again)} journaled steps run again, {tally.stuck} stuck runs, {len(leaked)} leaked processes; "
        f"take-over of {len(moved)} runs p50 {p50} ms, p99 {p99} ms"
    )
    return wrong


def main() -> int:
    options = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--keep", action="store_true", help="keep logs, ledger and journals of a good campaign too")
    arguments = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix=f"stepflow-chaos-{arguments.seed}-"))
    begun_at = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun_at:7.1f} s  {text}", flush=True)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))
    say(f"seed {arguments.seed}, {arguments.minutes:g} minutes, load {os.getloadavg()[0]:.1f}; logs in {folder}")
    wrong = uvloop.run(campaign(folder, arguments.minutes, arguments.seed, say))
    if wrong:
        say(f"everything is kept in {folder}; to see it again:")
        say(f"make chaos MINUTES={arguments.minutes:g} SEED={arguments.seed}")
        return 1
    if not arguments.keep:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
