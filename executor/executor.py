"""The executor: adopts the partitions assigned to it, drives them, and writes everything through one fenced writer.

Promises:
- Every write goes through the writer, so a write of an executor that lost its session changes nothing.
- The first entry that an owner adds is `Adopted`. Where there may have been an owner before, it is durable before the
  run does anything, so that a run that kills its executors is found out (`ADOPTIONS_IN_A_ROW_MAX`).
- When the session is lost, all runs are dropped on the spot and the executor registers anew under another id.
- A result is acknowledged only by whoever has journaled it: one for a run that is not driven here is left to its owner.

A run that cannot be driven here any more, for a defect of ours, unreadable data or an engine version that we lack, is
*given back*: dropped at once, and after a pause (a second, doubled each time) its assignment is moved to nobody, where
the leader finds it and looks for another executor; this one, if there is no other. Such runs never vanish: a defect
that strikes again and again before the run makes progress ends as RECOVERY_FAILED, and what nobody can read waits for
somebody who can. A run whose write the store refuses ends with ORCHESTRATOR_ERROR.

Does not: choose which runs it gets, or know what a flow means.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from executor.adoption import Attaching, Loaded, Plans, load, rejoin
from executor.drive import Drive
from executor.give_back import Returns, defect
from executor.handover import hand_over
from executor.hosts.pool import Hosts
from executor.session import Session, fresh_id
from executor.timers import Wakes
from stepflow.errors import Code, Conflict, Failure, StepflowError, Unavailable
from stepflow.journal import blob_reader
from stepflow.mesh.v1 import host_pb2, state_pb2
from stepflow.run.state import ENGINE_VERSION
from stepflow.store import Put, keys, present
from stepflow.store.follow import follow
from stepflow.store.grouping import Grouping
from stepflow.store.lease import LEASE_TTL_S
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from executor.drive import Effect, Listener
    from executor.give_back import Place
    from executor.hosts.pool import Peer
    from stepflow.routing.table import PluginComponents, Rule
    from stepflow.store import KeyValue, Store, StoreEvent
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

_T = TypeVar("_T")

RUNS_MAX = 10_000
"""Partitions owned at once."""

BLOB_RETRY_S = (0.1, 0.3, 1.0, 3.0)
"""Pauses between tries to reach the blob store; the last one repeats."""

REGISTER_RETRY_S = 0.5
"""Between two tries to register anew."""

HAND_OVER_S_MAX = 10.0

WAKE_S_MAX = 10.0
"""The longest sleep towards an instant: how late a jump of the wall clock may be noticed."""

ALONE_FROM = 3
"""Adoptions in a row from which on runs are adopted one at a time: one of them may be what kills executors."""

ALONE_S = 0.25
"""How long such a run has for its first progress before the next one is adopted: what kills does so at once, and
innocent ones that wait for a long call must not keep hundreds of others waiting."""


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
        lease_ttl_s: float = LEASE_TTL_S,
        queue_timeout_s: float = 0.0,
    ) -> None:
        """`queue_timeout_s`: see `Hosts`."""
        self.hosts = Hosts(rules, builtins, queue_timeout_s=queue_timeout_s)
        self.hosts.changed = self._routes_changed
        self.id = ""
        self.abandoned: Callable[[str, StepflowError], None] = lambda _run_id, _error: None
        """Called when a run cannot be driven here any more, although it has not ended."""
        self._store = store
        self._blobs = blobs
        self._name = name
        self.address = address
        """Where the control plane reaches it; counts from `start` on."""
        self._runs_max = runs_max
        self._lease_ttl_s = lease_ttl_s
        self._session: Session | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self._drives: dict[Place, Drive] = {}
        self._by_run: dict[str, list[Drive]] = {}
        """The same, by run: what concerns one of ten thousand runs must not look at all."""
        self._adopting: dict[Place, asyncio.Task[None]] = {}
        self._early: dict[str, dict[int, list[KeyValue]]] = {}
        """Messages that came for partitions while they were being read, by run and partition."""
        self._alone = asyncio.Lock()
        self._returns = Returns(lambda: self._session)
        self._dirty: dict[Drive, None] = {}
        self._flush_scheduled = False
        self._undecided = 0
        self._wakes: Wakes[Drive] = Wakes()
        self._wake_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: dict[str, Listener] = {}
        self._grouping = Grouping(store)
        self._plans = Plans(store)
        self._attaching = Attaching(self.hosts)
        self._read_blob = blob_reader(store, blobs)
        self._draining = False
        self._closed = False

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Register and begin to take assignments. Raises: StepflowError."""
        self.id = fresh_id(self._name)  # before it stands in the store: the leader may ask at once who we are
        session = await Session.open(self._store, self.id, self._value(), ttl_s=self._lease_ttl_s, on_lost=self._lost)
        self._session = session
        self.hosts.send_while(session.valid)
        assigned = follow(
            self._store,
            keys.assigned_to(session.id),
            listed=self._assignments_listed,
            changed=self._assignments_changed,
        )
        inbox = follow(self._store, keys.INBOX, listed=self._inbox_listed, changed=self._inbox_changed)
        self._watchers = [
            asyncio.create_task(assigned, name="watch assignments"),
            asyncio.create_task(inbox, name="watch inbox"),
        ]
        log.info("executor registered", executor_id=self.id, token=session.writer.token)

    async def close(self) -> None:
        """Stop at once. Runs that are not complete stay assigned, and are adopted by whoever takes them over."""
        self._closed = True
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        session, self._session = self._session, None
        await self._end_incarnation(session)
        await self._grouping.close()
        self.hosts.close()

    async def hand_over(self, *, timeout_s: float = HAND_OVER_S_MAX) -> int:
        """Take no new runs and give those that are here away (`handover`); return how many went."""
        self._draining = True
        session = self._session
        if session is None:
            return 0
        put = Put(keys.session_executor(session.id), self._value().SerializeToString(), ignore_lease=True)
        session.writer.submit([put], on_commit=_nothing, on_reject=_nothing)

        def mine() -> list[Drive] | None:
            there = session is self._session and (self._drives or self._adopting)
            return list(self._drives.values()) if there else None

        return await hand_over(self._store, session.id, self.hosts, mine, timeout_s)

    @property
    def draining(self) -> bool:
        """Whether runs are being given away and none is taken."""
        return self._draining

    @property
    def runs_left(self) -> int:
        """How many partitions are still assigned here."""
        return len(self._drives) + len(self._adopting) + len(self._returns)

    def drives_run(self, run_id: str) -> bool:
        """Whether any partition of a run is driven here, or about to be."""
        return run_id in self._by_run or any(owned == run_id for owned, _ in self._adopting)

    def _value(self) -> state_pb2.ExecutorSession:
        return state_pb2.ExecutorSession(
            address=self.address, runs_max=self._runs_max, engine_version=ENGINE_VERSION, draining=self._draining
        )

    def _lost(self, session: Session) -> None:
        """The session is gone: nothing that we know may be acted on any more."""
        if self._closed or session is not self._session:
            return
        log.warning("session lost, registering anew", executor_id=self.id)
        self._session = None
        self._drop_all()
        self._renewal = asyncio.create_task(self._register_anew(session), name="register anew")

    async def _register_anew(self, former: Session) -> None:
        await self._end_incarnation(former)
        while True:
            try:
                await self.start()
            except StepflowError as error:
                log.warning("not registered", reason=error.reason, error=error.message)
                await asyncio.sleep(REGISTER_RETRY_S)
            else:
                self._renewal = None
                return

    def _drop_all(self) -> None:
        for drive in self._drives.values():
            drive.gone = True
        self.hosts.forget_all()
        self._drives.clear()
        self._by_run.clear()
        self._dirty.clear()
        self._wakes.clear()
        self._returns.cancel_all()
        self._undecided = 0
        if self._wake_timer is not None:
            self._wake_timer.cancel()
            self._wake_timer = None

    async def _end_incarnation(self, session: Session | None) -> None:
        """Stop everything that was done for a session. The tasks go first: what they write would be refused."""
        self._drop_all()
        tasks = [*self._watchers, *self._adopting.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._adopting.clear()
        if session is not None:
            await session.close(revoke=True)

    # --- what drives need (drive.Owner) -------------------------------------------------------------------------------

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def spawn(self, drive: Drive, work: Coroutine[object, object, None]) -> None:
        """Run something beside the loop of facts; a defect in it gives the run back, and harms no other."""
        task = asyncio.create_task(self._guard(drive, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, drive: Drive, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except StepflowError as error:
            self._abandon(drive, error)
        except Exception as error:
            self._abandon(drive, defect(drive.run_id, error))

    def safely(self, drive: Drive, work: Callable[..., None], *arguments: object) -> None:
        """Do something with a drive; a defect in it gives the run back, and harms no other."""
        try:
            work(*arguments)
        except StepflowError as error:
            self._abandon(drive, error)
        except Exception as error:
            self._abandon(drive, defect(drive.run_id, error))

    def ended(self, drive: Drive) -> None:
        place = (drive.run_id, drive.partition)
        self._disown(drive)
        self._returns.forget(place)
        self._wakes.drop(drive)
        drive.gone = True

    def listen(self, run_id: str, listener: Listener | None) -> None:
        """Have the step events of a run told, those of partitions that come later too, until None is given."""
        if listener is None:
            self._listeners.pop(run_id, None)
        else:
            self._listeners[run_id] = listener
        for drive in self._by_run.get(run_id, ()):
            drive.listener = listener

    def items_ended(self, run_id: str) -> int:
        """Count the items that have ended in the partitions of a run that are driven here just now."""
        return sum(drive.state.root.items_done for drive in self._by_run.get(run_id, ()))

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

    # --- writing ------------------------------------------------------------------------------------------------------

    def mark_dirty(self, drive: Drive) -> None:
        """The drive has something to write; it goes with the next flush."""
        self._dirty[drive] = None
        if not self._flush_scheduled and not self._undecided:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Submit what all drives have gathered. While it is on its way, the next flush gathers."""
        self._flush_scheduled = False
        session = self._session
        if session is None or self._undecided:
            return
        drives, self._dirty = self._dirty, {}
        for drive in drives:
            if not drive.writable:
                continue  # it ends, and comes again with what its end is written with
            writes, effects = drive.take_writes()
            before: str | None = None
            for ops in writes:
                last = ops is writes[-1]
                self._undecided += last
                session.writer.submit(
                    ops,
                    # A later part without the one before it would be a gap in the journal.
                    compares=() if before is None else (present(before),),
                    on_commit=partial(self._committed, session, drive, effects) if last else _nothing,
                    on_reject=partial(self._rejected, session, drive, last),
                )
                before = ops[0].key

    def _committed(self, session: Session, drive: Drive, effects: list[Effect]) -> None:
        if session is self._session:
            self._decided()
            self.safely(drive, drive.committed, effects)

    def _rejected(self, session: Session, drive: Drive, last: bool, error: StepflowError) -> None:
        if session is not self._session:
            return
        drive.refusal = drive.refusal or error  # the parts behind a refused one fail for want of it
        if last:
            self._decided()
            if not drive.gone:
                self._refused(drive, drive.refusal)

    def _decided(self) -> None:
        self._undecided -= 1
        if not self._undecided and self._dirty and not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    # --- runs that cannot go on ---------------------------------------------------------------------------------------

    def _refused(self, drive: Drive, error: StepflowError) -> None:
        """The store does not take what the run would write: end the run, from what stands in its journal."""
        place = (drive.run_id, drive.partition)
        if isinstance(error, Conflict) or drive.doomed or place in self._adopting:
            self._abandon(drive, error)
            return
        log.error("write refused", run_id=drive.run_id, reason=error.reason, error=error.message)
        self._drop(drive, cancel=True)
        self._adopt(place, drive.assignment, refusal=error)

    def _abandon(self, drive: Drive, error: StepflowError) -> None:
        """Stop driving a run, and give it back."""
        if not drive.gone:
            self._drop(drive)
            self._give_back((drive.run_id, drive.partition), drive.assignment, error)

    def _drop(self, drive: Drive, *, cancel: bool = False) -> None:
        drive.gone = True
        self.hosts.forget(drive, cancel=cancel)
        self._disown(drive)
        self._dirty.pop(drive, None)
        self._wakes.drop(drive)
        if drive.written is not None:
            drive.written.set()

    def _disown(self, drive: Drive) -> None:
        if self._drives.pop((drive.run_id, drive.partition), None) is not None:
            drives = self._by_run[drive.run_id]
            drives.remove(drive)
            if not drives:
                del self._by_run[drive.run_id]

    def _give_back(self, place: Place, assignment: KeyValue, error: StepflowError) -> None:
        if self._returns.give_back(place, assignment, error):
            self.abandoned(place[0], error)

    # --- time ---------------------------------------------------------------------------------------------------------

    def wake_at(self, drive: Drive, at_ms: int) -> None:
        """Have the drive's `turn` called at that instant. One heap and one timer for all runs."""
        if self._wakes.set(drive, at_ms):
            self._arm()

    def _arm(self) -> None:
        if self._wake_timer is not None:
            self._wake_timer.cancel()
            self._wake_timer = None
        next_ms = self._wakes.next_ms()
        if next_ms is not None:
            delay_s = min(max(0.0, (next_ms - self.now_ms()) / 1000), WAKE_S_MAX)
            self._wake_timer = asyncio.get_running_loop().call_later(delay_s, self._wake)

    def _wake(self) -> None:
        self._wake_timer = None
        for drive in self._wakes.due(self.now_ms()):
            self.safely(drive, drive.turn)
        self._arm()

    def _routes_changed(self) -> None:
        for drive in list(self._drives.values()):
            self.safely(drive, drive.turn)

    # --- hosts --------------------------------------------------------------------------------------------------------

    def on_frame(self, peer: Peer, frame: host_pb2.HostFrame) -> None:
        """Take in what a host has sent."""
        hosts = self.hosts
        touched: dict[Drive, None] = {}
        for result in frame.results:
            flight = hosts.take(result.call_id)
            if flight is not None:  # else it is cancelled, or its run not ours any more: the next owner may join it
                self.safely(flight.drive, flight.drive.on_result, flight, result)
                touched[flight.drive] = None
        for drive in touched:
            self.safely(drive, drive.turn)
        for progress in frame.progress:
            flight = hosts.find(progress.call_id)
            if flight is not None:
                flight.drive.on_progress(flight, progress)
        for callback in frame.callbacks:
            flight = hosts.find(callback.call_id)
            if flight is not None:
                flight.drive.on_callback(flight, callback)
        for attached in frame.attached:
            self._attaching.answered(peer.id, attached)

    def host_gone(self, host_id: str, why: str) -> None:
        """A host will not come back: its calls are lost, and made again elsewhere."""
        touched: dict[Drive, None] = {}
        for flight in self.hosts.remove_peer(host_id):
            self.safely(flight.drive, flight.drive.on_lost, flight, why)
            touched[flight.drive] = None
        for drive in touched:
            self.safely(drive, drive.turn)
        self._attaching.host_gone(host_id)

    # --- assignments --------------------------------------------------------------------------------------------------

    def _assignments_listed(self, items: list[KeyValue]) -> None:
        for item in items:
            self._assigned(item)

    def _assignments_changed(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            if event.kind == "put":
                self._assigned(event.kv)

    def _assigned(self, assignment: KeyValue) -> None:
        _, run_id, partition = keys.parse_assigned(assignment.key)
        place = (run_id, partition)
        if place not in self._drives and place not in self._returns:
            self._adopt(place, assignment)

    def _inbox_listed(self, items: list[KeyValue]) -> None:
        for item in sorted(items, key=_age):
            self._message(item)

    def _inbox_changed(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            if event.kind == "put":
                self._message(event.kv)

    def _message(self, item: KeyValue) -> None:
        run_id, message_id = keys.parse_inbox(item.key)
        for drive in list(self._by_run.get(run_id, ())):
            self.safely(drive, self._take_message, drive, message_id, item.value)
        for early in self._early.get(run_id, {}).values():
            early.append(item)

    def _take_message(self, drive: Drive, message_id: str, value: bytes) -> None:
        drive.on_inbox(message_id, state_pb2.InboxMessage.FromString(value))
        drive.turn()

    # --- adoption -----------------------------------------------------------------------------------------------------

    def _adopt(self, place: Place, assignment: KeyValue, refusal: StepflowError | None = None) -> None:
        """Begin to drive a partition; with `refusal`, to end it because of that."""
        if self._session is None or place in self._adopting:
            return
        task = asyncio.create_task(self._adopt_guarded(place, assignment, refusal), name=f"adopt {place[0]}")
        self._adopting[place] = task
        task.add_done_callback(lambda done: self._adopting.pop(place) if self._adopting.get(place) is done else None)

    async def _adopt_guarded(self, place: Place, assignment: KeyValue, refusal: StepflowError | None) -> None:
        try:
            await self._adopt_run(place, assignment, refusal)
        except Exception as error:
            known = error if isinstance(error, StepflowError) else defect(place[0], error)
            drive = self._drives.get(place)
            if drive is not None:
                self._abandon(drive, known)
            else:
                self._give_back(place, assignment, known)
        finally:
            early = self._early.get(place[0], {})
            early.pop(place[1], None)
            if not early:
                self._early.pop(place[0], None)

    async def _adopt_run(self, place: Place, assignment: KeyValue, refusal: StepflowError | None) -> None:
        """Replay, note the adoption, ask the hosts what they hold, go on."""
        self._early.setdefault(place[0], {})[place[1]] = []
        loaded = await load(
            self._store, self._grouping, self._plans, self.get_blob, *place, assignment, again=refusal is not None
        )
        if loaded is None:
            return
        if loaded.state.adoptions_in_a_row < ALONE_FROM:
            await self._take_up(loaded, assignment, refusal)
            return
        async with self._alone:
            drive = await self._take_up(loaded, assignment, refusal)
            await self._first_progress(drive)
            self.safely(drive, drive.survived)

    async def _take_up(self, loaded: Loaded, assignment: KeyValue, refusal: StepflowError | None) -> Drive:
        place = (loaded.state.run_id, loaded.state.partition)
        drive = Drive(self, loaded.state, loaded.record, assignment=assignment)
        drive.listener = self._listeners.get(drive.run_id)
        self._drives[place] = drive
        self._by_run.setdefault(drive.run_id, []).append(drive)
        moved = state_pb2.Assignment.FromString(assignment.value)
        unnoted = "" if loaded.state.entries_journaled else moved.taken_from
        drive.adopted(self.id, handed_over=moved.handed_over, unnoted_owner=unnoted)
        early = self._early[drive.run_id].pop(drive.partition)
        for item in sorted((*loaded.inbox, *early), key=_age):
            drive.on_inbox(keys.parse_inbox(item.key)[1], state_pb2.InboxMessage.FromString(item.value))
        if refusal is not None:
            text = f"the run cannot be journaled: {refusal.message}"
            drive.doomed = True
            drive.fail(Failure(Code.ORCHESTRATOR_ERROR, text))
        elif not loaded.fresh:
            drive.written = asyncio.Event()
            self.mark_dirty(drive)
            held = await self._attaching.ask(drive.run_id, drive.partition, drive.epoch)
            await drive.written.wait()
            drive.written = None
            if drive.gone:
                return drive
            rejoin(drive, self.hosts, held, loaded.failed_attempts)
        drive.paused = False
        drive.turn()
        return drive

    async def _first_progress(self, drive: Drive) -> None:
        """Wait until a suspicious run has shown that it does not kill its executor at once."""
        until_s = time.monotonic() + ALONE_S
        # An event instead would cost every fact of every run a look at it.
        while not drive.gone and drive.state.adoptions_in_a_row and time.monotonic() < until_s:  # noqa: ASYNC110  # see above
            await asyncio.sleep(ALONE_S / 20)


def _age(item: KeyValue) -> int:
    """For the order in which messages have come in."""
    return item.create_revision


def _nothing(_error: StepflowError | None = None) -> None:
    """A write that nothing waits for."""


__all__ = ["Executor"]
