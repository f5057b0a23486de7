"""Routing over hosts whose plugins of one name differ, as during an update."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_until_async

from executor.hosts.peer import HostPeer
from executor.hosts.pool import HostPool
from stepflow.codec import Json
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.routing.table import NoRoute, PluginComponents, Rule, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

RULES = {"/p": (Rule("p"),)}
TIMEOUT_S = 0.2


class Scene:
    """A pool with one plugin, and the components of the calls sent to each host."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.pool: HostPool[Any] = HostPool(RULES, {}, queue_timeout_s=timeout_s)
        self.sent: list[tuple[str, str]] = []
        self.late: list[str] = []
        self.rebuilt = 0
        self.pool.queue.on_unreachable = lambda _caller, action: self.late.append(action.target.component)
        self.pool.on_routes_changed = self._count
        self.pool.send_call = self.send  # type: ignore[method-assign]  # the frame needs a whole run
        self.pool.queue._send_call = self.send

    def _count(self) -> None:
        self.rebuilt += 1

    def send(self, peer: HostPeer, _caller: Any, action: Any, _payload: pb.Payload) -> None:
        self.sent.append((peer.id, action.target.component))

    def host(self, name: str, *components: str, complete: bool = True, **state: Any) -> HostPeer:
        """Register a host, or its changed state."""
        peer = self.pool._peers.get(name) or HostPeer(name, {})
        peer.plugins = {"p": PluginComponents(tuple((each, f"/{each}") for each in components), complete)}
        for member, value in state.items():
            setattr(peer, member, value)
        peer.send = lambda _frame: None
        self.pool.set_peer(peer)
        return peer

    def resolve(self, component: str) -> Target | NoRoute | None:
        return self.pool.routes.resolve(f"/p/{component}", Json(b"1"))

    def call(self, component: str) -> None:
        target = self.resolve(component)
        assert isinstance(target, Target), target
        scope = SimpleNamespace(depth=0)
        action: Any = SimpleNamespace(target=target, step=SimpleNamespace(item=SimpleNamespace(scope=scope)))
        caller: Any = SimpleNamespace(gone=False, waits_for=lambda _action: True)
        self.pool.dispatch(caller, action, pb.Payload())


def in_scene(test: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        scene = Scene()
        try:
            await test(scene)
        finally:
            scene.pool.close()

    asyncio.run(main())


@pytest.mark.parametrize("order", [("old", "new"), ("new", "old")])
def test_a_call_goes_to_a_host_that_offers_its_component(order: tuple[str, str]) -> None:
    async def main(scene: Scene) -> None:
        offers = {"old": ("a", "gone"), "new": ("a", "added")}
        for name in order:
            scene.host(name, *offers[name])
        for _ in range(3):
            scene.call("added")
            scene.call("gone")
        scene.call("a")
        assert set(scene.sent[:-1]) == {("new", "added"), ("old", "gone")}

    in_scene(main)


def test_a_component_that_its_last_host_has_taken_along_waits_for_the_next_one() -> None:
    async def main(scene: Scene) -> None:
        scene.host("old", "a", "gone")
        scene.host("new", "a")
        scene.pool.remove_peer("old")
        scene.call("gone")
        scene.call("a")
        assert scene.sent == [("new", "a")]
        scene.host("third", "a", "gone")
        assert scene.sent == [("new", "a"), ("third", "gone")]

        scene.pool.remove_peer("third")
        scene.call("gone")
        await wait_until_async(lambda: scene.late == ["gone"], "nobody offers it for the length of the time-out")

    in_scene(main)


@pytest.mark.parametrize("why", ["starts", "drains", "is lost"])
def test_an_unknown_component_is_waited_for_while_a_host_may_come_that_offers_it(why: str) -> None:
    async def main(scene: Scene) -> None:
        scene.host("old", "a")
        scene.host("other", "a")
        assert isinstance(scene.resolve("added"), NoRoute)

        if why == "starts":
            scene.host("other", "a", starting=frozenset(("p",)))
        elif why == "drains":
            scene.host("other", "a", draining=True)
        else:
            scene.pool.remove_peer("other")
        assert scene.resolve("added") is None
        assert isinstance(scene.resolve("a"), Target)

        scene.host("new", "a", "added", starting=frozenset())
        scene.call("added")
        assert scene.sent == [("new", "added")]

    in_scene(main)


def test_an_unknown_component_fails_when_no_other_host_has_come_within_the_time_out() -> None:
    async def main(scene: Scene) -> None:
        scene.host("old", "a")
        scene.host("other", "a")
        scene.pool.remove_peer("other")
        assert scene.resolve("added") is None
        rebuilt = scene.rebuilt
        await wait_until_async(lambda: scene.rebuilt > rebuilt, "the steps that wait are looked at again")
        found = scene.resolve("added")
        assert isinstance(found, NoRoute)
        assert found.reason == "not_listed"

    in_scene(main)


def test_an_unlisted_component_goes_to_a_host_whose_list_is_not_complete() -> None:
    async def main(scene: Scene) -> None:
        scene.host("listing", "a")
        scene.host("silent", complete=False)
        scene.call("b")
        scene.call("a")
        assert scene.sent == [("silent", "/b"), ("listing", "a")]

    in_scene(main)


def test_waiting_calls_follow_their_components_when_hosts_begin_and_cease_to_differ() -> None:
    async def main(scene: Scene) -> None:
        old = scene.host("old", "a", "gone")
        old.can_take = lambda _depth: False  # type: ignore[method-assign]  # it is full
        scene.call("a")
        scene.call("gone")
        assert list(scene.pool.queue.waiting) == [("p", 0)]

        scene.host("new", "a")
        assert scene.sent == [("new", "a")]
        scene.pool.remove_peer("new")
        del old.can_take
        scene.pool.queue.release()
        assert scene.sent == [("new", "a"), ("old", "gone")]

    in_scene(main)


def test_hosts_that_offer_the_same_share_one_queue_whatever_the_order_of_their_lists() -> None:
    async def main(scene: Scene) -> None:
        scene.host("one", "a", "b")
        scene.host("two", "b", "a")
        assert list(scene.pool.routes.by_group) == ["p"]

    in_scene(main)


def test_groups_that_share_a_host_are_served_in_turn() -> None:
    async def main(scene: Scene) -> None:
        new = scene.host("new", "a", "added")
        old = scene.host("old", "a")
        for peer in (new, old):
            peer.can_take = lambda _depth: False  # type: ignore[method-assign]  # they are full
        for component in ("a", "a", "added", "added"):
            scene.call(component)
        room = [1]
        new.can_take = lambda _depth: len(scene.sent) < room[0]  # type: ignore[method-assign]  # as above
        for room[0] in (1, 2, 3, 4):
            scene.pool.queue.release()
        assert [component for _, component in scene.sent] == ["a", "added", "a", "added"]

    in_scene(main)
