"""Everything that is done to a mesh, by name.

A fault is a coroutine that takes hold of a part of the fleet, does its harm, and heals it before it returns: whatever
comes after is up to the mesh. It returns False when what it wanted was not to be had just now. Chance comes from the
dice that it is given, so that a seed decides which parts are hit, and for how long.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support.fleet import Fleet, Kill, Slot, kill_servers_of

from stepflow.store.lease import LEASE_TTL_S

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterator

    from support.etcd import EtcdServer

    from stepflow.store import Store

LONG_S = 20.0
"""An outage of everything of one kind."""

TAKE_OVER_S = 2.0
"""How long nothing else happens after an executor was killed to see how fast its runs move."""


@dataclass
class Scene:
    """What faults act on."""

    fleet: Fleet
    store: Store
    dice: random.Random


Fault = "Callable[[Scene], Awaitable[bool]]"
FAULTS: dict[str, Callable[[Scene], Awaitable[bool]]] = {}
ALONE: set[str] = set()
"""Those beside which nothing else may happen."""


def fault(work: Callable[[Scene], Awaitable[bool]]) -> Callable[[Scene], Awaitable[bool]]:
    FAULTS[work.__name__.replace("_", " ")] = work
    return work


def alone(work: Callable[[Scene], Awaitable[bool]]) -> Callable[[Scene], Awaitable[bool]]:
    ALONE.add(work.__name__.replace("_", " "))
    return work


@contextmanager
def hold(scene: Scene, module: str, slot: Slot | None = None) -> Iterator[Slot | None]:
    """Take a slot in which something runs, and which no other fault is about; None when there is none."""
    free = [slot] if slot is not None else scene.fleet.of(module)
    free = [each for each in free if each.service is not None and not each.busy]
    if not free:
        yield None
        return
    taken = scene.dice.choice(free)
    taken.busy = True
    try:
        yield taken
    finally:
        taken.busy = False


@contextmanager
def hold_member(scene: Scene) -> Iterator[EtcdServer | None]:
    """Take a member of etcd; None while a fault is about another one: two of three are a matter for `etcd_down`."""
    fleet = scene.fleet
    if fleet.busy_members:
        yield None
        return
    taken = scene.dice.choice(list(fleet.members))
    fleet.busy_members.add(taken.name)
    try:
        yield taken
    finally:
        fleet.busy_members.discard(taken.name)


async def beyond_a_lease(scene: Scene) -> None:
    await asyncio.sleep(LEASE_TTL_S + scene.dice.uniform(1.0, 4.0))


async def less_than_a_lease(scene: Scene) -> None:
    await asyncio.sleep(scene.dice.uniform(0.2, 0.6 * LEASE_TTL_S))


# --- processes ------------------------------------------------------------------------------------------------------


@alone
@fault
async def executor_killed(scene: Scene) -> bool:
    """Kill an executor of a mesh that is whole, and note when: it is seen how fast its runs move."""
    await scene.fleet.settled(scene.store)
    with hold(scene, "executor") as slot:
        if slot is None:
            return False
        executor_id = (await _id_of(scene, slot)) or slot.running.id
        scene.fleet.kills.append(Kill(executor_id, time.time_ns() // 1_000_000))
        await scene.fleet.kill(slot)
        await asyncio.sleep(TAKE_OVER_S)
        await scene.fleet.start(slot)
    return True


async def _id_of(scene: Scene, slot: Slot) -> str:
    """Return the id under which the executor of a slot is registered now; it changes whenever it loses its session."""
    from stepflow.mesh.v1 import state_pb2
    from stepflow.store import keys, range_all

    async for item in range_all(scene.store, keys.EXECUTOR_SESSIONS):
        if state_pb2.ExecutorSession.FromString(item.value).address == slot.front.endpoint:
            return keys.tail(keys.EXECUTOR_SESSIONS, item.key)
    return ""


async def _killed(scene: Scene, module: str, slot: Slot | None = None) -> bool:
    with hold(scene, module, slot) as taken:
        if taken is None:
            return False
        await scene.fleet.kill(taken)
        await asyncio.sleep(scene.dice.uniform(0, 2))
        await scene.fleet.start(taken)
    return True


async def _stopped(scene: Scene, module: str, pause: Callable[[Scene], Awaitable[None]]) -> bool:
    with hold(scene, module) as slot:
        if slot is None:
            return False
        slot.running.pause()
        try:
            await pause(scene)
        finally:
            slot.running.go_on()
    return True


async def _ended(scene: Scene, module: str) -> bool:
    with hold(scene, module) as slot:
        if slot is None:
            return False
        code = await scene.fleet.end(slot)
        await scene.fleet.start(slot)
        assert code == 0, f"{slot.name} ended with {code}"
    return True


@fault
async def executor_killed_amid_others(scene: Scene) -> bool:
    return await _killed(scene, "executor")


@fault
async def executor_stopped_beyond_its_lease(scene: Scene) -> bool:
    return await _stopped(scene, "executor", beyond_a_lease)


@fault
async def executor_stopped_for_a_moment(scene: Scene) -> bool:
    return await _stopped(scene, "executor", less_than_a_lease)


@fault
async def executors_restarted_one_by_one(scene: Scene) -> bool:
    done = [await _ended(scene, "executor") for _ in scene.fleet.of("executor")]
    return any(done)


@fault
async def host_killed(scene: Scene) -> bool:
    return await _killed(scene, "component_host")


@fault
async def host_stopped_beyond_its_lease(scene: Scene) -> bool:
    return await _stopped(scene, "component_host", beyond_a_lease)


@fault
async def host_stopped_for_a_moment(scene: Scene) -> bool:
    return await _stopped(scene, "component_host", less_than_a_lease)


@fault
async def host_restarted(scene: Scene) -> bool:
    return await _ended(scene, "component_host")


@fault
async def component_server_killed(scene: Scene) -> bool:
    with hold(scene, "component_host") as slot:
        if slot is None:
            return False
        kill_servers_of(slot.running)
    return True


@fault
async def leader_killed(scene: Scene) -> bool:
    leader = await scene.fleet.leader(scene.store)
    return leader is not None and await _killed(scene, "control_plane", leader)


@fault
async def control_plane_stopped(scene: Scene) -> bool:
    return await _stopped(scene, "control_plane", beyond_a_lease)


@fault
async def control_plane_restarted(scene: Scene) -> bool:
    return await _ended(scene, "control_plane")


@fault
async def all_control_planes_down(scene: Scene) -> bool:
    slots = scene.fleet.of("control_plane")
    if any(slot.busy or slot.service is None for slot in slots):
        return False
    for slot in slots:
        slot.busy = True
    try:
        for slot in slots:
            await scene.fleet.kill(slot)
        await asyncio.sleep(LONG_S)
        for slot in slots:
            await scene.fleet.start(slot)
    finally:
        for slot in slots:
            slot.busy = False
    return True


# --- etcd -----------------------------------------------------------------------------------------------------------


@fault
async def etcd_member_killed(scene: Scene) -> bool:
    with hold_member(scene) as member:
        if member is None:
            return False
        await asyncio.to_thread(member.kill)
        await asyncio.sleep(scene.dice.uniform(0, 4))
        await asyncio.to_thread(member.start)
    return True


@fault
async def etcd_member_stopped(scene: Scene) -> bool:
    with hold_member(scene) as member:
        if member is None:
            return False
        member.stop()
        try:
            await asyncio.sleep(scene.dice.uniform(0.5, 4))
        finally:
            member.go_on()
    return True


@fault
async def etcd_down(scene: Scene) -> bool:
    if scene.fleet.busy_members:
        return False
    names = {member.name for member in scene.fleet.members}
    scene.fleet.busy_members |= names
    try:
        for member in scene.fleet.members:
            await asyncio.to_thread(member.kill)
        await asyncio.sleep(LONG_S)
        for member in scene.fleet.members:
            member.launch()
        for member in scene.fleet.members:
            await asyncio.to_thread(member.wait)
    finally:
        scene.fleet.busy_members -= names
    return True


# --- the network ----------------------------------------------------------------------------------------------------


async def _streams(scene: Scene, module: str, harm: Callable[[Slot], None], heal: Callable[[Slot], None]) -> bool:
    """Do harm to the connections that others have to a process."""
    with hold(scene, module) as slot:
        if slot is None:
            return False
        harm(slot)
        await less_than_a_lease(scene)
        heal(slot)
    return True


def nothing(_slot: Slot) -> None:
    pass


@fault
async def streams_to_a_host_cut(scene: Scene) -> bool:
    return await _streams(scene, "component_host", lambda slot: slot.front.cut(), nothing)


@fault
async def streams_to_a_host_half_open(scene: Scene) -> bool:
    return await _streams(
        scene, "component_host", lambda slot: slot.front.freeze_replies(), lambda slot: slot.front.cut()
    )


@fault
async def streams_to_a_host_silent(scene: Scene) -> bool:
    return await _streams(scene, "component_host", lambda slot: slot.front.silence(), lambda slot: slot.front.speak())


@fault
async def streams_to_a_host_slow(scene: Scene) -> bool:
    delay_s = scene.dice.uniform(0.02, 0.3)
    return await _streams(
        scene, "component_host", lambda slot: slot.front.delay(delay_s), lambda slot: slot.front.delay(0)
    )


@fault
async def streams_to_a_host_cut_in_the_middle_of_a_message(scene: Scene) -> bool:
    size = scene.dice.randrange(40, 4_000)
    return await _streams(
        scene, "component_host", lambda slot: slot.front.cut_replies_after(size), lambda slot: slot.front.cut_no_more()
    )


@fault
async def streams_to_an_executor_cut(scene: Scene) -> bool:
    return await _streams(scene, "executor", lambda slot: slot.front.cut(), nothing)


@fault
async def streams_to_an_executor_silent(scene: Scene) -> bool:
    return await _streams(scene, "executor", lambda slot: slot.front.silence(), lambda slot: slot.front.speak())


async def _cut_off(scene: Scene, module: str) -> bool:
    """Separate a process from etcd for longer than its lease, while all others reach both."""
    with hold(scene, module) as slot:
        if slot is None:
            return False
        for proxy in slot.to_etcd:
            proxy.silence()
        await beyond_a_lease(scene)
        for proxy in slot.to_etcd:
            proxy.speak()
    return True


@fault
async def executor_cut_off_from_etcd(scene: Scene) -> bool:
    return await _cut_off(scene, "executor")


@fault
async def host_cut_off_from_etcd(scene: Scene) -> bool:
    return await _cut_off(scene, "component_host")


@fault
async def control_plane_cut_off_from_etcd(scene: Scene) -> bool:
    return await _cut_off(scene, "control_plane")


@fault
async def connections_to_etcd_cut(scene: Scene) -> bool:
    for slot in scene.fleet.slots:
        for proxy in slot.to_etcd:
            proxy.cut()
    return True


@fault
async def etcd_slow(scene: Scene) -> bool:
    delay_s = scene.dice.uniform(0.01, 0.15)
    proxies = [proxy for slot in scene.fleet.slots for proxy in slot.to_etcd]
    for proxy in proxies:
        proxy.delay(delay_s)
    await less_than_a_lease(scene)
    for proxy in proxies:
        proxy.delay(0)
    return True


__all__ = ["ALONE", "FAULTS", "Scene"]
