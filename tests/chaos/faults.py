"""The faults injected into a mesh, by name.

A fault is a coroutine that reserves a part of the fleet, breaks it, and heals it before it returns; recovery is up to
the mesh. It returns False if its target is not available. All random choices come from `Stage.dice`, so the seed
determines the targets and the durations.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support.fleet import Fleet, Kill, Slot, kill_servers_of
from support.wall_clock import HOUR_MS

from stepflow.mesh.v1 import state_pb2
from stepflow.store import keys, range_all
from stepflow.store.lease import LEASE_TTL_S

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from support.etcd import EtcdServer

    from stepflow.store import Store

LONG_S = 20.0
"""An outage of everything of one kind."""

TAKE_OVER_S = 2.0
"""How long nothing else happens after an executor was killed to see how fast its runs move."""


HEALING_S = 8.0
"""After a fault: connections are found broken and opened again."""

SETTLE_S = 1.0
"""Requests that etcd has received before are carried out."""

PACKING_S = 10.0
"""A leader of a mesh under load begins a segment within this time, unless something else keeps it from it."""

IDLE_S = 15.0
"""Three times the interval of a watch's sign of life."""


@dataclass
class Stage:
    """What faults act on."""

    fleet: Fleet
    store: Store
    dice: random.Random
    outage_s: float = LONG_S
    """Duration of an outage of the blob store."""

    @property
    def blobs(self) -> Path:
        """The folder of the blob store: a link, see `disk_of_the_blobs`."""
        return self.fleet.mesh.folder / "blobs"


FAULTS: dict[str, Callable[[Stage], Awaitable[bool]]] = {}
ALONE: set[str] = set()
"""The faults that must not run concurrently with another one."""


def fault(work: Callable[[Stage], Awaitable[bool]]) -> Callable[[Stage], Awaitable[bool]]:
    FAULTS[work.__name__.replace("_", " ")] = work
    return work


def alone(work: Callable[[Stage], Awaitable[bool]]) -> Callable[[Stage], Awaitable[bool]]:
    ALONE.add(work.__name__.replace("_", " "))
    return work


@contextmanager
def hold(stage: Stage, module: str, slot: Slot | None = None) -> Iterator[Slot | None]:
    """Take a slot in which something runs, and which no other fault is about; None when there is none."""
    free = [slot] if slot is not None else stage.fleet.of(module)
    free = [each for each in free if each.service is not None and not each.busy]
    if not free:
        yield None
        return
    taken = stage.dice.choice(free)
    taken.busy = True
    try:
        yield taken
    finally:
        taken.busy = False


@contextmanager
def hold_member(stage: Stage) -> Iterator[EtcdServer | None]:
    """Take a member of etcd; None while a fault is about another one: two of three are a matter for `etcd_down`."""
    fleet = stage.fleet
    if fleet.busy_members:
        yield None
        return
    taken = stage.dice.choice(list(fleet.members))
    fleet.busy_members.add(taken.name)
    try:
        yield taken
    finally:
        fleet.busy_members.discard(taken.name)


async def beyond_a_lease(stage: Stage) -> None:
    await asyncio.sleep(LEASE_TTL_S + stage.dice.uniform(1.0, 4.0))


async def less_than_a_lease(stage: Stage) -> None:
    await asyncio.sleep(stage.dice.uniform(0.2, 0.6 * LEASE_TTL_S))


# --- processes ------------------------------------------------------------------------------------------------------


