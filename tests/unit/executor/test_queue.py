"""Calls that wait for a host: their order and their timeouts."""

from __future__ import annotations

import asyncio
from typing import Any

from support import wait_until_async

from executor.hosts.queue import CallQueue
from stepflow.mesh.v1 import journal_pb2 as pb


class _Routes:
    """Hosts with so much room, by plugin."""

    def __init__(self, **room: int) -> None:
        self.by_group = room

    def find_room(self, plugin: str, _depth: int) -> Any:
        return plugin if self.by_group.get(plugin) else None


class _Caller:
    gone = False
    wanted = True

    def waits_for(self, _action: Any) -> bool:
        return self.wanted


def queue_of(routes: Any, timeout_s: float) -> tuple[CallQueue[Any], list[Any]]:
    sent: list[Any] = []

    def send(plugin: Any, _caller: Any, action: Any, _payload: pb.Payload) -> None:
        routes.by_group[plugin] -= 1
        sent.append(action)

    return CallQueue(routes, send, timeout_s=timeout_s), sent


def add(queue: CallQueue[Any], plugin: str, depth: int, action: Any, caller: _Caller | None = None) -> None:
    queue.add_call((plugin, depth), caller or _Caller(), action, pb.Payload())


def test_the_deepest_calls_go_first_and_equally_deep_ones_in_their_order() -> None:
    async def main() -> None:
        routes = _Routes(p=0)
        queue, sent = queue_of(routes, 0.0)
        for depth, action in [(0, "a"), (2, "b"), (0, "c"), (2, "d"), (1, "e")]:
            add(queue, "p", depth, action)
        queue.release()
        assert sent == []
        routes.by_group["p"] = 4
        queue.release()
        assert sent == ["b", "d", "e", "a"]
        assert list(queue.waiting) == [("p", 0)]
        routes.by_group["p"] = 1
        queue.release()
        assert sent[-1] == "c"
        assert not queue.waiting

    asyncio.run(main())


def test_a_call_that_its_caller_no_longer_wants_leaves_the_queue_unsent() -> None:
    async def main() -> None:
        routes = _Routes(p=0)
        queue, sent = queue_of(routes, 0.0)
        caller = _Caller()
        add(queue, "p", 0, "unwanted", caller)
        add(queue, "p", 0, "wanted")
        caller.wanted = False
        routes.by_group["p"] = 1
        queue.release()
        assert sent == ["wanted"]

    asyncio.run(main())


def test_a_call_expires_only_while_no_host_runs_its_plugin() -> None:
    async def main() -> None:
        routes = _Routes(busy=0)
        queue, sent = queue_of(routes, 0.02)
        late: list[Any] = []
        queue.on_unreachable = lambda _caller, action: late.append(action)
        add(queue, "busy", 0, "patient")
        add(queue, "absent", 0, "late")
        await wait_until_async(lambda: late, "the call without a host expires")
        await asyncio.sleep(0.05)
        assert late == ["late"]
        assert ("busy", 0) in queue.waiting
        del routes.by_group["busy"]
        await wait_until_async(lambda: len(late) == 2, "its host is gone: it expires as well")
        assert not queue.waiting
        assert queue._timer is None
        assert sent == []

    asyncio.run(main())
