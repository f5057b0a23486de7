"""The executor: adopts the partitions assigned to it, drives them, and writes everything through one fenced writer.

Promises:
- Every write goes through the writer, so a write of an executor that lost its session changes nothing.
- The first entry that an owner adds is `Adopted`; it is durable before the run does anything.
- When the session is lost, all runs are dropped on the spot and the executor registers anew under another id.

Does not: choose which runs it gets, or know what a flow means.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from heapq import heappop, heappush
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from executor.drive import Drive
from executor.hosts import Hosts
from stepflow.errors import StepflowError, Unavailable
from stepflow.journal import blob_reader, journal_entries, open_partition, read_plan, read_record, replay_entry
from stepflow.mesh.v1 import host_pb2, state_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run import attach_call
from stepflow.run.advancing import advance
from stepflow.run.model import ENGINE_VERSION
from stepflow.store import keys, range_all
from stepflow.store.lease import LeaseKeeper
from stepflow.store.writer import FencedWriter
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from executor.drive import Effect, Listener
    from executor.hosts import Peer
    from stepflow.flow import CompiledFlow
    from stepflow.routing import PluginComponents, Rule
    from stepflow.run import RunState
    from stepflow.store import Store, Watch
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

_T = TypeVar("_T")


RUNS_MAX = 10_000
"""Partitions owned at once."""

ATTACH_WAIT_S = 1.0
"""How long an adopted run waits for the hosts to say what they hold of it."""

BLOB_RETRY_S = (0.1, 0.3, 1.0, 3.0)
"""Pauses between tries to reach the blob store; the last one repeats."""

PLANS_MAX = 256
"""Compiled flows kept."""


class Executor:
    """One executor of the mesh. `start`, then runs come by themselves; `close` gives them back."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        *,
        rules: Mapping[str, Sequence[Rule]],
        builtins: Mapping[str, PluginComponents],
        name: str = "executor",
        address: str = "",
        runs_max: int = RUNS_MAX,
    ) -> None:
        self.hosts = Hosts(rules, builtins)
        self.hosts.changed = self._routes_changed
        self.id = ""
        self.abandoned: Callable[[str, StepflowError], None] = lambda _run_id, _error: None
        """Called when a run cannot be driven here any more, although it has not ended."""
        self._store = store
        self._blobs = blobs
        self._name = name
        self._address = address
        self._runs_max = runs_max
        self._writer: FencedWriter | None = None
        self._keeper: LeaseKeeper | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self._drives: dict[tuple[str, int], Drive] = {}
        self._adopting: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._dirty: dict[Drive, None] = {}
        self._flush_scheduled = False
        self._undecided = 0
        self._wakes: list[tuple[int, int, Drive]] = []
        self._wake_timer: asyncio.TimerHandle | None = None
        self._serial = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: dict[str, Listener] = {}
        self._plans: dict[tuple[str, bytes], CompiledFlow] = {}
        self._held: dict[str, tuple[asyncio.Event, list[host_pb2.HeldCall], int]] = {}
        self._read_blob = blob_reader(store, blobs)
        self._closed = False

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Register and begin to take assignments."""
        self.id = f"{self._name}-{uuid4().hex[:12]}"
        self._keeper = LeaseKeeper(self._store, self._lost)
        lease = await self._keeper.start()
        session = state_pb2.ExecutorSession(
            address=self._address, runs_max=self._runs_max, engine_version=ENGINE_VERSION
        )
        assigned = self._store.watch(keys.assigned_to(self.id))
        inbox = self._store.watch(keys.INBOX)
        self._writer = await FencedWriter.register(
            self._store,
            self.id,
            session.SerializeToString(),
            lease,
            clock_valid=self._keeper.valid,
            on_lost=self._lost,
        )
        self._watchers = [
            asyncio.create_task(self._watch_assignments(assigned), name="watch assignments"),
            asyncio.create_task(self._watch_inbox(inbox), name="watch inbox"),
        ]
        log.info("executor registered", executor_id=self.id, token=self._writer.token)

    async def close(self) -> None:
        """Stop at once. Runs that are not complete stay assigned, and are adopted by whoever takes them over."""
        self._closed = True
        await self._end_incarnation(revoke=True)

    def _lost(self) -> None:
        """The session is gone: nothing that we know may be acted on any more."""
        if self._closed:
            return
        log.warning("session lost, registering anew", executor_id=self.id)
        self._drop_all()
        task = asyncio.create_task(self._register_anew(), name="register anew")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _register_anew(self) -> None:
        await self._end_incarnation(revoke=False, spare=asyncio.current_task())
        if not self._closed:
            await self.start()

    def _drop_all(self) -> None:
        for drive in self._drives.values():
            drive.gone = True
            self.hosts.forget(drive)
        self._drives.clear()
        self._dirty.clear()
        self._wakes.clear()

    async def _end_incarnation(self, *, revoke: bool, spare: asyncio.Task[None] | None = None) -> None:
        if self._wake_timer is not None:
            self._wake_timer.cancel()
            self._wake_timer = None
        if self._writer is not None:
            await self._writer.close()
        self._undecided = 0
        self._drop_all()
        tasks = [*self._watchers, *self._adopting.values(), *(task for task in self._tasks if task is not spare)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._adopting.clear()
        if self._keeper is not None:
            await self._keeper.stop(revoke=revoke)

    # --- what drives need (drive.Owner) ---------------------------------------------------------------------------------

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def spawn(self, drive: Drive, work: Coroutine[object, object, None]) -> None:
        """Run something beside the loop of facts; a defect in it ends that run, not the executor."""
        task = asyncio.create_task(self._guard(drive, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, drive: Drive, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except StepflowError as error:
            self._abandon(drive, error)

    def ended(self, drive: Drive) -> None:
        self._drives.pop((drive.run_id, drive.state.partition), None)
        drive.gone = True

    def listen(self, run_id: str, listener: Listener | None) -> None:
        """Have the step events of a run told, those of partitions that come later too, until None is given."""
        if listener is None:
            self._listeners.pop(run_id, None)
        else:
            self._listeners[run_id] = listener
        for (owned, _), drive in self._drives.items():
            if owned == run_id:
                drive.listener = listener

    def items_ended(self, run_id: str) -> int:
        """Count the items that have ended in the partitions of a run that are driven here just now."""
        return sum(drive.state.root.items_done for (owned, _), drive in self._drives.items() if owned == run_id)

    async def put_blob(self, run_id: str, content: bytes) -> str:
        return await self._persist(lambda: self._blobs.put(content, scope=run_id))

    async def get_blob(self, run_id: str, blob: str, *, shared: bool) -> bytes | None:
        """Read a blob of the run, a shared one, or a stored flow; None when there is no such thing."""
        return await self._persist(lambda: self._read_blob(run_id, blob, shared=shared))

    async def _persist(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do something with the blob store, again and again while it is unavailable: the step waits, others go on."""
        tries = 0
        while True:
            try:
                return await work()
            except Unavailable as error:
                pause = BLOB_RETRY_S[min(tries, len(BLOB_RETRY_S) - 1)]
                tries += 1
                log.warning("blob store unavailable", reason=error.reason, tries=tries)
                await asyncio.sleep(pause)

    # --- writing --------------------------------------------------------------------------------------------------------

    def mark_dirty(self, drive: Drive) -> None:
        """The drive has something to write; it goes with the next flush."""
        self._dirty[drive] = None
        if not self._flush_scheduled and not self._undecided:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Submit what all drives have gathered. While it is on its way, the next flush gathers."""
        self._flush_scheduled = False
        writer = self._writer
        if writer is None or self._undecided:
            return
        drives, self._dirty = self._dirty, {}
        for drive in drives:
            writes, effects = drive.take_writes()
            for ops in writes[:-1]:
                writer.submit(ops, on_commit=_nothing, on_reject=partial(self._rejected, drive, last=False))
            self._undecided += 1
            writer.submit(
                writes[-1],
                on_commit=partial(self._committed, drive, effects),
                on_reject=partial(self._rejected, drive, last=True),
            )

    def _committed(self, drive: Drive, effects: list[Effect]) -> None:
        self._decided()
        drive.committed(effects)

    def _rejected(self, drive: Drive, error: StepflowError, *, last: bool) -> None:
        if last:
            self._decided()
        if not drive.gone:
            self._abandon(drive, error)

    def _decided(self) -> None:
        self._undecided -= 1
        if not self._undecided and self._dirty and not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _abandon(self, drive: Drive, error: StepflowError) -> None:
        """Stop driving a run that cannot be written or read. Its assignment stays: another owner may fare better."""
        self._tell_abandoned(drive.run_id, error)
        drive.gone = True
        self.hosts.forget(drive)
        self._drives.pop((drive.run_id, drive.state.partition), None)
        self._dirty.pop(drive, None)

    def _tell_abandoned(self, run_id: str, error: StepflowError) -> None:
        log.error("run abandoned", run_id=run_id, reason=error.reason, error=error.message)
        self.abandoned(run_id, error)

    # --- time -----------------------------------------------------------------------------------------------------------

    def wake_at(self, drive: Drive, at_ms: int) -> None:
        """Have the drive's `turn` called at that instant. One heap and one timer for all runs."""
        if drive.wake_at_ms == at_ms:
            return
        drive.wake_at_ms = at_ms
        self._serial += 1
        heappush(self._wakes, (at_ms, self._serial, drive))
        if self._wakes[0][2] is drive:
            self._arm()

    def _arm(self) -> None:
        if self._wake_timer is not None:
            self._wake_timer.cancel()
            self._wake_timer = None
        if self._wakes:
            delay_s = max(0.0, (self._wakes[0][0] - self.now_ms()) / 1000)
            self._wake_timer = asyncio.get_running_loop().call_later(min(delay_s, 3600.0), self._wake)

    def _wake(self) -> None:
        self._wake_timer = None
        now_ms = self.now_ms()
        while self._wakes and self._wakes[0][0] <= now_ms:
            at_ms, _, drive = heappop(self._wakes)
            if drive.wake_at_ms == at_ms:
                drive.wake_at_ms = 0
                drive.turn()
        self._arm()

    def _routes_changed(self) -> None:
        for drive in list(self._drives.values()):
            drive.turn()

    # --- hosts ----------------------------------------------------------------------------------------------------------

    def on_frame(self, peer: Peer, frame: host_pb2.HostFrame) -> None:
        """Take in what a host has sent."""
        hosts = self.hosts
        touched: dict[Drive, None] = {}
        for result in frame.results:
            flight = hosts.take(result.call_id)
            if flight is None:
                peer.ack(result.key, result.attempt)
                continue
            flight.drive.on_result(flight, result)
            touched[flight.drive] = None
        for drive in touched:
            drive.turn()
        for progress in frame.progress:
            flight = hosts.find(progress.call_id)
            if flight is not None:
                flight.drive.on_progress(flight, progress)
        for callback in frame.callbacks:
            flight = hosts.find(callback.call_id)
            if flight is not None:
                flight.drive.on_callback(flight, callback)
        for attached in frame.attached:
            self._on_attached(attached)

    def _on_attached(self, attached: host_pb2.Attached) -> None:
        for run_id in attached.run_ids:
            waiting = self._held.get(run_id)
            if waiting is None:
                continue
            event, calls, missing = waiting
            calls.extend(call for call in attached.calls if call.run_id == run_id)
            self._held[run_id] = (event, calls, missing - 1)
            if missing <= 1:
                event.set()

    # --- assignments ----------------------------------------------------------------------------------------------------

    async def _watch_assignments(self, watch: Watch) -> None:
        async for batch in watch:
            for event in batch.events:
                _, run_id, partition = keys.parse_assigned(event.kv.key)
                if event.kind == "put":
                    self._adopt(run_id, partition, event.kv.create_revision, event.kv.key)

    async def _watch_inbox(self, watch: Watch) -> None:
        async for batch in watch:
            for event in batch.events:
                if event.kind != "put":
                    continue
                run_id, message_id = keys.parse_inbox(event.kv.key)
                message = state_pb2.InboxMessage.FromString(event.kv.value)
                for (owned, _), drive in list(self._drives.items()):
                    if owned == run_id:
                        drive.on_inbox(message_id, message)
                        drive.turn()

    def _adopt(self, run_id: str, partition: int, epoch: int, assignment: str) -> None:
        place = (run_id, partition)
        if place in self._drives or place in self._adopting or self._closed:
            return
        task = asyncio.create_task(self._adopt_guarded(run_id, partition, epoch, assignment), name=f"adopt {run_id}")
        self._adopting[place] = task
        task.add_done_callback(lambda _: self._adopting.pop(place, None))

    async def _adopt_guarded(self, run_id: str, partition: int, epoch: int, assignment: str) -> None:
        try:
            await self._adopt_run(run_id, partition, epoch, assignment)
        except StepflowError as error:
            self._tell_abandoned(run_id, error)

    async def _adopt_run(self, run_id: str, partition: int, epoch: int, assignment: str) -> None:
        """Replay, note the adoption, ask the hosts what they hold, go on."""
        record, state, inbox = await self._load(run_id, partition)
        drive = Drive(self, state, record, epoch=epoch, assignment=assignment)
        drive.listener = self._listeners.get(run_id)
        self._drives[(run_id, partition)] = drive
        now_ms = self.now_ms()
        seen_before = state.entries_journaled > 0
        drive.feed(pb.Entry(at_ms=now_ms, adopted=pb.Adopted(epoch=epoch, executor_id=self.id)))
        for message_id, message in inbox:
            drive.on_inbox(message_id, message)
        if seen_before:
            await self._attach(drive)
        drive.paused = False
        drive.turn()

    async def _load(
        self, run_id: str, partition: int
    ) -> tuple[state_pb2.RunRecord, RunState, list[tuple[str, state_pb2.InboxMessage]]]:
        record = await read_record(self._store, run_id)
        place = (record.flow_id, record.overrides_json)
        plan = self._plans.get(place)
        if plan is None:
            plan = await read_plan(self._store, record)
            if len(self._plans) >= PLANS_MAX:
                self._plans.pop(next(iter(self._plans)))
            self._plans[place] = plan
        state = await open_partition(run_id, partition, record, plan, self.get_blob)
        count = 0
        async for entry in journal_entries(self._store, run_id, partition):
            await replay_entry(state, entry, self.get_blob)
            count += 1
            if count % 1000 == 0:
                await asyncio.sleep(0)  # a long journal must not stop the other runs
        inbox = [
            (keys.parse_inbox(item.key)[1], state_pb2.InboxMessage.FromString(item.value))
            async for item in range_all(self._store, keys.inbox_of_run(run_id))
        ]
        return record, state, inbox

    async def _attach(self, drive: Drive) -> None:
        """Find the calls that hosts still hold for the run, so that they are joined and not made again."""
        event = asyncio.Event()
        asked = self.hosts.attach(drive.run_id, drive.epoch)
        if not asked:
            return
        calls: list[host_pb2.HeldCall] = []
        self._held[drive.run_id] = (event, calls, asked)
        try:
            async with asyncio.timeout(ATTACH_WAIT_S):
                await event.wait()
        except TimeoutError:
            log.warning("not every host has said what it holds", run_id=drive.run_id)
        finally:
            del self._held[drive.run_id]
        advance(drive.state, {})
        for call in calls:
            attach_call(drive.state, call.key, call.attempt)


def _nothing() -> None:
    """A write that nothing waits for."""


__all__ = ["Executor"]
