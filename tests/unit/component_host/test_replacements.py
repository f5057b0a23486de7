"""New backends for the plugins of a host, while calls are under way. The backends are scripted."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING

from support import wait_until_async
from support.scripted_host import ECHO, PLUGIN, Scripted, error_of, run_async, scripted, settle_down

from component_host import replacements
from component_host.replacements import PluginOutcome
from stepflow.errors import Unavailable

if TYPE_CHECKING:
    import pytest


def unchanged() -> None:
    """Ignore a change of the listing."""


def test_calls_in_flight_end_in_the_former_server_and_new_ones_wait_for_its_successor() -> None:
    async def main() -> None:
        async with scripted() as (host, former, executor):
            successor = Scripted()
            first = executor.call("first")
            replacing = asyncio.create_task(host.replacements.replace(PLUGIN, successor, unchanged))
            await wait_until_async(lambda: successor.starts == 1, "the successor has started")

            second = executor.call("second", ECHO)
            await settle_down()
            assert successor.executed == former.executed[1:] == [], "the former server is busy"
            assert former.closed == 0

            former.executed[0].succeed(b'"done"')
            assert await replacing == PluginOutcome(PLUGIN, "restarted")
            assert (await executor.result(first)).result.json == b'"done"'
            assert (await executor.result(second)).result.json == b"{}"
            assert [call.request.step_id for call in successor.executed] == ["second"]
            await wait_until_async(lambda: former.closed == 1, "the former server ends")
            assert successor.health.restarts == 1

    run_async(main)


def test_a_busy_server_delays_new_calls_for_a_while_only_and_ends_after_its_last_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replacements, "IDLE_WAIT_S", 0.05)

    async def main() -> None:
        async with scripted() as (host, former, executor):
            successor = Scripted()
            long = executor.call("long")
            change = await host.replacements.replace(PLUGIN, successor, unchanged)
            assert change == PluginOutcome(PLUGIN, "restarted", "the former server ends after its 1 call")
            await executor.result(executor.call("next", ECHO))
            assert len(successor.executed) == 1
            assert former.closed == 0

            former.executed[0].succeed(b"1")
            assert (await executor.result(long)).result.json == b"1"
            await wait_until_async(lambda: former.closed == 1, "the former server ends")

    run_async(main)


def test_a_plugin_with_many_busy_former_servers_gets_no_further_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacements, "IDLE_WAIT_S", 0.0)
    monkeypatch.setattr(replacements, "FORMER_SERVERS_MAX", 2)

    async def main() -> None:
        async with scripted() as (host, former, executor):
            servers = [former, Scripted(), Scripted(), Scripted()]
            for server, successor in pairwise(servers):
                executor.call(f"long{len(server.executed)}{server.health.restarts}")
                await wait_until_async(lambda server=server: server.executed, "the server is busy")
                change = await host.replacements.replace(PLUGIN, successor, unchanged)

            assert (change.outcome, servers[-1].starts, servers[-1].closed) == ("kept", 0, 1)
            assert change.detail.startswith("2 former servers still execute calls")

            former.executed[0].succeed(b"1")
            await wait_until_async(lambda: former.closed == 1, "the first server ends")
            change = await host.replacements.replace(PLUGIN, Scripted(), unchanged)
            assert change.outcome == "restarted"

    run_async(main)


def test_calls_of_sub_runs_do_not_wait_because_a_call_in_flight_may_wait_for_them() -> None:
    async def main() -> None:
        async with scripted() as (host, former, executor):
            successor = Scripted()
            executor.call("outer")
            replacing = asyncio.create_task(host.replacements.replace(PLUGIN, successor, unchanged))
            await wait_until_async(lambda: successor.starts == 1, "the successor has started")
            await settle_down()
            await executor.result(executor.call("inner", ECHO, depth=1))
            assert len(successor.executed) == 1
            assert not replacing.done()
            former.executed[0].succeed(b"1")
            await replacing

    run_async(main)


def test_a_server_that_does_not_start_leaves_the_former_one_serving() -> None:
    async def main() -> None:
        async with scripted() as (host, former, executor):
            broken = Scripted(start_error=Unavailable("SERVER_EXITED", "SyntaxError in line 3"))
            change = await host.replacements.replace(PLUGIN, broken, unchanged)
            assert change == PluginOutcome(PLUGIN, "kept", "SyntaxError in line 3")
            assert "the former server serves on: SyntaxError in line 3" in former.health.last_error
            await executor.result(executor.call("next", ECHO))
            assert (former.closed, broken.closed, broken.executed) == (0, 1, [])

    run_async(main)


def test_a_former_server_that_is_down_is_not_said_to_serve_on() -> None:
    async def main() -> None:
        async with scripted() as (host, former, _):
            former.health.lost(former, "exited with code 1")
            broken = Scripted(start_error=Unavailable("SERVER_EXITED", "no"))
            change = await host.replacements.replace(PLUGIN, broken, unchanged)
            assert change == PluginOutcome(PLUGIN, "failed", "no")
            assert former.health.last_error == "exited with code 1"
            assert (await host.replacements.replace(PLUGIN, Scripted(), unchanged)).outcome == "restarted"

    run_async(main)


def test_a_server_that_needs_the_place_of_the_former_one_starts_after_its_end() -> None:
    async def main() -> None:
        async with scripted() as (host, former, executor):
            successor = Scripted()
            first = executor.call("first")
            replacing = asyncio.create_task(host.replacements.replace_in_place(PLUGIN, successor, unchanged))
            await settle_down()
            second = executor.call("second", ECHO)
            assert (former.closed, successor.starts) == (0, 0)

            successor.may_start.clear()
            former.executed[0].succeed(b"1")
            await wait_until_async(lambda: successor.starts == 1, "the successor starts")
            assert former.closed == 1
            third = executor.call("third", ECHO, depth=1)
            await settle_down()
            assert len(former.executed) == 1

            successor.may_start.set()
            assert await replacing == PluginOutcome(PLUGIN, "restarted")
            for call in (first, second, third):
                assert (await executor.result(call)).HasField("result")
            assert len(successor.executed) == 2

    run_async(main)


def test_a_server_that_stays_busy_is_not_ended_for_its_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacements, "BUSY_S_MAX", 0.05)

    async def main() -> None:
        async with scripted() as (host, former, executor):
            successor = Scripted()
            executor.call("long")
            replacing = asyncio.create_task(host.replacements.replace_in_place(PLUGIN, successor, unchanged))
            await settle_down()
            waiting = executor.call("next", ECHO)
            change = await replacing
            assert (change.outcome, former.closed, successor.starts) == ("kept", 0, 0)
            assert "1 call" in change.detail
            assert (await executor.result(waiting)).HasField("result")
            assert len(former.executed) == 2

    run_async(main)


def test_a_server_that_fails_in_the_place_of_the_former_one_is_a_failed_plugin() -> None:
    async def main() -> None:
        async with scripted() as (host, _, executor):
            broken = Scripted(start_error=Unavailable("SERVER_EXITED", "no"))
            change = await host.replacements.replace_in_place(PLUGIN, broken, unchanged)
            assert change == PluginOutcome(PLUGIN, "failed", "no")
            assert error_of(await executor.result(executor.call()))[0] == "UNREACHABLE"

    run_async(main)


def test_a_removed_plugin_gets_no_calls_and_ends_after_its_last() -> None:
    async def main() -> None:
        async with scripted() as (host, former, executor):
            first = executor.call("first")
            assert host.replacements.remove(PLUGIN).detail == "its server ends after its 1 call"
            refused = await executor.result(executor.call("next", ECHO))
            assert error_of(refused) == ("UNREACHABLE", "PLUGIN_UNKNOWN")
            assert former.closed == 0
            former.executed[0].succeed(b"1")
            assert (await executor.result(first)).HasField("result")
            await wait_until_async(lambda: former.closed == 1, "the former server ends")

    run_async(main)


def test_the_end_of_the_host_closes_both_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacements, "IDLE_WAIT_S", 0.05)

    async def main() -> None:
        successor = Scripted()
        async with scripted() as (host, former, executor):
            long = executor.call("long")
            await host.replacements.replace(PLUGIN, successor, unchanged)
            await host.close()
            assert (former.closed, successor.closed) == (1, 1)
            assert error_of(await executor.result(long))[0] == "UNREACHABLE"

    run_async(main)


def test_a_call_that_waited_for_its_input_meanwhile_goes_to_the_successor() -> None:
    async def main() -> None:
        async with scripted() as (host, former, executor):
            successor = Scripted()
            blob = await host.blobs.put(b'{"a": 1}', scope=executor.request().root_run_id)
            executor.call("long")
            replacing = asyncio.create_task(host.replacements.replace(PLUGIN, successor, unchanged))
            await wait_until_async(lambda: successor.starts == 1, "the successor has started")
            large = executor.call("large", ECHO, blob=blob)
            await settle_down()
            former.executed[0].succeed(b"1")
            await replacing
            assert (await executor.result(large)).result.json == b'{"a":1}'
            assert len(successor.executed) == 1
            assert host.value_budget.bytes_used == 0

    run_async(main)