@alone
@fault
async def executor_killed(stage: Stage) -> bool:
    """Kill an executor of a mesh that is whole, and note when: it is seen how fast its runs move."""
    await stage.fleet.settled(stage.store)
    with hold(stage, "executor") as slot:
        if slot is None:
            return False
        executor_id = (await _id_of(stage, slot)) or slot.running.id
        stage.fleet.kills.append(Kill(executor_id, time.time_ns() // 1_000_000))
        await stage.fleet.kill(slot)
        await asyncio.sleep(TAKE_OVER_S)
        await stage.fleet.start(slot)
    return True


async def _id_of(stage: Stage, slot: Slot) -> str:
    """Return the id under which the executor of a slot is registered now; it changes whenever it loses its session."""
    async for item in range_all(stage.store, keys.EXECUTOR_SESSIONS):
        if state_pb2.ExecutorSession.FromString(item.value).address == slot.front.endpoint:
            return keys.tail(keys.EXECUTOR_SESSIONS, item.key)
    return ""


async def _killed(stage: Stage, module: str, slot: Slot | None = None) -> bool:
    with hold(stage, module, slot) as taken:
        if taken is None:
            return False
        await stage.fleet.kill(taken)
        await asyncio.sleep(stage.dice.uniform(0, 2))
        await stage.fleet.start(taken)
    return True


async def _stopped(stage: Stage, module: str, pause: Callable[[Stage], Awaitable[None]]) -> bool:
    with hold(stage, module) as slot:
        if slot is None:
            return False
        slot.running.pause()
        try:
            await pause(stage)
        finally:
            slot.running.go_on()
    return True


async def _ended(stage: Stage, module: str) -> bool:
    with hold(stage, module) as slot:
        if slot is None:
            return False
        code = await stage.fleet.end(slot)
        await stage.fleet.start(slot)
        assert code == 0, f"{slot.name} ended with {code}"
    return True


@fault
async def executor_killed_amid_others(stage: Stage) -> bool:
    return await _killed(stage, "executor")


@fault
async def executor_stopped_beyond_its_lease(stage: Stage) -> bool:
    return await _stopped(stage, "executor", beyond_a_lease)


@fault
async def executor_stopped_for_a_moment(stage: Stage) -> bool:
    return await _stopped(stage, "executor", less_than_a_lease)


@fault
async def executors_restarted_one_by_one(stage: Stage) -> bool:
    done = [await _ended(stage, "executor") for _ in stage.fleet.of("executor")]
    return any(done)


@fault
async def host_killed(stage: Stage) -> bool:
    return await _killed(stage, "component_host")


@fault
async def host_stopped_beyond_its_lease(stage: Stage) -> bool:
    return await _stopped(stage, "component_host", beyond_a_lease)


@fault
async def host_stopped_for_a_moment(stage: Stage) -> bool:
    return await _stopped(stage, "component_host", less_than_a_lease)


@fault
async def host_restarted(stage: Stage) -> bool:
    return await _ended(stage, "component_host")


@fault
async def component_server_killed(stage: Stage) -> bool:
    with hold(stage, "component_host") as slot:
        if slot is None:
            return False
        kill_servers_of(slot.running)
    return True


@fault
async def leader_killed(stage: Stage) -> bool:
    leader = await stage.fleet.leader(stage.store)
    return leader is not None and await _killed(stage, "control_plane", leader)


@fault
async def leader_killed_while_it_packs(stage: Stage) -> bool:
    """Kill the leader at a random moment between the first byte of a segment and the last deletion in the store."""
    leader = await stage.fleet.leader(stage.store)
    if leader is None or not await asyncio.to_thread(draft_appears, stage.blobs / "segments"):
        return False
    await asyncio.sleep(stage.dice.choice((0, 0.01, 0.05, 0.2)))
    return leader.service is not None and await _killed(stage, "control_plane", leader)


def draft_appears(folder: Path) -> bool:
    """Wait for a segment that is being written; it is there for milliseconds."""
    deadline = time.monotonic() + PACKING_S
    while time.monotonic() < deadline:
        with suppress(OSError):  # no segment yet, or a fault of the disk
            if any(name.startswith(".") for name in os.listdir(folder)):  # noqa: PTH208  # the fastest look
                return True
        time.sleep(0.001)
    return False


@fault
async def control_plane_stopped(stage: Stage) -> bool:
    return await _stopped(stage, "control_plane", beyond_a_lease)


@fault
async def control_plane_restarted(stage: Stage) -> bool:
    return await _ended(stage, "control_plane")


@fault
async def all_control_planes_down(stage: Stage) -> bool:
    slots = stage.fleet.of("control_plane")
    if any(slot.busy or slot.service is None for slot in slots):
        return False
    for slot in slots:
        slot.busy = True
    try:
        for slot in slots:
            await stage.fleet.kill(slot)
        await asyncio.sleep(LONG_S)
        for slot in slots:
            await stage.fleet.start(slot)
    finally:
        for slot in slots:
            slot.busy = False
    return True


async def _clock_set(stage: Stage, module: str, *ahead_ms: int) -> bool:
    with hold(stage, module) as slot:
        if slot is None:
            return False
        slot.clock.set(stage.dice.choice(ahead_ms))
        try:
            await less_than_a_lease(stage)
        finally:
            slot.clock.set(0)
    return True


@fault
async def clock_of_an_executor_set_ahead(stage: Stage) -> bool:
    """Only ahead: the ledger would seem to repeat what a lagging executor has journaled."""
    return await _clock_set(stage, "executor", HOUR_MS, 2_000)


@fault
async def clock_of_a_host_set(stage: Stage) -> bool:
    return await _clock_set(stage, "component_host", -HOUR_MS, HOUR_MS)


@fault
async def clock_of_a_control_plane_set(stage: Stage) -> bool:
    return await _clock_set(stage, "control_plane", -HOUR_MS, HOUR_MS)


# --- etcd -----------------------------------------------------------------------------------------------------------


@fault
async def etcd_member_killed(stage: Stage) -> bool:
    with hold_member(stage) as member:
        if member is None:
            return False
        await asyncio.to_thread(member.kill)
        await asyncio.sleep(stage.dice.uniform(0, 4))
        await asyncio.to_thread(member.start)
    return True


@fault
async def etcd_member_stopped(stage: Stage) -> bool:
    with hold_member(stage) as member:
        if member is None:
            return False
        member.stop()
        try:
            await asyncio.sleep(stage.dice.uniform(0.5, 4))
        finally:
            member.go_on()
    return True


@fault
async def etcd_down(stage: Stage) -> bool:
    if stage.fleet.busy_members:
        return False
    names = {member.name for member in stage.fleet.members}
    stage.fleet.busy_members |= names
    try:
        for member in stage.fleet.members:
            await asyncio.to_thread(member.kill)
        await asyncio.sleep(LONG_S)
        for member in stage.fleet.members:
            member.launch()
        for member in stage.fleet.members:
            await asyncio.to_thread(member.wait)
    finally:
        stage.fleet.busy_members -= names
    return True


@fault
async def etcd_restored(stage: Stage) -> bool:
    """Restore all members from a snapshot that misses nothing: no write passes while it is taken."""
    fleet = stage.fleet
    if fleet.busy_members:
        return False
    names = {member.name for member in fleet.members}
    fleet.busy_members |= names
    proxies = [proxy for slot in fleet.slots for proxy in slot.to_etcd]
    copy = fleet.mesh.folder / "etcd.snapshot"
    try:
        for proxy in proxies:
            proxy.silence()
        await asyncio.sleep(SETTLE_S)
        await asyncio.to_thread(fleet.members[0].snapshot, copy)
        for member in fleet.members:
            await asyncio.to_thread(member.restore_data, copy)
        for member in fleet.members:
            member.launch()
        for member in fleet.members:
            await asyncio.to_thread(member.wait)
    finally:
        for proxy in proxies:
            proxy.cut()  # what was held back was meant for the former members
            proxy.speak()
        fleet.busy_members -= names
    return True


# --- the network ----------------------------------------------------------------------------------------------------


async def _streams(stage: Stage, module: str, harm: Callable[[Slot], None], heal: Callable[[Slot], None]) -> bool:
    """Do harm to the connections that others have to a process."""
    with hold(stage, module) as slot:
        if slot is None:
            return False
        harm(slot)
        await less_than_a_lease(stage)
        heal(slot)
    return True


def nothing(_slot: Slot) -> None:
    pass


@fault
async def streams_to_a_host_cut(stage: Stage) -> bool:
    return await _streams(stage, "component_host", lambda slot: slot.front.cut(), nothing)


@fault
async def streams_to_a_host_half_open(stage: Stage) -> bool:
    return await _streams(
        stage, "component_host", lambda slot: slot.front.freeze_replies(), lambda slot: slot.front.cut()
    )


@fault
async def streams_to_a_host_silent(stage: Stage) -> bool:
    return await _streams(stage, "component_host", lambda slot: slot.front.silence(), lambda slot: slot.front.speak())


@fault
async def streams_to_a_host_slow(stage: Stage) -> bool:
    delay_s = stage.dice.uniform(0.02, 0.3)
    return await _streams(
        stage, "component_host", lambda slot: slot.front.delay(delay_s), lambda slot: slot.front.delay(0)
    )


@fault
async def streams_to_a_host_cut_in_the_middle_of_a_message(stage: Stage) -> bool:
    size = stage.dice.randrange(40, 4_000)
    return await _streams(
        stage, "component_host", lambda slot: slot.front.cut_replies_after(size), lambda slot: slot.front.cut_no_more()
    )


@fault
async def streams_to_an_executor_cut(stage: Stage) -> bool:
    return await _streams(stage, "executor", lambda slot: slot.front.cut(), nothing)


@fault
async def streams_to_an_executor_silent(stage: Stage) -> bool:
    return await _streams(stage, "executor", lambda slot: slot.front.silence(), lambda slot: slot.front.speak())


async def _cut_off(stage: Stage, module: str) -> bool:
    """Separate a process from etcd for longer than its lease, while all others reach both."""
    with hold(stage, module) as slot:
        if slot is None:
            return False
        for proxy in slot.to_etcd:
            proxy.silence()
        await beyond_a_lease(stage)
        for proxy in slot.to_etcd:
            proxy.speak()
    return True


@fault
async def executor_cut_off_from_etcd(stage: Stage) -> bool:
    return await _cut_off(stage, "executor")


@fault
async def host_cut_off_from_etcd(stage: Stage) -> bool:
    return await _cut_off(stage, "component_host")


@fault
async def control_plane_cut_off_from_etcd(stage: Stage) -> bool:
    return await _cut_off(stage, "control_plane")


@fault
async def connections_to_etcd_cut(stage: Stage) -> bool:
    for slot in stage.fleet.slots:
        for proxy in slot.to_etcd:
            proxy.cut()
    return True


@fault
async def etcd_slow(stage: Stage) -> bool:
    delay_s = stage.dice.uniform(0.01, 0.15)
    proxies = [proxy for slot in stage.fleet.slots for proxy in slot.to_etcd]
    for proxy in proxies:
        proxy.delay(delay_s)
    await less_than_a_lease(stage)
    for proxy in proxies:
        proxy.delay(0)
    return True


# --- the world around a process -------------------------------------------------------------------------------------


@contextmanager
def limited(slot: Slot, kind: int, soft: int) -> Iterator[None]:
    """Lower a resource limit of a running process, and restore it."""
    pid = slot.running.process.pid
    former, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (soft, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # killed by `judge` after an interrupted campaign
            resource.prlimit(pid, kind, (former, hard))


def disk_of_the_blobs(folder: Path) -> None:
    """Create the blob store of a mesh behind a link, so that faults replace it by an unreadable one atomically."""
    (folder / "blobs.disk").mkdir()
    (folder / "blobs").symlink_to("blobs.disk")


@contextmanager
def hold_disk(stage: Stage) -> Iterator[bool]:
    """Take the disk of the blobs; False if another fault has it."""
    if stage.fleet.busy_disk:
        yield False
        return
    stage.fleet.busy_disk = True
    try:
        yield True
    finally:
        stage.fleet.busy_disk = False


async def _disk_full(stage: Stage, modules: tuple[str, ...], wait: Callable[[], Awaitable[None]]) -> bool:
    """Let processes write no more than a few bytes into a file, as on a full disk."""
    with ExitStack() as limits:
        if not limits.enter_context(hold_disk(stage)):
            return False
        # Only those that are ready: a starting one could not write the line that says so.
        slots = [
            slot
            for slot in stage.fleet.slots
            if slot.service is not None and slot.service.id and slot.module in modules
        ]
        for slot in slots:
            limits.enter_context(limited(slot, resource.RLIMIT_FSIZE, 16))
        await wait()
    return bool(slots)


@fault
async def disk_of_the_blobs_full(stage: Stage) -> bool:
    return await _disk_full(stage, ("executor", "component_host"), lambda: less_than_a_lease(stage))


@fault
async def disk_of_the_blobs_full_for_long(stage: Stage) -> bool:
    """Nothing is packed meanwhile. Processes that others restart may write again."""
    modules = ("executor", "component_host", "control_plane")
    return await _disk_full(stage, modules, lambda: asyncio.sleep(stage.outage_s))


@fault
async def blob_store_down(stage: Stage) -> bool:
    """Let every read and write of the blob store fail."""
    with hold_disk(stage) as taken:
        if not taken:
            return False
        _link(stage, stage.blobs, stage.blobs.name)
        try:
            await asyncio.sleep(stage.outage_s)
        finally:
            _link(stage, stage.blobs, "blobs.disk")
    return True


@fault
async def segments_unreadable(stage: Stage) -> bool:
    """Let the reads of half of the segments fail."""
    with hold_disk(stage) as taken:
        folder = stage.blobs / "segments"
        names = sorted(path.name for path in folder.glob("[0-9]*")) if taken and folder.is_dir() else []
        if not names:
            return False
        aside = stage.fleet.mesh.folder / "aside"
        aside.mkdir(exist_ok=True)
        chosen = stage.dice.sample(names, (len(names) + 1) // 2)
        for name in chosen:
            with suppress(FileNotFoundError):  # rewritten meanwhile
                os.link(folder / name, aside / name)
                _link(stage, folder / name, name)
        await beyond_a_lease(stage)
        for path in aside.iterdir():
            if (folder / path.name).is_symlink():
                path.replace(folder / path.name)
            else:
                path.unlink()  # expired or rewritten
    return True


def _link(stage: Stage, path: Path, target: str) -> None:
    link(stage.fleet.mesh.folder, path, target)


def link(folder: Path, path: Path, target: str) -> None:
    """Make a path a symbolic link, atomically. A link to itself cannot be read: ELOOP. `folder`: of the mesh."""
    new = folder / "link.new"
    new.symlink_to(target)
    new.replace(path)


@fault
async def descriptors_short(stage: Stage) -> bool:
    """Leave a process no new file descriptor for a while."""
    with hold(stage, stage.dice.choice(("executor", "component_host", "control_plane"))) as slot:
        if slot is None:
            return False
        with limited(slot, resource.RLIMIT_NOFILE, 8):
            await less_than_a_lease(stage)
    return True


@alone
@fault
async def users_away(stage: Stage) -> bool:
    """Let a mesh that is whole idle: nobody may be warned of anything."""
    await stage.fleet.settled(stage.store)
    stage.fleet.users_away.set()
    try:
        await asyncio.sleep(HEALING_S)  # runs that began before come to their ends
        before = stage.fleet.warnings()
        await asyncio.sleep(IDLE_S)
        new = stage.fleet.warnings()[len(before) :]
    finally:
        stage.fleet.users_away.clear()
    assert not new, f"{len(new)} warnings of an idle mesh, the first: {new[0]}"
    return True


__all__ = ["ALONE", "FAULTS", "Stage", "disk_of_the_blobs", "draft_appears", "link"]
